"""What a snapshot was made of."""

from __future__ import annotations

from collections.abc import Iterable

from transforms.errors import UserError
from transforms.store.lake import Lake, Manifest


def lineage(lake: Lake, manifest: Manifest) -> dict[str, Manifest]:
    """Stage → manifest of everything that a snapshot is made of, itself included.

    What a snapshot builds on that is of its own stage (the night before) is no part of it: its rows are there again.

    Raises:
        UserError: if one of the manifests isn't there any more.
    """
    found = {manifest.stage: manifest}
    walk = [manifest]
    while walk:
        for stage, snapshot in walk.pop().upstream.items():
            if stage in found:
                continue
            upstream = lake.manifest(stage, snapshot)
            if upstream is None:
                raise UserError(f"the lake {lake.root!r} lacks the manifest of {stage} {snapshot}; restore it")
            found[stage] = upstream
            walk.append(upstream)
    return found


def check_lineage(lake: Lake, manifests: Iterable[Manifest], *, whole: bool = True) -> None:
    """Damaged unless all parts of these snapshots, and of what they are made of as far as it is there, are what was written.

    ``whole``: as ``Lake.check_snapshot`` has it.
    """
    found, walk = set(), list(manifests)
    while walk:
        one = walk.pop()
        found.add(one.snapshot_id)
        lake.check_snapshot(one, whole=whole)
        upstream = (lake.manifest(*place) for place in one.upstream.items() if place[1] not in found)
        walk += [other for other in upstream if other is not None]
