"""Identities depend on what a thing is, and on nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from transforms.store import identity


def test_borders_between_parts_count():
    assert identity.digest("ab", "c") != identity.digest("a", "bc")
    assert identity.digest(None) != identity.digest("None")


def test_ids_are_pinned():
    """A change of these would orphan every lake there is."""
    assert identity.sample_id("http://a/b.png", "A logo", 0) == "eed1067c310a85022f208b1e70c58491"
    assert identity.prompt_id("t", "list", None) == "5b8dce56d82e2332f698dec33cfd2577"
    assert identity.seed(0, "p", 0) == 4159747769636582585


@given(st.text(), st.text(), st.integers(0, 5))
def test_sample_ids_tell_rows_apart(url, caption, occurrence):
    one = identity.sample_id(url, caption, occurrence)
    assert len(one) == 32
    assert one == identity.sample_id(url, caption, occurrence)
    assert one != identity.sample_id(url, caption, occurrence + 1)
    assert one != identity.sample_id(url + "x", caption, occurrence)


def test_lone_surrogates_have_an_identity():
    assert identity.sample_id("u", "\ud800", 0) != identity.sample_id("u", "\ud801", 0)


def test_seeds_fit_torch_and_differ():
    seeds = {identity.seed(base, prompt, index) for base in (0, 1) for prompt in ("a", "b") for index in range(500)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_unit_interval_is_uniform():
    values = [identity.unit_interval("slice", str(i)) for i in range(4000)]
    assert min(values) >= 0 and max(values) < 1
    assert abs(sum(value < 0.25 for value in values) / 4000 - 0.25) < 0.03
