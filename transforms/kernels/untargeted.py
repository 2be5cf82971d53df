"""Untargeted extraction: which training pictures lie nearest to those that a model made unasked, and what rules say of it.

All generations meet all training pictures, by products of signed bytes, which are whole numbers: nothing is rounded before the
root is taken. So the nearest are the true ones, with the same digits for any size of block, number of threads, or device.

Source: Carlini et al. 2023, "Extracting Training Data from Diffusion Models", section 5.1 (adaptive l2); Gu et al. 2023, "On
Memorization in Diffusion Models" (the ratio of the two nearest).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from transforms.kernels.distances import FLOAT_STRIP, _multiplies_bytes

if TYPE_CHECKING:
    import torch

MEMORY = 1 << 30
"""Bytes that a block of products and what is kept of it may take, beside the training pictures and the answer."""

COLUMNS = 4096
"""Training pictures in a block: a multiple of eight."""

GROUP = 8
"""Training pictures of like norm, of which the largest product decides whether any of them is looked at."""

ROWS = 4096
"""Generations in a block at most: more no longer make the product faster."""

BYTE_STRIP = 1 << 17
"""Products of two signed bytes, of 2¹⁴ each at most, whose sum is 2³¹ at most: int32 holds it if there is one less."""

FAR = 1 << 61
"""A squared norm that no picture has."""

ALPHA = 0.5
"""The paper's factor in the adaptive l2."""

NEIGHBOURS = 50
"""The paper's n: the pictures nearest to a generation that its distance is measured by."""

ADAPTIVE = 1.0
"""Extracted where the adaptive l2 is at most this. Implied by the paper, not spelled out."""

RATIO = 1 / 3
"""Memorised, as Gu et al. have it, where the ratio is under this."""


