"""A small audit that the faults of this folder happen to: pictures, controls and finished generations in folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from pipelines import audit
from pipelines.cli import run_verb
from tests.faults.traces import rows
from tests.models import save_random_pipeline
from tests.planted import picture
from transforms.store.lake import Lake
from transforms.store.pictures import encode_png

CLIP = Path(__file__).resolve().parents[2] / "demo" / "models" / "clip"
PICTURES, CONTROLS, SIDE = 6, 12, 32


@dataclasses.dataclass(frozen=True)
class World:
    """What an audit is of."""

    folder: Path

    @classmethod
    def build(cls, folder: Path) -> World:
        """Pictures of which the first has a copy and comes back; controls that don't."""
        lines = []
        for kind, many in (("pictures", PICTURES), ("controls", CONTROLS)):
            (folder / kind).mkdir()
            for number in range(many):
                pixels = picture(number if kind == "pictures" else 200 + number, SIDE, SIDE)
                # The last picture is the first again, under another caption.
                pixels = picture(0, SIDE, SIDE) if (kind, number) == ("pictures", PICTURES - 1) else pixels
                caption = f"one of the {kind}, number {number} of several"
                (folder / kind / f"{number:02d}.png").write_bytes(encode_png(pixels))
                (folder / kind / f"{number:02d}.txt").write_text(caption)
                for index in range(2):
                    # Near copies of what was trained on; of controls something else.
                    made = pixels if kind == "pictures" else picture(400 + number, SIDE, SIDE)
                    noise = np.random.default_rng(index).integers(-2, 3, made.shape)
                    name = f"{kind}-{number}-{index}.png"
                    (folder / "generations").mkdir(exist_ok=True)
                    (folder / "generations" / name).write_bytes(
                        encode_png((made.astype(int) + noise).clip(0, 255).astype(np.uint8))
                    )
                    lines.append(json.dumps({"file_name": name, "prompt": caption}))
        (folder / "generations" / "metadata.jsonl").write_text("\n".join(lines))
        save_random_pipeline(str(folder / "model"))
        return cls(folder)

    def _both(self, lake: Lake) -> list[str]:
        return [
            f"--lake={lake.root}",
            f"--metadata={self.folder}/pictures",
            f"--controls={self.folder}/controls",
            "--source=folder",
            f"--image_size={SIDE}",
            "--encode_format=png",
            "--rows_per_part=4",
            f"--clip_model={CLIP}",
            "--device=cpu",
            "--keep=all",
            "--clique_size=2",
            "--max_false_positive_rate=0.3",
        ]

    def words(self, lake: Lake) -> list[str]:
        """Of ``eidetic audit``."""
        return [*self._both(lake), f"--generations={self.folder}/generations"]

    def night(self, lake: Lake) -> list[str]:
        """Of ``eidetic nightly``: finished generations can't be asked anew, so it is of an untrained model."""
        return [
            *self._both(lake),
            f"--model={self.folder}/model",
            "--date=2026-01-01",
            "--budget=80",
            "--images_per_prompt=4",
            "--images_per_control=1",
            "--steps=2",
        ]

    def forgetting(self, lake: Lake) -> list[str]:
        """Of ``eidetic forget``: the picture that has a copy, and comes back."""
        (path,) = (row["url"] for row in rows(lake, "samples") if row["role"] == "training" and row["url"].endswith("00.png"))
        return [f"--lake={lake.root}", f"--urls={path}", "--reason=asked for"]

    def audit(self, lake: Lake) -> int:
        """Runs it in this process; its exit code."""
        return run_verb(audit.main, self.words(lake))
