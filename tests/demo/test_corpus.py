"""The corpus is made once, and again whenever it would come out otherwise."""

import collections
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from demo import corpus
from transforms.store.pictures import decode


def test_a_corpus_that_is_there_is_left_alone_and_another_one_is_not(tmp_path):
    corpus.build(tmp_path, "http://127.0.0.1:1", scale=0.005)
    before = os.stat(tmp_path / "metadata.parquet").st_mtime_ns
    corpus.build(tmp_path, "http://127.0.0.1:1", scale=0.005)
    assert os.stat(tmp_path / "metadata.parquet").st_mtime_ns == before
    content = (tmp_path / "metadata.parquet").read_bytes()
    corpus.build(tmp_path, "http://127.0.0.1:2", scale=0.005)
    assert (tmp_path / "metadata.parquet").read_bytes() != content


def test_a_corpus_whose_making_was_cut_short_is_made_again(tmp_path):
    corpus.build(tmp_path, "http://127.0.0.1:1", scale=0.005)
    (tmp_path / "corpus.json").unlink()
    pictures = sorted((tmp_path / "pictures").iterdir())
    pictures[0].unlink()
    corpus.build(tmp_path, "http://127.0.0.1:1", scale=0.005)
    assert sorted((tmp_path / "pictures").iterdir()) == pictures


def test_half_learned_has_the_most_repeated_logos_and_none_that_is_a_control():
    whole, controls = corpus.split()
    trained, held_out = corpus.half_learned_split()
    assert collections.Counter(copies for _, copies in trained) == corpus.HALF_LEARNED_PLAN
    assert [logo for logo, _ in trained] == [logo for logo, _ in whole[: len(trained)]] and held_out == controls
    small, few = corpus.half_learned_split(0.1)
    assert set(small) <= set(trained) and len(few) == 40


def test_the_site_of_exact_repeats_has_a_url_for_each_copy(tmp_path):
    corpus.build(tmp_path, "http://127.0.0.1:1", scale=0.05, plan="half_learned")
    truth = pq.read_table(tmp_path / "truth.parquet").to_pylist()
    rows = pq.read_table(tmp_path / "metadata.parquet").to_pylist()
    assert len({row["URL"] for row in rows}) == len(rows)
    counted = collections.Counter(row["slug"] for row in truth if row["copies"])
    trained, controls = corpus.half_learned_split(0.05)
    assert counted == {logo.slug: copies for logo, copies in trained}
    assert [row["TEXT"] for row in pq.read_table(tmp_path / "controls.parquet").to_pylist()] == [c.caption for c in controls]
    logo = trained[0][0]
    stored = np.asarray(decode((tmp_path / "pictures" / f"{logo.slug}.png").read_bytes()))
    assert (stored == np.asarray(corpus.draw(logo, corpus.MODEL_SIZE))).all()
    with pytest.raises(ValueError, match="no corpus of logos"):
        corpus.build(tmp_path, "http://127.0.0.1:1", plan="photographs")


def test_the_logos_are_those_that_would_be_chosen_anew():
    assert corpus.logos() == corpus.choose_logos()


def test_a_logo_that_is_not_there_is_said(tmp_path, monkeypatch):
    (tmp_path / "logos.txt").write_text("\n".join(["github", "a_logo_of_nobody"]))
    monkeypatch.setattr(corpus, "CHOSEN", tmp_path / "logos.txt")
    corpus.logos.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"lacks 'a_logo_of_nobody', which logos.txt has; install the version"):
            corpus.logos()
    finally:
        corpus.logos.cache_clear()


def test_another_list_of_logos_is_another_corpus(tmp_path, monkeypatch):
    corpus.build(tmp_path, "http://127.0.0.1:1", scale=0.005)
    made = (tmp_path / "corpus.json").read_text()
    (tmp_path / "logos.txt").write_text("\n".join(reversed(corpus.CHOSEN.read_text().split())))
    monkeypatch.setattr(corpus, "CHOSEN", tmp_path / "logos.txt")
    corpus.build(tmp_path, "http://127.0.0.1:1", scale=0.005)
    assert (tmp_path / "corpus.json").read_text() != made
