"""The verbs that run models, on one device and on two: the same tables."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from pipelines import cli
from tests.lakes import differences
from tests.models import save_random_pipeline
from tests.planted import picture
from transforms.models.devices import processes_with_room
from transforms.models.processes import _Process
from transforms.store.files import list_files
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png

CLIP = Path(__file__).resolve().parents[2] / "demo" / "models" / "clip"
PICTURES, CONTROLS = 24, 6


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of captioned pictures and of controls, and a model."""
    folder = tmp_path_factory.mktemp("devices")
    save_random_pipeline(str(folder / "model"))
    for role, first, many in (("training", 0, PICTURES), ("controls", PICTURES, CONTROLS)):
        (folder / role).mkdir()
        for number in range(first, first + many):
            (folder / role / f"{number}.png").write_bytes(encode_png(picture(number, 32, 32)))
            (folder / role / f"{number}.txt").write_text(f"picture {number}")
    return folder


def audit(inputs, lake, device):
    words = [
        "audit", f"--lake={lake.root}", f"--metadata={inputs}/training", "--source=folder", f"--controls={inputs}/controls",
        "--image_size=32", "--rows_per_part=10", f"--clip_model={CLIP}", f"--model={inputs}/model", "--images_per_prompt=4",
        "--images_per_control=2", "--steps=2", "--batch_size=4", "--clique_size=2", "--unflagged_fraction=0.5",
        "--copy_l2=0.4", "--delta=0.4", f"--device={device}",
    ]  # fmt: skip
    assert cli.main(words) == 0


def test_two_devices_give_the_tables_of_one_though_a_process_is_killed(inputs, tmp_path, monkeypatch):
    """It is killed while it makes pictures."""
    one, two, taken, killed = Lake(str(tmp_path / "one")), Lake(str(tmp_path / "two")), [], []
    audit(inputs, one, "cpu")
    take = _Process.take
    monkeypatch.setattr(_Process, "take", classmethod(lambda cls, threads: taken.append(threads) or take(threads)))

    def kill():
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            for audit in Path(two.root).glob("work/generate/*"):
                if list_files(f"{audit}/prompts", ".parquet"):
                    killed.append(multiprocessing.active_children()[0].pid)
                    os.kill(killed[0], signal.SIGKILL)
                    return
            time.sleep(0.01)

    watcher = threading.Thread(target=kill)
    watcher.start()
    audit(inputs, two, "cpu,cpu")
    watcher.join()
    _Process.end_idle()
    assert killed and not multiprocessing.active_children()
    assert differences(one, two) == []
    # Two for each step that runs a model (the vectors of the images, the pictures, their vectors), and all cores for others:
    # downloads, pairs, the gathering of pictures, and their comparison. Another one may come for the one that was killed.
    assert len(taken) - 6 - 4 * processes_with_room() in (0, 1)
