"""Compares one picture with the training images near it, and says what there is to say: rows of ``matches`` and ``decoys``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from transforms.kernels.copies import MAX_TWINS, ratio, twins
from transforms.kernels.distances import (
    COARSE,
    Frame,
    adaptive_l2,
    best_crop,
    block_means,
    central_crop,
    coarse_l2,
    frame_of,
    l2,
    scaled,
    tiled_l2,
)
from transforms.store.pictures import DamagedPicture

NEAREST_GROUPS = 3
"""Foreign groups whose members are compared as well, the nearest by the pixels of their representatives."""


AT_ONCE = 16
"""Training images that a generation is compared with at once, the likely ones first."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """How a generation is compared.

    Attributes:
        delta: extracted from this l2 down; and twins lie within it.
        others: the n of the adaptive distance.
        alpha: the alpha of the adaptive distance.
        copy_ratio: twins stand apart by this ratio, as copies do.
    """

    delta: float
    others: int
    alpha: float
    copy_ratio: float


class Group(NamedTuple):
    """A group of training images, or a control, by the image that stands for it.

    Attributes:
        group: its id; a control is a group of its own.
        code, sample_id: of its representative.
        size: images in it.
        found_by: clip, thumbnail or both; own where it is compared whatever they say.
        cosine: of the CLIP vectors, where CLIP found it.
    """

    group: str
    code: int
    sample_id: str
    size: int
    found_by: str = "own"
    cosine: float | None = None


class Near(NamedTuple):
    """A group and how far its representative lies from what is compared: one image per group, since the paper counts identical
    training images once.

    Attributes:
        group: which.
        l2, coarse_l2: to its representative.
        whole: whether that has the shape of what is compared, so that nothing of it was cropped.
        twins: the groups that are one memory with it, where that was looked at.
    """

    group: Group
    l2: float
    coarse_l2: float
    whole: bool = False
    twins: frozenset[str] | None = None


class ComparedPicture(NamedTuple):
    """A picture, and what lies near it.

    Attributes:
        picture: (h, w, 3) uint8.
        coarse: its block means, float32 in [0, 1]: what ``coarse_l2`` compares.
        training: the groups of training images, the nearest by l2 first.
        controls: likewise, for what a control's caption made.
    """

    picture: np.ndarray
    coarse: np.ndarray
    training: list[Near]
    controls: list[Near]


Pictures = Callable[[int, str, Frame], np.ndarray]
"""(code, sample_id, frame) → the picture as it covers the frame (``covering``), (H, W, 3) uint8; the same object each time
while it is kept. DamagedPicture where it can't be decoded, or is too long: it is then near to nothing."""

Members = Mapping[str, Sequence[tuple[int, str]]]
"""Group → (code, sample_id) of those of its members that are compared; a group of one needs no entry."""


