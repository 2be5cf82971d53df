"""Models a minute of ``eidetic train`` beside the same training in a plain loop; and what several at once bring on a CPU.

    python -m benchmarks.training

The loop is what one would write by hand with diffusers: the same network, batches, optimizer and average of the weights, the
model saved at its end, on one core as ``train`` has it. Then a few models at once: in a process for each core (``--device
cpu,cpu``; their start is in it), in threads, and stacked by torch.func, which does the steps of eight models as one. All of
8 × 8 pixels.
"""

from __future__ import annotations

import concurrent.futures
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.results import Row, write
from pipelines import train
from pipelines.device import DeviceOptions
from pipelines.execution import Execution
from pipelines.options import Parsed
from pipelines.train import TrainOptions
from tests.fakes import fake_lake
from tests.planted import picture
from transforms.models.configuration import Configuration, TrainingSet
from transforms.models.training import begin
from transforms.models.unconditional import new_scheduler, new_unet

MODELS, STEPS, IMAGES, BATCH = 4, 1000, 32, 16
STACKED, STACKED_STEPS = 8, 40
ROUNDS = 1
SWEEP = f"""
[[grid]]
images = {IMAGES}
batch_size = {BATCH}
steps = {STEPS}
seed = {list(range(MODELS))}
"""


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def by_train(folder: Path, device: str) -> float:
    """Seconds that the verb takes, from pictures that are there to tables that are written."""
    made = fake_lake(folder / "lake", sizes=[1] * 40, controls=0, draw=lambda number: picture(number, 16, 16))
    (folder / "sweep.toml").write_text(SWEEP)
    parsed = Parsed.of(TrainOptions(sweep=str(folder / "sweep.toml")), DeviceOptions(device=device))
    return timed(lambda: train.STAGE.run(Execution(made.lake, []), parsed))


def by_hand(folder: Path) -> None:
    """The same models in a plain loop."""
    from diffusers import DDPMPipeline
    from diffusers.training_utils import EMAModel

    pictures = np.stack([picture(number, 8, 8) for number in range(IMAGES)])
    images = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
    for seed in range(MODELS):
        torch.manual_seed(seed)
        configuration = Configuration(images=IMAGES)
        model, scheduler = new_unet(configuration, 0), new_scheduler(configuration)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        average = EMAModel(model.parameters(), decay=0.99, foreach=True)
        for _ in range(STEPS):
            some = images[torch.randperm(IMAGES)[:BATCH]]
            noise, times = torch.randn_like(some), torch.randint(0, 1000, (BATCH,))
            predicted = model(scheduler.add_noise(some, noise, times), times).sample
            loss = functional.mse_loss(predicted, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.step(model.parameters())
            assert np.isfinite(loss.item())
        average.copy_to(model.parameters())
        DDPMPipeline(model, scheduler).save_pretrained(folder / str(seed))


def some_trainings() -> list[torch.nn.Module]:
    data = TrainingSet(np.zeros((IMAGES, 8, 8, 3), np.uint8), np.ones(IMAGES, int))
    return [begin(Configuration(images=IMAGES, batch_size=BATCH, seed=seed), data, "cpu").model for seed in range(STACKED)]


def gradients(model: torch.nn.Module) -> None:
    """The gradients of so many steps, without an optimizer: what stacking shares."""
    for _ in range(STACKED_STEPS):
        noise, times = torch.randn(BATCH, 3, 8, 8), torch.randint(0, 1000, (BATCH,))
        functional.mse_loss(model(noise, times).sample, noise).backward()
        model.zero_grad()


def stacked(models: list[torch.nn.Module]) -> None:
    from torch.func import functional_call, grad, stack_module_state, vmap

    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def loss(weights: dict, others: dict, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(functional_call(base, (weights, others), (noise, times)).sample, noise)

    step = vmap(grad(loss))
    for _ in range(STACKED_STEPS):
        noise, times = torch.randn(len(models), BATCH, 3, 8, 8), torch.randint(0, 1000, (len(models), BATCH))
        step(parameters, buffers, noise, times)


def in_threads(models: list[torch.nn.Module]) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(gradients, models))


def main() -> None:
    torch.set_num_threads(1)
    ours, plain, processes = [], [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "both").mkdir()
            ours.append(by_train(Path(folder), "cpu"))
            plain.append(timed(lambda: by_hand(Path(folder) / "hand")))
            processes.append(by_train(Path(folder) / "both", "cpu,cpu"))
        print(f"train {ours[-1]:.1f} s, by hand {plain[-1]:.1f} s, in two processes {processes[-1]:.1f} s", flush=True)
    one, threads, together = [], [], []
    for _ in range(ROUNDS):
        models = some_trainings()
        one.append(timed(lambda: [gradients(model) for model in models]))  # noqa: B023
        threads.append(timed(lambda: in_threads(models)))  # noqa: B023
        together.append(timed(lambda: stacked(models)))  # noqa: B023
        print(f"one by one {one[-1]:.1f} s, two threads {threads[-1]:.1f} s, stacked {together[-1]:.1f} s", flush=True)
    a_step = STACKED * STACKED_STEPS / 1000
    what = "training a small diffusion model of 8 × 8 pixels on a CPU: "
    rows = [
        Row(what + f"{STEPS} steps by train", min(ours) / MODELS, "s", 1 / 0.95, "a plain loop", min(plain) / MODELS),
        Row(what + f"{STEPS} steps in two processes", min(processes) / MODELS, "s", 0.6, "in one", min(ours) / MODELS),
        Row(what + "gradients of a step in two threads", min(threads) / a_step, "ms", 1, "one by one", min(one) / a_step),
        Row(
            what + f"gradients of a step, {STACKED} models stacked by torch.func", min(together) / a_step, "ms", 1,
            "one by one", min(one) / a_step,
        ),
    ]  # fmt: skip
    write("training", rows)


if __name__ == "__main__":
    main()
