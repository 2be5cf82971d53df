"""Pairs that meet in cells, against brute force in float64; how the pairs are found must not change which."""

import numpy as np
import pytest

from tests.planted import clusters
from transforms.kernels import cells as cells_module
from transforms.kernels.cells import (
    NOWHERE,
    Known,
    Spread,
    choose,
    first_common,
    made_up,
    meet,
    needed_margins,
    pairs_in_cells,
    principal_basis,
    sketch,
    train,
)

THRESHOLD = 0.9


def planted(seed=0, dimensions=64):
    vectors, _ = clusters([1] * 300 + [2] * 100 + [7] * 30 + [60], dimensions, noise=0.04, seed=seed)
    return vectors


def brute_force(vectors, threshold=THRESHOLD):
    wide = vectors.astype(np.float64)
    i, j = np.nonzero(np.triu(wide @ wide.T > threshold, 1))
    return set(zip(i.tolist(), j.tolist(), strict=True))


def one_cell(vectors, threshold=THRESHOLD):
    basis = principal_basis(vectors, threshold)
    return Spread(vectors, sketch(vectors, basis), np.zeros((len(vectors), 1), np.int32))


def found(first, second, same=True, **options):
    pairs = [(i, j) for portion in pairs_in_cells(first, second, THRESHOLD, same, **options)
             for i, j in zip(portion.i.tolist(), portion.j.tolist(), strict=True)]  # fmt: skip
    assert len(pairs) == len(set(pairs)) and pairs == sorted(pairs)
    return set(pairs)


def test_a_sketch_bounds_the_cosine_from_above():
    vectors = planted()
    sketches = sketch(vectors, principal_basis(vectors, THRESHOLD))
    wide = vectors.astype(np.float64)
    assert (sketches.astype(np.float64) @ sketches.T.astype(np.float64) >= wide @ wide.T - 1e-6).all()
    np.testing.assert_allclose(np.linalg.norm(sketches, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"threads": 1}, {"at_once": 1}, {"at_once": 5000}])
def test_vectors_of_one_cell_are_compared_as_by_brute_force(options):
    vectors = planted()
    block = one_cell(vectors)
    assert found(block, block, **options) == brute_force(vectors)


def test_two_blocks_hold_the_pairs_of_the_whole():
    vectors = planted()
    n = len(vectors) // 3
    whole = one_cell(vectors)
    first, second = (
        Spread(whole.vectors[part], whole.sketches[part], whole.cells[part]) for part in (slice(n), slice(n, None))
    )
    across = {(i, j + n) for i, j in found(first, second, same=False)}
    inside = found(first, first) | {(i + n, j + n) for i, j in found(second, second)}
    assert across | inside == brute_force(vectors)
    assert not across & inside


def test_what_meets_in_no_cell_is_lost_and_nothing_else():
    vectors = planted()
    quantiser = train(vectors, principal_basis(vectors, THRESHOLD), 20, seed=1)
    sketches = sketch(vectors, quantiser.basis)
    cells = quantiser.assign(sketches, 2, np.inf)
    expected = {(i, j) for i, j in brute_force(vectors) if set(cells[i]) & set(cells[j])}
    assert found(Spread(vectors, sketches, cells), Spread(vectors, sketches, cells)) == expected


def test_cells_are_the_nearest_first():
    vectors = planted()
    quantiser = train(vectors, principal_basis(vectors, THRESHOLD), 12, seed=1)
    sketches = sketch(vectors, quantiser.basis)
    few, more = quantiser.assign(sketches, 2, np.inf), quantiser.assign(sketches, 4, np.inf)
    np.testing.assert_array_equal(few, more[:, :2])
    nearness = np.take_along_axis(sketches[:, :-1] @ quantiser.fine.T, more, axis=1)
    assert (np.diff(nearness, axis=1) <= 1e-6).all()


