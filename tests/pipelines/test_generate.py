"""What ``eidetic generate`` says of the prompts that it draws. What it makes of them: tests/test_demo.py."""

from pipelines import generate
from pipelines.device import DeviceOptions
from pipelines.generate import GenerateOptions
from pipelines.stage import Execution
from tests.fakes import fake_lake
from tests.models import save_random_pipeline


def test_fewer_prompts_than_strata_are_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(generate, "say", said.append)
    save_random_pipeline(str(tmp_path / "model"))
    fake = fake_lake(tmp_path / "lake", sizes=(4, 2, 1, 1, 1), controls=0)
    for prompts, told in ((2, 1), (3, 0)):
        said.clear()
        options = GenerateOptions(model=str(tmp_path / "model"), images_per_prompt=1, steps=1, max_prompts=prompts)
        generate.run(Execution(fake.lake, []), options, DeviceOptions(device="cpu"), fake.deduplicate)
        assert sum("nothing of the 3 groups that are duplicated least" in line for line in said) == told