class Matcher:
    """Compares pictures. Threads may share it.

    Args:
        pictures: the training images.
        measure: how they are compared.
    """

    def __init__(self, pictures: Pictures, measure: Measure):
        self.pictures, self.measure = pictures, measure

    def compare(
        self,
        picture: np.ndarray,
        training: Sequence[Group],
        controls: Sequence[Group] = (),
        bounds: np.ndarray | None = None,
        own: str | None = None,
    ) -> ComparedPicture:
        """A picture beside the representatives of groups.

        Args:
            picture: (h, w, 3) uint8.
            training, controls: what may lie near it.
            bounds: of each group of ``training`` a distance that its l2 is not below. One that is certain not to be among the
                nearest ``others`` and the next is left out, and its picture isn't looked at.
            own: the training group whose caption made it, if any.
        """
        asked = scaled(picture)
        coarse = block_means(asked, COARSE)
        order = range(len(training)) if bounds is None else np.argsort(bounds, kind="stable").tolist()
        # One more than the adaptive distance needs, since the own group is none of the others; and as many that may be twins.
        enough, farthest = self.measure.others + 1 + MAX_TWINS, np.inf
        near: list[Near] = []
        means: list[np.ndarray] = []
        for start in range(0, len(order), AT_ONCE):
            places = order[start : start + AT_ONCE]
            if bounds is not None and bounds[places[0]] > farthest:
                break
            found, coarse_pictures = self._distances([training[place] for place in places], picture, asked, coarse)
            near += found
            means.append(coarse_pictures)
            if len(near) >= enough:
                farthest = float(np.partition([one.l2 for one in near], enough - 1)[enough - 1])
        near = self._with_twins(near, np.concatenate(means), own, frame_of(picture)) if near else near
        return ComparedPicture(picture, coarse, in_order(near), in_order(self._distances(controls, picture, asked, coarse)[0]))

    def _with_twins(self, near: list[Near], means: np.ndarray, own: str | None, frame: Frame) -> list[Near]:
        """The same, with the twins of those groups that get a row, while their pictures are at hand."""
        ordered, coarsest = in_order(near), _coarsest(near)
        chosen = {own, *(one.group.group for one in ordered[: NEAREST_GROUPS + 1]), coarsest and coarsest.group}
        # Only what lies within delta can be a copy: elsewhere twins make no difference.
        return [
            one._replace(twins=self._twins(one.group, near, frame, means))
            if one.group.group in chosen and one.coarse_l2 <= self.measure.delta
            else one
            for one in near
        ]

    def _distances(
        self, groups: Sequence[Group], picture: np.ndarray, asked: np.ndarray, coarse: np.ndarray
    ) -> tuple[list[Near], np.ndarray]:
        """l2 and coarse l2 to representatives that can be read, in float32, since most of a generation's time goes here; and
        their block means.
        """
        aligned = [(group, self._aligned(group.code, group.sample_id, picture)) for group in groups]
        readable = [(group, found) for group, found in aligned if found is not None]
        if not readable:
            return [], np.empty((0, *coarse.shape), np.float32)
        groups = [group for group, _ in readable]
        crops = scaled(np.stack([crop for _, (crop, _) in readable]))
        means = block_means(crops, COARSE)
        far = [
            np.sqrt(np.einsum("nd,nd->n", apart, apart) / apart.shape[1]).tolist()
            for apart in ((asked - crops).reshape(len(groups), -1), (coarse - means).reshape(len(groups), -1))
        ]
        whole = [whole for _, (_, whole) in readable]
        return [Near(*one) for one in zip(groups, *far, whole, strict=True)], means

    def _whole(self, code: int, sample_id: str, frame: Frame) -> np.ndarray | None:
        """A training image; None where it can't be decoded, which ``pictures`` has noted."""
        try:
            return self.pictures(code, sample_id, frame)
        except DamagedPicture:
            return None

    def _aligned(self, code: int, sample_id: str, picture: np.ndarray) -> tuple[np.ndarray, bool] | None:
        """The crop of a training image where a picture lies best in it, and whether that is all of it; None where it can't be
        decoded.
        """
        whole = self._whole(code, sample_id, frame_of(picture))
        if whole is None:
            return None
        return (whole, True) if whole.shape == picture.shape else (best_crop(picture, whole)[1], False)

    def wanted(self, compared: ComparedPicture, own: Group | None) -> list[str]:
        """The groups whose members are needed for ``rows``."""
        others = [near for near in compared.training if own is None or near.group.group != own.group]
        chosen = [own, *(near.group for near in others[:NEAREST_GROUPS]), _coarsest(others)]
        return [group.group for group in chosen if group is not None and group.size > 1]

    def rows(self, compared: ComparedPicture, own: Group | None, control: bool, members: Members) -> list[dict[str, Any]]:
        """One generation against the group it was asked for and the nearest other groups of the training set.

        Args:
            compared: the generation.
            own: the group, or the control, whose caption made it; None where there is none.
            control: whether that is a control.
            members: of the groups that ``wanted`` names.

        Returns:
            Rows of ``matches`` without the audit's columns and the generation's identity: the prompt's own group or control
            (if it has one), the nearest other training groups by l2 and by coarse l2, and of the others near by those within
            delta; for a control also the nearest other control.
        """
        rows: list[dict[str, Any] | None] = []
        if own is not None:
            rows.append(self.row(compared, own, "control" if control else "training", "own", members))
        if control:
            others = [near.group for near in compared.controls if own is None or near.group.group != own.group]
            rows += [self.row(compared, other, "control", "neighbour", members) for other in others[:1]]
        foreign = [near for near in compared.training if control or own is None or near.group.group != own.group]
        nearest = _coarsest(foreign)
        for rank, near in enumerate(foreign):
            chosen = rank == 0 or near.group is nearest
            if chosen or rank < NEAREST_GROUPS:
                row = self.row(compared, near.group, "training", "neighbour", members)
                if row is not None and (chosen or row["extracted"]):
                    rows.append(row)
        return [row for row in rows if row is not None]

    def row(self, compared: ComparedPicture, group: Group, role: str, relation: str, members: Members) -> dict[str, Any] | None:
        """A row of ``matches`` on the nearest member of a group, scaled by the training images near what is compared.

        None where no member can be decoded.

        Controls are measured against the training set as well, so that the scale is the same for both.
        """
        picture = compared.picture
        best: tuple[float, str, int, np.ndarray] | None = None
        # A group of one is its representative; of a larger one the members are listed, the representative among them.
        for code, sample in (
            members.get(group.group, ()) if role == "training" and group.size > 1 else [(group.code, group.sample_id)]
        ):
            whole = self._whole(code, sample, frame_of(picture))
            if whole is None:
                continue
            offset, crop = best_crop(picture, whole)
            candidate = (float(l2(picture, crop)), sample, offset, crop)
            if best is None or candidate[:2] < best[:2]:
                best = candidate
        if best is None:
            return None
        distance, sample, offset, crop = best
        coarse = float(coarse_l2(compared.coarse, crop))
        foreign = [near for near in compared.training if role == "control" or near.group.group != group.group]
        mean_of = np.asarray([near.l2 for near in foreign[: self.measure.others]])
        adaptive = adaptive_l2(distance, mean_of, self.measure.alpha)
        # Only what lies within delta can be a copy: elsewhere twins make no difference.
        apart: frozenset[str] = frozenset()
        if role == "training" and coarse <= self.measure.delta:
            known = next((near.twins for near in compared.training if near.group.group == group.group), None)
            apart = self._twins(group, foreign, frame_of(picture)) if known is None else known
        strangers = [near for near in foreign if near.group.group not in apart]
        nearest_other = min((near.l2 for near in strangers), default=None)
        return {
            "sample_id": sample,
            "group_id": group.group,
            "role": role,
            "relation": relation,
            "found_by": "own" if relation == "own" else group.found_by,
            "cosine": group.cosine,
            "offset": offset,
            "l2": distance,
            "tiled_l2": float(tiled_l2(picture, crop)),
            "adaptive_l2": None if np.isnan(adaptive) else adaptive,
            "n_others": len(mean_of),
            "nearest_other_l2": nearest_other,
            "ratio": ratio(distance, nearest_other),
            "coarse_l2": coarse,
            "coarse_ratio": ratio(coarse, min((near.coarse_l2 for near in strangers), default=None)),
            "extracted": distance <= self.measure.delta,
        }

    def _twins(self, group: Group, near: Sequence[Near], frame: Frame, means: np.ndarray | None = None) -> frozenset[str]:
        """The other groups that stand so near to a training group that they are one memory with it.

        Looked for among what lies near a picture that is near to the group itself: a twin is, too.

        Args:
            group: which.
            near: the groups near that picture.
            frame: size of that picture.
            means: their block means where they are known: of a picture of another shape those of another crop.
        """
        whole = self._whole(group.code, group.sample_id, frame)
        if whole is None:
            return frozenset()
        middle = central_crop(whole, frame)
        own_means = block_means(middle, COARSE)
        places, others = [], []
        for place, one in enumerate(near):
            other = one.group
            if other.group == group.group:
                continue
            if means is not None and one.whole:
                others.append(means[place])
            elif (aligned := self._aligned(other.code, other.sample_id, middle)) is not None:
                others.append(block_means(aligned[0], COARSE))
            else:
                continue
            places.append(place)
        if not places:
            return frozenset()
        distances = np.sqrt(np.square(np.stack(others) - own_means).reshape(len(places), -1).mean(axis=1)).tolist()
        found = sorted(zip(distances, (near[place].group.group for place in places), strict=True))
        count = twins([distance for distance, _ in found], self.measure.delta, self.measure.copy_ratio)
        return frozenset(name for _, name in found[:count])


def in_order(found: list[Near]) -> list[Near]:
    """The nearest by l2 first."""
    return sorted(found, key=lambda one: (one.l2, one.group.group))


def _coarsest(near: Sequence[Near]) -> Group | None:
    """The group that lies nearest by coarse l2; None without any."""
    found = min(near, key=lambda one: (one.coarse_l2, one.group.group), default=None)
    return None if found is None else found.group
