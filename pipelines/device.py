"""The device that models run on: an option that ``embed``, ``generate`` and ``match`` share."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import sys
from typing import TYPE_CHECKING

from pipelines.options import Options, option
from transforms.errors import UserError
from transforms.models.devices import processes_with_room

if TYPE_CHECKING:
    from transforms.models.processes import Devices


@dataclasses.dataclass(frozen=True)
class DeviceOptions(Options):
    """Device: where the models run."""

    device: str = option(
        "auto",
        "auto (a GPU if this machine has one), cpu, cuda, one of several such as cuda:1; all (every GPU; without one, every "
        "core that has 2 GiB of memory), or a list such as cuda:0,cuda:2 or cpu,cpu: a process for each",
    )
    accelerator: str = option(
        "type:nvidia-tesla-t4;count:1;install-nvidia-driver",
        "the GPU that a distributed runner is asked for where --device is cuda, as a Beam resource hint",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"auto|all|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*", self.device):
            raise UserError(
                f"--device is {self.device!r}, expected auto, all, cpu, cuda, one such as cuda:1, or several with commas"
            )

    def resolved(self) -> str:
        """cpu, cuda or cuda:1: what the model's worker is told; of several the first one.

        ``auto`` looks at the machine that the command runs on. A GPU that was asked for by name is not looked for here
        but where the model is loaded, which is another machine on a distributed runner; it is an error there.
        """
        return self.all_of_them()[0]

    def all_of_them(self) -> list[str]:
        """The devices that work at the same time, a process each where there are several."""
        if self.device not in ("auto", "all"):
            return self.device.split(",")
        there = _gpus()
        if self.device == "auto":
            return ["cuda"] if there else ["cpu"]
        if there:
            return [f"cuda:{number}" for number in range(there)]
        return ["cpu"] * processes_with_room()

    def hint(self) -> str | None:
        """What to ask a distributed runner for; None unless a GPU was asked for by name."""
        return self.accelerator if self.device.startswith("cuda") else None

    def devices(self) -> Devices:
        """Where the models of a pipeline run."""
        from transforms.models.processes import Devices

        return Devices(tuple(self.all_of_them()), self.hint())


def _gpus() -> int:
    # Importing torch takes seconds; on Linux a machine without these files has no GPU that torch could use.
    if sys.platform == "linux" and not glob.glob("/dev/nvidia[0-9]*") and not os.path.exists("/dev/dxg"):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
