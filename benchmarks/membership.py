"""Signals and scores of membership beside their authors' or others' code, on the same model, images and losses.

    python -m benchmarks.membership

The peers are looked for in the folders that these variables name, else in those of the commands:

    git clone https://github.com/mx-ethan-rao/SimA /tmp/peers/SimA                           # EIDETIC_SIMA
    git clone https://github.com/facebookresearch/PrivacyGuard /tmp/peers/PrivacyGuard       # EIDETIC_PRIVACY_GUARD

One that isn't there is skipped, with a line that says so. The model is a small UNet2DModel, trained for a minute or two on 192
photographs of CIFAR-10 at 16 × 16 pixels; as many others are the non-members. Both sides ask the same model the same number of
times, in turns, and the fastest round of each counts.

The losses for LiRA are drawn: 20,000 images, 32 models, half of which saw each. PrivacyGuard takes means and deviations,
which are made of the same losses in its time.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch

from benchmarks.results import Row, write
from benchmarks.untargeted import photographs
from transforms.kernels.membership import area, lira
from transforms.kernels.membership_signals import pia, secmi, sima

SIMA = Path(os.environ.get("EIDETIC_SIMA", "/tmp/peers/SimA"))
PRIVACY_GUARD = Path(os.environ.get("EIDETIC_PRIVACY_GUARD", "/tmp/peers/PrivacyGuard"))
PICTURES = 192
STEPS = 1500
ROUNDS = 5
INTERVAL, NUMBER = 40, 5


def trained(pictures: torch.Tensor) -> torch.nn.Module:
    """A small model of (n, 3, 16, 16) pictures in [−1, 1], of which it has seen each some hundred times."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    scheduler, optimizer = DDPMScheduler(1000), torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(STEPS):
        some = pictures[torch.randint(len(pictures), (32,))]
        # The timesteps that the attacks look at, more than the others.
        noise, steps = torch.randn_like(some), (torch.rand(32).square() * 1000).long()
        error = model(scheduler.add_noise(some, noise, steps), steps).sample - noise
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    return model.eval()


def peer_of(file: Path, name: str) -> ModuleType | None:
    if not file.exists():
        print(f"{file} isn't there: its part is left out")
        return None
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def beside(calls: dict[str, Callable[[], np.ndarray]]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What each call returns, and the seconds of its fastest round; each goes first as often as the other."""
    found, best = {name: call() for name, call in calls.items()}, dict.fromkeys(calls, float("inf"))
    for turn in range(ROUNDS):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            begun = time.perf_counter()
            calls[name]()
            best[name] = min(best[name], time.perf_counter() - begun)
    return found, best


def signals(components: ModuleType) -> list[Row]:
    pictures = photographs()[:: 50_000 // (2 * PICTURES)][: 2 * PICTURES]
    small = torch.nn.functional.avg_pool2d(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1, 2)
    members = np.arange(2 * PICTURES) % 2 == 0
    model = trained(small[torch.from_numpy(members)])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = torch.cumprod(1 - betas, dim=0)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x, t).sample

    class Getter(components.EpsGetter):  # type: ignore[name-defined]
        def __call__(self, xt, condition=None, noise_level=None, t=None):
            return self.model(xt, torch.ones([xt.shape[0]]).long() * t).sample

    ahead = list(range(INTERVAL, INTERVAL * NUMBER + 1, INTERVAL))
    ours: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "SecMI": lambda some: secmi(predict, some, alphas, INTERVAL, NUMBER),
        "PIA": lambda some: pia(predict, some, alphas, ahead),
        "PIAN": lambda some: pia(predict, some, alphas, ahead, normalised=True),
        "SimA": lambda some: sima(predict, some, [0, *ahead]),
    }
    rows = []
    for name, signal in ours.items():
        attacker = getattr(components, name)(betas, INTERVAL, NUMBER, Getter(model))

        def batches(call: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
            with torch.no_grad():
                return torch.cat([call(some) for some in small.split(64)], dim=-1).double().numpy()

        calls = {"ours": lambda call=signal: batches(call), "theirs": lambda call=attacker: batches(call)}
        found, best = beside(calls)
        areas = {who: np.array([area(-row, members) for row in values]) for who, values in found.items()}
        print(name, areas["ours"].round(4), areas["theirs"].round(4))
        rows += [
            Row(
                f"{name}, 384 images, {len(found['ours'])} timesteps", best["ours"], "s", 1.1, "SimA's own code", best["theirs"]
            ),
            Row(
                f"{name}: largest difference of the area under the curve at a timestep",
                float(np.abs(areas["ours"] - areas["theirs"]).max()),
                f"(areas {areas['ours'].min():.3f} to {areas['ours'].max():.3f})",
                0.005,
            ),
        ]
    return rows


def likelihood_ratios() -> list[Row]:
    if not (PRIVACY_GUARD / "privacy_guard").exists():
        print(f"{PRIVACY_GUARD} isn't there: its part is left out")
        return []
    sys.path.insert(0, str(PRIVACY_GUARD))
    from privacy_guard.analysis.mia.aggregate_analysis_input import AggregationType
    from privacy_guard.attacks.lira_attack import LiraAttack

    random = np.random.default_rng(0)
    level, scale = random.normal(0.3, 0.1, 20_000), random.uniform(0.005, 0.03, 20_000)
    inside = np.argsort(random.random((32, 20_000)), axis=0) < 16
    losses = level + scale * random.standard_normal((32, 20_000)) - scale * inside
    target, shadows, seen = losses[0], losses[1:], inside[1:]

    def theirs(fixed: bool) -> np.ndarray:
        columns = {"user_id": np.arange(20_000), "score_orig": target}
        for side, which in (("in", seen), ("out", ~seen)):
            masked = np.where(which, shadows, np.nan)
            columns |= {
                f"score_mean_{side}": np.nanmean(masked, axis=0),
                f"score_std_{side}": np.nanstd(masked, axis=0, ddof=1),
            }
        frame = pd.DataFrame(columns)
        halves = [frame[inside[0]].copy(), frame[~inside[0]].copy()]
        attack = LiraAttack(*halves, AggregationType.NONE, use_fixed_variance=fixed, std_dev_type="mix", online_attack=True)
        attack.run_attack()
        return pd.concat([attack.df_train_merge, attack.df_test_merge]).sort_values("user_id")["score"].to_numpy()

    rows = []
    for spread, fixed in (("image", False), ("mean", True)):
        calls = {"ours": lambda s=spread: lira(target, shadows, seen, spread=s), "theirs": lambda f=fixed: theirs(f)}
        found, best = beside(calls)
        apart = float(np.abs(found["ours"] - found["theirs"]).max())
        what = f"LiRA, 20,000 images, 31 shadows, {'one spread' if fixed else 'a spread of its own'}"
        rows += [
            Row(f"{what}: largest difference of scores", apart, "", 1e-6),
            Row(what, best["ours"], "s", 1.1, "PrivacyGuard", best["theirs"]),
        ]
    return rows


def main() -> None:
    components = peer_of(SIMA / "DDPM" / "components.py", "sima_components")
    rows = (signals(components) if components else []) + likelihood_ratios()
    for row in rows:
        print(row)
    if rows:
        write("membership", rows)


if __name__ == "__main__":
    main()
