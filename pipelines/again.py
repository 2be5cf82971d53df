"""Makes one generation of an audit again, from its prompt, its seed and the audit's parameters.

reads   prompts, generations, and the model that made them
writes  a PNG, and to stdout how far it lies from the stored picture, where that was kept

The report shows this command beside every extraction. On another device, or in another batch, a picture may differ from the
stored one by rounding; a model of another revision is refused.

  eidetic again 3220890ece6b5eb05c3ddd1a6fb51e27 1 --lake lake --out again.png
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

from pipelines.device import DeviceOptions
from pipelines.generate import generator_again
from pipelines.options import CommonOptions, Options, option, parse
from transforms.errors import UserError
from transforms.models.base import Wanted
from transforms.store.files import open_parquet
from transforms.store.lake import Lake, Manifest
from transforms.store.lineage import check_lineage
from transforms.store.texts import printable
from transforms.store.tombstones import FORGOTTEN, NO_TEXT, Tombstones, sha256


@dataclasses.dataclass(frozen=True)
class AgainOptions(Options):
    """The generation: which one, and what makes it."""

    prompt_id: str = option("", "the prompt's id, as in the tables")
    sample_index: int = option(0, "which of the prompt's generations, from 0")
    audit: str | None = option(None, "the audit that it belongs to (default: the newest)")
    model: str | None = option(None, "where the audit's model is now: hub id or local folder (default: where it was)")
    out: str = option("again.png", "where the picture is written")


def run(lake: Lake, options: AgainOptions, device: str) -> str:
    """Makes the picture, writes it, and returns what there is to say about it.

    Raises:
        UserError: for an audit, prompt or generation that isn't there, a prompt that was forgotten, a model of another
            revision, and a picture that the model doesn't make or that can't be written.
    """
    import numpy as np

    from transforms.kernels.distances import l2
    from transforms.store.pictures import decode, encode_png

    folder = os.path.dirname(options.out) or "."
    if not os.path.isdir(folder):
        raise UserError(f"--out is {options.out!r}, and there is no folder {folder!r}; make it, or name another place")
    audit = _audit(lake, options.audit)
    check_lineage(lake, [audit])
    text, row = _generation(lake, audit, options.prompt_id, options.sample_index)
    generator = generator_again(audit, options.model, device, batch_size=1)
    generator.load()
    (made,) = generator.generate([Wanted(text, {options.sample_index: row["seed"]})])
    attempt = made[options.sample_index]
    if attempt.image is None:
        raise UserError(f"the model makes no picture of this prompt ({attempt.reason}); in the audit it was {row['status']}")
    try:
        with open(options.out, "wb") as file:
            file.write(encode_png(attempt.image))
    except OSError as error:
        raise UserError(f"cannot write --out {options.out!r} ({error.strerror}); name another place") from error
    return "\n".join(
        [
            f"prompt   {printable(text)}",
            f"made     {_settings(row)}, on {device}",
            f"picture  {options.out}",
            "l2       the audit did not keep its picture, so there is nothing to compare with"
            if row["image"] is None
            else f"l2       {l2(attempt.image, np.asarray(decode(row['image']))):.6f} to the picture of the audit",
        ]
    )


def _settings(row: dict[str, Any]) -> str:
    """What a generation was made with, as far as the pipeline took notice of it."""
    settings = [f"seed {row['seed']}"]
    if row["steps"] is not None:
        settings.append(f"{row['steps']} steps")
    if row["guidance_scale"] is not None:
        settings.append(f"guidance scale {row['guidance_scale']:g}")
    return ", ".join(settings)


def _audit(lake: Lake, audit: str | None) -> Manifest:
    """The generate manifest of an audit, or of the newest. UserError where it isn't there, or has no seeds."""
    newest = lake.latest("generate")
    found = newest if audit is None else lake.manifest("generate", audit)
    if found is None:
        raise UserError(f"the lake {lake.root!r} has no audit {audit!r}; the newest is {newest.snapshot_id!r}")
    if found.parameters["generator"] != "diffusers":
        raise UserError(f"the audit {found.snapshot_id} is of finished generations, which no seed makes again")
    return found


def _generation(lake: Lake, audit: Manifest, prompt_id: str, sample_index: int) -> tuple[str, dict[str, Any]]:
    """The prompt's text, and its row of ``generations``."""
    prompts = lake.read("prompts", audit.snapshot_id, ["prompt_id", "text", "stratum", "sample_id"]).to_pylist()
    found = [row for row in prompts if row["prompt_id"] == prompt_id]
    if not found:
        raise UserError(f"the audit {audit.snapshot_id} has no prompt {prompt_id!r}; take an id from its report")
    if found[0]["stratum"] == FORGOTTEN or found[0]["text"] == NO_TEXT or _has_a_tombstone(lake, found[0]):
        raise UserError(
            f"the prompt {prompt_id} lost its text or pictures to 'eidetic forget', so nothing makes its generations again: "
            "they may give back what was forgotten; take another id from the audit's report"
        )
    images = 0
    for path in lake.parts("generations", audit.snapshot_id):
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                keys = file.read_row_group(group, columns=["prompt_id", "sample_index"]).to_pylist()
                places = {key["sample_index"]: place for place, key in enumerate(keys) if key["prompt_id"] == prompt_id}
                if sample_index in places:
                    return found[0]["text"], file.read_row_group(group).slice(places[sample_index], 1).to_pylist()[0]
                images += len(places)
    raise UserError(f"the prompt {prompt_id} has {images} generations, so no number {sample_index}; expected 0 to {images - 1}")


def _has_a_tombstone(lake: Lake, prompt: dict[str, Any]) -> bool:
    """Whether a prompt is the caption of a forgotten sample: 'eidetic forget' may not have come as far as its row."""
    tombstones = Tombstones.read(lake)
    nobodys = prompt["sample_id"] is None
    return prompt["sample_id"] in tombstones.samples or (nobodys and sha256(prompt["text"].strip()) in tombstones.captions)


def main(argv: Sequence[str]) -> None:
    parsed = parse(argv, "again", __doc__, (CommonOptions, AgainOptions, DeviceOptions), ("prompt_id", "sample_index"))
    print(run(Lake(parsed[CommonOptions].lake), parsed[AgainOptions], parsed[DeviceOptions].resolved()))


if __name__ == "__main__":
    from pipelines.cli import leave, run_verb

    leave(run_verb(main, sys.argv[1:]))
