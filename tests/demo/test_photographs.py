"""The corpus of photographs: chosen by hash, with captions that mostly name one picture, and served as an audit reads it."""

import collections

import numpy as np
import pyarrow.parquet as pq
import pytest

from demo import photographs
from transforms.kernels.distances import l2
from transforms.store.pictures import decode

pytestmark = pytest.mark.skipif(not photographs.DATA.exists(), reason="CIFAR-10 is not there (../shared/data)")


def test_the_plan_is_kept_and_no_two_pictures_are_near():
    trained, controls = photographs.split()
    assert collections.Counter(example.copies for example in trained) == photographs.COPIES_PLAN
    assert len(controls) == photographs.CONTROLS and {example.copies for example in controls} == {0}
    pictures = np.stack([example.picture for example in [*trained, *controls]])
    assert pictures.shape[1:] == (32, 32, 3) and len({example.key for example in [*trained, *controls]}) == len(pictures)
    for place in range(1, len(pictures)):
        allowed = photographs.NEAREST_TRAINED if place < len(trained) else photographs.NEAREST_CONTROL
        assert l2(pictures[:place], pictures[place]).min() > allowed


def test_captions_name_one_picture_but_for_those_that_say_the_class():
    trained, controls = photographs.split()
    captions = collections.Counter(example.caption for example in trained)
    shared = [example for example in trained if captions[example.caption] > 1]
    assert collections.Counter(captions.values()) == {1: len(trained) - 12, 3: photographs.TRIPLES}
    assert all("," not in example.caption and example.copies >= 8 for example in shared)
    assert sum("," not in example.caption for example in controls) == photographs.CONTROLS_BY_CLASS
    assert {example.caption for example in controls} & {example.caption for example in shared}
    words = [word for caption in {e.caption for e in [*trained, *controls]} if "," in caption for word in caption.split()[-2:]]
    assert len(set(words)) == len(words)


def test_a_picture_for_the_autoencoder_is_in_neither_half():
    trained, controls = photographs.split()
    known = {example.picture.tobytes() for example in [*trained, *controls]}
    others = photographs.others(50)
    assert others.shape == (50, 32, 32, 3) and not known & {picture.tobytes() for picture in others}


def test_the_site_holds_a_row_for_each_copy_and_small_ones_keep_the_triples(tmp_path):
    photographs.build(tmp_path, "http://127.0.0.1:1", scale=0.1)
    truth = pq.read_table(tmp_path / "truth.parquet").to_pylist()
    rows = pq.read_table(tmp_path / "metadata.parquet").to_pylist()
    controls = pq.read_table(tmp_path / "controls.parquet").to_pylist()
    assert len(controls) == 15 and any("," not in row["TEXT"] for row in controls)
    assert len({row["URL"] for row in rows}) == len(rows) and "slug" not in rows[0]
    copies = collections.Counter(row["slug"] for row in truth if row["copies"])
    assert all(copies[row["slug"]] == row["copies"] for row in truth if row["copies"])
    captions = {row["slug"]: row["TEXT"] for row in truth if row["copies"]}
    assert collections.Counter(collections.Counter(captions.values()).values())[3] == photographs.TRIPLES
    by_key = {example.key: example for example in photographs.split()[0]}
    for key in captions:
        assert (np.asarray(decode((tmp_path / "pictures" / f"{key}.png").read_bytes())) == by_key[key].picture).all()
    before = (tmp_path / "metadata.parquet").stat().st_mtime_ns
    photographs.build(tmp_path, "http://127.0.0.1:1", scale=0.1)
    assert (tmp_path / "metadata.parquet").stat().st_mtime_ns == before