@pytest.mark.parametrize("direct", [0, 1 << 20])
def test_a_margin_leaves_out_cells_that_are_farther(direct, monkeypatch):
    monkeypatch.setattr(cells_module, "DIRECT", direct)
    vectors = planted()
    quantiser = train(vectors, principal_basis(vectors, THRESHOLD), 40, seed=1)
    sketches = sketch(vectors, quantiser.basis)
    cells, farther = quantiser.nearest(sketches, 6)
    directions = sketches[:, :-1] / np.linalg.norm(sketches[:, :-1], axis=1, keepdims=True)
    angle = np.arccos(np.clip(np.take_along_axis(directions @ quantiser.fine.T, cells, axis=1), -1, 1))
    np.testing.assert_allclose(farther, angle - angle[:, :1], atol=2e-3)
    margin = float(np.median(farther[:, 2]))
    kept = quantiser.assign(sketches, 6, margin)
    np.testing.assert_array_equal(kept, np.where(farther <= margin, cells, -1))
    assert 0 < (kept < 0).mean() < 1 and (kept[:, 0] >= 0).all()


def test_the_needed_margin_is_where_two_vectors_begin_to_meet():
    vectors = planted()
    quantiser = train(vectors, principal_basis(vectors, THRESHOLD), 40, seed=1)
    sketches = sketch(vectors, quantiser.basis)
    one, other = sketches[:200], sketches[200:400]
    needed = needed_margins(quantiser.nearest(one, 5), quantiser.nearest(other, 5), 5)
    for assignments in (1, 3, 5):
        for margin in (0.0, 0.2, 0.7, 3.0):
            cells = [quantiser.assign(side, assignments, margin) for side in (one, other)]
            np.testing.assert_array_equal(meet(*cells), needed[assignments - 1] <= margin)


def test_shards_cut_the_cells_and_keep_neighbours_together():
    vectors = planted()
    quantiser = train(vectors, principal_basis(vectors, THRESHOLD), 64, seed=1)
    shards = quantiser.shards(4)
    assert shards.shape == (quantiser.cells,) and set(shards) == {0, 1, 2, 3}
    sizes = np.bincount(shards)
    assert sizes.max() < 3 * sizes.min()
    for start, end in zip(quantiser.starts, quantiser.starts[1:], strict=False):
        assert len(set(shards[start:end])) == 1
    assert set(quantiser.shards(1)) == {0}


@pytest.mark.parametrize("recall", [0.9, 0.99])
def test_the_choice_reaches_its_recall_on_pairs_that_it_has_not_seen(recall, monkeypatch):
    monkeypatch.setattr(cells_module, "EACH_ASSIGNMENT", 0)  # for so few vectors cells don't pay
    vectors, _ = clusters([1] * 2000 + [3] * 1000 + [9] * 200, 48, noise=0.05, seed=3)
    pairs = np.array(sorted(brute_force(vectors)))
    shuffled = np.random.default_rng(0).permutation(len(pairs))
    seen, unseen = pairs[shuffled[:2000]], pairs[shuffled[2000:]]
    basis = principal_basis(vectors, THRESHOLD)
    known = Known(vectors[seen[:, 0]], vectors[seen[:, 1]], seen[:, 0], np.ones(len(seen)))
    choice = choose(vectors, basis, len(vectors), known, THRESHOLD, recall, seed=1)
    assert choice.quantiser is not None and choice.recall >= recall
    cells = choice.quantiser.assign(sketch(vectors, basis), choice.assignments, choice.margin)
    met = meet(cells[unseen[:, 0]], cells[unseen[:, 1]])
    assert met.mean() >= recall - 0.01
    # Of the images that have a duplicate, as many keep one.
    images = np.unique(unseen[:, 0])
    assert np.isin(images, unseen[met, 0]).mean() >= recall - 0.01


def test_without_a_known_pair_some_are_made_up():
    vectors = planted()
    one, other, *_ = made_up(vectors, 0.95, seed=0)
    np.testing.assert_allclose(np.einsum("nd,nd->n", one, other), 0.95, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(other, axis=1), 1, atol=1e-5)
    assert choose(vectors, principal_basis(vectors, THRESHOLD), len(vectors), None, THRESHOLD, 0.9, seed=1).recall >= 0.9


def test_few_vectors_are_compared_all():
    vectors = planted()[:20]
    assert choose(vectors, principal_basis(vectors, THRESHOLD), 20, None, THRESHOLD, 0.9, seed=1).quantiser is None


def test_which_lists_have_a_cell_in_common():
    one, other = np.array([[5, 2], [1, -1], [3, 4]]), np.array([[2, 5], [-1, 7], [4, 9]])
    assert meet(one, other).tolist() == [True, False, True]
    assert first_common(one, other).tolist() == [2, NOWHERE, 4]