class TrainingPictures:
    """Training pictures, prepared to be asked for the nearest ones of many blocks of generations.

    They lie there as signed bytes, in blocks that each hold pictures of all norms, and within a block in groups of like norm.
    The first block gives each generation a distance that its nearest ones don't exceed, the others lower it. Of a group's
    products only the largest is compared with it, which takes a tenth of the time of the products themselves.

    Args:
        pictures: (N, H, W, 3) uint8, N at least 1. Pictures that are equal count as often as they are there: see ``distinct``.
        device: where the products are taken; torch's name.
        memory: bytes for a block of products.

    ValueError for another type or shape.
    """

    def __init__(self, pictures: np.ndarray, device: str = "cpu", memory: int = MEMORY) -> None:
        import torch

        _check(pictures, "training pictures")
        if not len(pictures):
            raise ValueError("no training pictures, expected one at least")
        self.shape = pictures.shape[1:]
        self.count = len(pictures)
        self._device = torch.device(device)
        self._memory = memory
        entries = int(np.prod(self.shape))
        self._index_bits = max(1, (self.count - 1).bit_length())
        if (entries * 255**2).bit_length() + self._index_bits > 63:
            raise ValueError(f"{self.count} pictures of {entries} entries are too many for keys of 63 bits")
        signed = _signed(pictures)
        norms = _squared_norms(signed)
        order = np.argsort(norms, kind="stable")
        blocks = -(-self.count // COLUMNS)
        # What fills the last group is far from all.
        filled = -(-self.count // GROUP) * GROUP
        places = np.full(filled, -1)
        places[: self.count] = np.concatenate([order[start::blocks] for start in range(blocks)])
        width = -(-filled // (GROUP * blocks)) * GROUP
        self._blocks = [(start, min(start + width, filled)) for start in range(0, filled, width)]
        # A group's pictures stand as far apart as there are groups in the block: processors compare columns that lie side by
        # side. In the first block they're of differing norms already.
        for a, b in self._blocks[1:]:
            places[a:b] = places[a:b].reshape(-1, GROUP).T.ravel()
        stored = torch.zeros((filled, entries), dtype=torch.int8)
        for a, b in self._blocks:
            stored[a:b] = torch.from_numpy(signed[places[a:b]])
        stored[torch.from_numpy(places < 0)] = 0
        self._signed = stored.to(self._device)
        self._index = torch.from_numpy(places).to(self._device)
        self._norms = torch.from_numpy(np.where(places < 0, FAR, norms[places])).to(self._device)

    def nearest(self, generated: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` training pictures nearest to each generation, the nearest first, equally near ones by their place.

        Some thousands of generations at once use the processor best; how many, and which, changes no digit of the answer.

        Args:
            generated: (G, H, W, 3) uint8, of the training pictures' size.
            k: 1 or more; of fewer training pictures all are given.

        Returns:
            (G, min(k, N)) int64, places among the training pictures; (G, min(k, N)) float64, l2 in [0, 1], ascending.
        """
        _check(generated, "generations")
        if generated.shape[1:] != self.shape:
            raise ValueError(f"generations have shape {generated.shape[1:]}, the training pictures {self.shape}")
        if k < 1:
            raise ValueError(f"the nearest {k}, expected 1 or more")
        k = min(k, self.count)
        signed = _signed(generated)
        norms = _squared_norms(signed)
        index, squared = np.empty((len(generated), k), np.int64), np.empty((len(generated), k), np.int64)
        for start in range(0, len(signed), self._rows(k)):
            mine = slice(start, start + self._rows(k))
            keys = self._block(signed[mine], norms[mine], k).cpu().numpy()
            index[mine], squared[mine] = keys & ((1 << self._index_bits) - 1), keys >> self._index_bits
        return index, np.sqrt(squared / float(np.prod(self.shape))) / 255

    def _rows(self, k: int) -> int:
        """Generations in a block: as many as there is memory for, were every product looked at."""
        columns = self._blocks[0][1]
        return max(16, min(ROWS, self._memory // (56 * columns + 32 * k + self._signed.shape[1])))

    def _block(self, signed: np.ndarray, norms: np.ndarray, k: int) -> torch.Tensor:
        """(R, k) int64, ascending: squared distance and index in one number."""
        import torch

        rows, mine = torch.from_numpy(signed).to(self._device), torch.from_numpy(norms).to(self._device)
        best = _Best(len(rows), k, self._device, self._index_bits)
        for a, b in self._blocks:
            products = _products(rows, self._signed[a:b]).view(len(rows), GROUP, -1)
            # g·x − |x|²/2 of each group at most, a half more at most; |g|² less twice of it is a squared distance.
            half = self._norms[a:b].div(2, rounding_mode="floor")
            if products.dtype == torch.int32:
                half = half.clamp_(max=1 << 30)  # what fills the last group; no other is over 2²⁹
            half = half.to(products.dtype).view(GROUP, -1)
            if a == 0:
                reach = (products - half).amax(dim=1)
                if reach.shape[1] >= k:
                    # In k groups something is no further than this.
                    best.limit = mine + 1 - 2 * reach.topk(k, dim=1, sorted=False).values.amin(dim=1).long()
            else:
                reach = products.amax(dim=1).sub_(half.amin(dim=0))
            best.add(*self._within(products, reach, a, b, mine, best.limit))
        return best.keys()

    def _within(
        self, products: torch.Tensor, reach: torch.Tensor, a: int, b: int, norms: torch.Tensor, limit: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows, ascending, and keys of the block's pictures whose squared distance is at most the row's limit."""
        import torch

        ends = torch.iinfo(reach.dtype)
        needed = (norms - limit).div(2, rounding_mode="floor").clamp(ends.min, ends.max).to(reach.dtype)
        row, group = _set(reach >= needed[:, None])
        members = torch.arange(GROUP, device=self._device) * reach.shape[1]
        squared = norms[row][:, None] + self._norms[a:b].view(GROUP, -1).T[group] - 2 * products[row, :, group].long()
        near = squared <= limit[row][:, None]
        which, member = _set(near)
        row, column = row[which], a + group[which] + members[member]
        return row, (squared[near] << self._index_bits) | self._index[column]


class _Best:
    """The smallest keys of each row so far. They're sorted when so many came that the limit may be lowered by much."""

    NOTHING = (1 << 62) + ((1 << 62) - 1)

    def __init__(self, rows: int, k: int, device: torch.device, index_bits: int) -> None:
        import torch

        self.k, self._index_bits, self._came = k, index_bits, 0
        self._held = torch.full((rows, 3 * k + 32), self.NOTHING, dtype=torch.int64, device=device)
        self._filled = torch.zeros(rows, dtype=torch.int64, device=device)
        self.limit = torch.full((rows,), FAR - 1, dtype=torch.int64, device=device)
        """(R,) int64: the squared distance that what is still of use doesn't exceed."""

    def add(self, row: torch.Tensor, key: torch.Tensor) -> None:
        """Rows, ascending, and a key of each."""
        import torch

        if not len(row):
            return
        counts = torch.bincount(row, minlength=len(self._held))
        if int((self._filled + counts).max()) > self._held.shape[1]:
            self._keep()
            if (room := self.k + int(counts.max())) > self._held.shape[1]:
                more = self._held.new_full((len(self._held), room - self._held.shape[1]), self.NOTHING)
                self._held = torch.cat([self._held, more], dim=1)
        within = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        self._held[row, self._filled[row] + within] = key
        self._filled += counts
        self._came += len(row)
        if self._came > 2 * self.k * len(self._held):
            self._keep()

    def _keep(self) -> None:
        best = self._held.topk(self.k, dim=1, largest=False, sorted=False).values
        self._held.fill_(self.NOTHING)
        self._held[:, : self.k] = best
        self._filled.clamp_(max=self.k)
        self._came = int(self._filled.sum())
        self.limit = self.limit.minimum(best.amax(dim=1) >> self._index_bits)

    def keys(self) -> torch.Tensor:
        """(R, k) int64, ascending."""
        return self._held.topk(self.k, dim=1, largest=False, sorted=True).values


def nearest_pictures(
    generated: np.ndarray, training: np.ndarray, k: int, device: str = "cpu", memory: int = MEMORY
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` training pictures nearest to each generation, by l2. Who has several chunks of generations prepares the
    training pictures once: ``TrainingPictures``.

    Args:
        generated: (G, H, W, 3) uint8.
        training: (N, H, W, 3) uint8, N at least 1.
        k: 1 or more.
        device: torch's name.
        memory: bytes for a block of products.

    Returns:
        (G, min(k, N)) int64, places in ``training``; (G, min(k, N)) float64, the root of the mean squared difference of pixels
        in [0, 1], ascending, equal ones by place.
    """
    return TrainingPictures(training, device, memory).nearest(generated, k)


def distinct(pictures: np.ndarray) -> np.ndarray:
    """For each of (N, H, W, 3) pictures the place of the first that is equal to it, byte by byte: (N,) int64.

    The paper counts identical training images once: a picture is its own representative where its place is its own.
    """
    first: dict[bytes, int] = {}
    found = (first.setdefault(hashlib.sha256(picture.tobytes()).digest(), place) for place, picture in enumerate(pictures))
    return np.fromiter(found, np.int64, len(pictures))


def adaptive_l2(l2: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """The distance to the nearest picture over ``alpha`` times the mean distance to the n next ones (paper, section 5.1).

    The paper doesn't say whether the n nearest hold the nearest itself; here they don't (docs/architecture.md).

    Args:
        l2: (G, n + 1), ascending, of distinct pictures: copies of one would fill the n nearest and hide it.
        alpha: over 0; the paper has 0.5, and n = 50.

    Returns:
        (G,) float64, extracted where it is at most 1; NaN where there is no other picture, or all are at distance 0 (several
        that aren't distinct): no rule then calls it.
    """
    _check_distances(l2)
    if l2.shape[1] < 2:
        return np.full(len(l2), np.nan)
    return _over(l2[:, 0], alpha * l2[:, 1:].mean(axis=1))


def nearest_ratio(l2: np.ndarray) -> np.ndarray:
    """The distance to the nearest picture over that to the second (Gu et al. 2023: memorised where it is under a third).

    Args:
        l2: (G, 2 or more), ascending, of distinct pictures.

    Returns:
        (G,) float64 in [0, 1]; NaN where there is no second, or both are at distance 0.
    """
    _check_distances(l2)
    return np.full(len(l2), np.nan) if l2.shape[1] < 2 else _over(l2[:, 0], l2[:, 1].astype(np.float64))


class Verdicts(NamedTuple):
    """What three rules call of each generation, (G,) bool each: copies of the nearest picture, or not."""

    l2: np.ndarray
    adaptive: np.ndarray
    ratio: np.ndarray


def verdicts(
    l2: np.ndarray, delta: float, *, alpha: float = ALPHA, adaptive: float = ADAPTIVE, ratio: float = RATIO
) -> Verdicts:
    """The rules side by side: l2 ≤ delta, adaptive l2 ≤ ``adaptive``, and the ratio < ``ratio``. NaN is called by none.

    Args:
        l2: (G, n + 1), ascending, of distinct pictures.
        delta: 0 to 1. The paper has no value for 32 × 32 pixels: plain l2 fails there, it says, and finds skies at 0.05.
        alpha, adaptive, ratio: as in ``adaptive_l2`` and ``nearest_ratio``.
    """
    return Verdicts(l2[:, 0] <= delta, adaptive_l2(l2, alpha) <= adaptive, nearest_ratio(l2) < ratio)


def _over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def _check(pictures: np.ndarray, what: str) -> None:
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3 or 0 in pictures.shape[1:]:
        raise ValueError(f"{what} are {pictures.dtype} of shape {pictures.shape}, expected uint8 (n, height, width, 3)")


def _check_distances(l2: np.ndarray) -> None:
    if l2.ndim != 2 or l2.shape[1] < 1:
        raise ValueError(f"distances have shape {l2.shape}, expected (generations, nearest)")


def _signed(pictures: np.ndarray) -> np.ndarray:
    """(n, H, W, 3) uint8 → (n, H · W · 3) int8: less 128, which moves all of them alike and changes no difference."""
    return np.bitwise_xor(pictures, np.uint8(128)).reshape(len(pictures), int(np.prod(pictures.shape[1:]))).view(np.int8)


def _squared_norms(signed: np.ndarray) -> np.ndarray:
    """(n, d) int8 → (n,) int64, exact."""
    found = np.empty(len(signed), np.int64)
    for start in range(0, len(signed), 256):
        wide = signed[start : start + 256].astype(np.float64)
        # Sums of whole numbers under 2⁵³.
        found[start : start + 256] = np.einsum("ij,ij->i", wide, wide)
    return found


def _set(marks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows, ascending, and columns of the marks that are set. Numpy finds few among many faster than torch does."""
    import torch

    if marks.device.type != "cpu":
        row, column = marks.nonzero(as_tuple=True)
        return row, column
    places = np.flatnonzero(marks.numpy())
    return torch.from_numpy(places // marks.shape[1]), torch.from_numpy(places % marks.shape[1])


def _products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The products of all pairs of rows of (R, d) and (C, d) int8, without any rounding: (R, C) int32, int64 where d > 2¹⁶."""
    import torch

    bytes_are_fast = a.device.type == "cpu" and _multiplies_bytes()
    strip = BYTE_STRIP - 1 if bytes_are_fast else FLOAT_STRIP
    # Half of that, so that half a norm can be taken off.
    kind = torch.int32 if a.shape[1] <= BYTE_STRIP // 2 else torch.int64
    products: torch.Tensor | None = None
    for start in range(0, a.shape[1], strip):
        mine, other = a[:, start : start + strip], b[:, start : start + strip]
        if bytes_are_fast:
            part = torch._int_mm(mine.contiguous(), other.contiguous().T).to(kind)
        else:
            # Integers below 256 stay what they are in TensorFloat-32 and bfloat16 too, should the process allow those.
            part = (mine.float() @ other.float().T).to(kind)
        products = part if products is None else products.add_(part)
    assert products is not None
    return products
