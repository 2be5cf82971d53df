"""The corpus is made once, and again whenever it would come out otherwise."""

import os

from demo import corpus


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
