"""Which split of a data set a path names."""

import pytest

from transforms.data.survey import split_named


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/test-00001-of-00002.parquet", "test"),
        ("extra-00000-of-00001.parquet", "extra"),
        ("test/data-00000-of-00004.parquet", "test"),
        ("coco-test-00000-of-00004.parquet", "test"),
        ("train/validation_of_tickets.tar", "train"),
        ("train/test-tube.jpg", "train"),
        ("set/split=dev/part-0.parquet", "validation"),
        ("laion.test.parquet", "test"),
        ("v1.0-test-0001.tar", "test"),
        ("kept back/part-0.parquet", "kept back"),
        ("kept back.csv.gz", "kept back"),
        ("Kept-00000-of-00001.parquet", "Kept"),
        ("latest/contest.parquet", ""),
    ],
)
def test_the_split_that_a_path_names(path, split):
    assert split_named(path, ("kept back",)) == split


def test_a_shard_of_a_split_that_is_asked_for_is_of_it_wherever_it_lies():
    assert split_named("train/kept-00000-of-00001.parquet", ("Kept",)) == "Kept"
    assert split_named("train/kept-00000-of-00001.parquet") == "train"
