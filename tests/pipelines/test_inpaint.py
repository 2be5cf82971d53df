"""The verb inpaint: who is asked for what, RePaint itself, and that members are made again better."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import inpaint
from pipelines.cli import run_verb
from pipelines.device import DeviceOptions
from pipelines.execution import Execution
from pipelines.inpaint import InpaintOptions
from pipelines.options import Parsed
from tests.pipelines.test_train import but_for_time, data, lake, rows, sweep, trained  # noqa: F401  # fixtures
from tests.planted import picture
from transforms.attacks import inpainting
from transforms.models import unconditional
from transforms.models.configuration import Configuration, TrainingSet
from transforms.models.training import begin
from transforms.store.pictures import decode_array

HOW = inpainting.Inpainting(
    targets=2, inpaintings=6, kept=2, timestep=100, draws=2, steps=10, jump_length=2, jumps=2, base_seed=0
)

HALVES = """
[[grid]]
steps = 4
width = 8
batch_size = 4
images = 6
pool = 12
split = [0, 1, 2, 3]
"""


def learned(numbers, steps=300):
    """A model of these pictures."""
    pictures = np.stack([picture(number, 8, 8) for number in numbers])
    configuration = Configuration(images=len(numbers), width=16, batch_size=8, learning_rate=3e-3, ema=0.95)
    made = begin(configuration, TrainingSet(pictures, np.ones(len(numbers), np.int64)), "cpu")
    for _ in range(steps):
        made.advance()
    return unconditional.load(made.files().get, "it", "cpu")


def inpainted(lake, **options):  # noqa: F811
    usual = {"targets": 3, "inpaintings": 4, "kept": 2, "repaint_steps": 4, "jump_length": 1, "jumps": 1}
    parsed = Parsed.of(InpaintOptions(**(usual | options)), DeviceOptions(device="cpu"))
    return inpaint.STAGE.run(Execution(lake, []), parsed)


def test_the_right_half_stays_and_noise_depends_on_the_target_alone():
    model = learned([1], steps=2)
    target = unconditional.as_numbers(picture(5, 8, 8)[None])
    made, evaluations = inpainting.inpaint(model, target, "a", HOW)
    assert made.shape == (6, 3, 8, 8) and evaluations % 6 == 0 and evaluations > 6 * 10
    assert torch.equal(made[..., 4:], target[..., 4:].expand(6, -1, -1, -1))
    assert not torch.equal(made[0], made[1])
    few, _ = inpainting.inpaint(model, target, "a", dataclasses.replace(HOW, inpaintings=2))
    assert torch.allclose(few, made[:2], atol=1e-4)
    other, _ = inpainting.inpaint(model, target, "b", HOW)
    assert not torch.allclose(other[0], made[0], atol=1e-2)


def test_a_member_is_made_again_and_a_stranger_is_not():
    members, others = [1, 2, 3], [11, 12, 13]
    model, shadow = learned(members), learned(others)
    how = dataclasses.replace(HOW, inpaintings=16, kept=4, steps=20)
    inside = inpainting.attack(model, shadow, picture(1, 8, 8), "one", how)
    outside = inpainting.attack(shadow, learned([21, 22, 23]), picture(1, 8, 8), "one", how)
    assert inside["kept_l2"] < 0.12 < 2 * inside["kept_l2"] + 0.1 < outside["kept_l2"] + 0.12
    assert inside["kept_l2"] < outside["kept_l2"] / 1.5
    assert inside["nearest_l2"] <= inside["kept_l2"] and inside["kept"] == 4 and inside["inpaintings"] == 16
    assert decode_array(inside["image"]).shape == (8, 8, 3)


def test_each_target_goes_to_one_that_saw_it_and_one_that_did_not_and_a_third_judges(lake, tmp_path):  # noqa: F811
    made = trained(lake, sweep(tmp_path, HALVES + '[[model]]\nfamily = "gan"\nsteps = 1\nwidth = 8\nimages = 4\n'))
    saw = {}
    run_of = {row["model_id"]: row["run_id"] for row in rows(lake, "models", made)}
    for row in rows(lake, "model_members", made):
        saw.setdefault(row["run_id"], set()).add(row["sample_id"])
    found = rows(lake, "inpaintings", manifest := inpainted(lake))
    assert len(found) == 6 and {row["status"] for row in found} == {"success"}
    for sample in {row["sample_id"] for row in found}:
        pair = [row for row in found if row["sample_id"] == sample]
        assert sorted(row["member"] for row in pair) == [False, True]
        for row in pair:
            assert (sample in saw[run_of[row["model_id"]]]) == row["member"]
            assert sample not in saw[run_of[row["shadow_model_id"]]]
            assert row["shadow_model_id"] not in {one["model_id"] for one in pair}
    assert inpainted(lake) == manifest


def test_a_killed_inpaint_asks_no_model_twice(lake, tmp_path, monkeypatch):  # noqa: F811
    trained(lake, sweep(tmp_path, HALVES))
    asked = []
    real = inpainting.Inpaint._rows

    def killed(self, job):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(job.model["model_id"])
        return real(self, job)

    monkeypatch.setattr(inpainting.Inpaint, "_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        inpainted(lake, targets=6)
    monkeypatch.setattr(
        inpainting.Inpaint, "_rows", lambda self, job: (asked.append(job.model["model_id"]), real(self, job))[1]
    )
    manifest = inpainted(lake, targets=6)
    assert len(asked) == len(set(asked))
    assert len({(row["model_id"], row["sample_id"]) for row in rows(lake, "inpaintings", manifest)}) == 12
    assert but_for_time(rows(lake, "inpaintings", manifest))
    assert not list((Path(lake.root) / "work" / "inpaint").glob("*/*"))


def test_where_no_cohort_has_three_models_it_says_so(lake, tmp_path, monkeypatch):  # noqa: F811
    trained(lake, sweep(tmp_path, "[[model]]\nimages = 4\nsteps = 1\nwidth = 8"))
    said = []
    monkeypatch.setattr(inpaint, "say", said.append)
    assert inpainted(lake).rows == {"inpaintings": 0}
    assert "no cohort has three models" in said[0]


def test_without_models_it_is_one_line(lake, capfd):  # noqa: F811
    assert run_verb(inpaint.main, [f"--lake={lake.root}"]) == 2
    assert "has no complete 'train' yet; run 'eidetic train' first" in capfd.readouterr().err
