"""What an audit takes in of the test models' corpora is what the models were trained on, bit for bit."""

import collections

import numpy as np
import pytest

from demo import photographs
from demo.embedded import build, examples
from demo.serve import serving
from pipelines import cli
from tests.servers import free_port
from transforms.store.lake import Lake
from transforms.store.pictures import decode

SIDES = {"half_learned": 64, "photographs": 32}


@pytest.mark.parametrize("name", SIDES)
def test_an_ingest_gives_each_copy_as_it_was_trained_on(name, tmp_path):
    if name == "photographs" and not photographs.DATA.exists():
        pytest.skip("CIFAR-10 is not there (../shared/data)")
    port, site = free_port(), tmp_path / "site"
    build(name, site, f"http://127.0.0.1:{port}", scale=0.02)
    words = [
        "ingest", f"--lake={tmp_path}/lake", f"--metadata={site}/metadata.parquet", f"--controls={site}/controls.parquet",
        f"--image_size={SIDES[name]}", "--encode_format=png", "--allow_private_hosts",
    ]  # fmt: skip
    with serving(site, port):
        assert cli.main(words) == 0
    lake = Lake(f"{tmp_path}/lake")
    snapshot = lake.latest("ingest").snapshot_id
    samples = {row["sample_id"]: row for row in lake.read("samples", snapshot).to_pylist()}
    assert {row["status"] for row in samples.values()} == {"success"}
    by_key = {example.key: example for part in examples(name) for example in part}
    keys = {sample: row["url"].split("/")[-1].split(".png?c=")[0] for sample, row in samples.items()}
    for row in lake.read("images", snapshot, ["sample_id", "image"]).to_pylist():
        example = by_key[keys[row["sample_id"]]]
        assert samples[row["sample_id"]]["caption"] == example.caption
        assert (np.asarray(decode(row["image"])) == example.picture).all()
    copies = collections.Counter(keys.values())
    assert all(number == max(1, by_key[key].copies) for key, number in copies.items()) and max(copies.values()) >= 32
    assert sum(row["role"] == "control" for row in samples.values()) == sum(by_key[key].copies == 0 for key in copies)


def test_a_model_that_is_not_there():
    with pytest.raises(ValueError, match="no embedded model is called"):
        examples("clip")
