"""TVConv's point: a filter that depends on the place, learnt from pairs of images. Baseline: the depthwise convolution that it replaces."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.zoo.base import DemoResult, Row
from models.zoo.tvconv import TVConv, vary

SEEDS, STEPS, SIZE = (0, 1, 2), 300, 12


def _train(model: nn.Module, target: Tensor, seed: int, tick: Callable[[], None]) -> tuple[float, list[float]]:
    """Relative squared error on fresh images after training, and the curve of it."""
    images = torch.Generator().manual_seed(100 + seed)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    curve = []
    for _ in range(STEPS):
        x = torch.randn(64, 1, SIZE, SIZE, generator=images)
        wanted = vary(x, target)
        loss = (model(x) - wanted).square().mean() / wanted.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        curve.append(loss.item())
        tick()
    with torch.no_grad():
        x = torch.randn(512, 1, SIZE, SIZE, generator=images)
        wanted = vary(x, target)
        return ((model(x) - wanted).square().mean() / wanted.square().mean()).item(), curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Fit a random 3x3 filter a pixel on 12 x 12 images: relative squared error, lower is better (1 is the error of answering zero)."""
    done, total = 0, 2 * STEPS * len(SEEDS)

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    ours, baseline = [], []
    curves: dict[str, list[float]] = {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        target = torch.randn(1, 1, 9, SIZE, SIZE)
        error, curves["TVConv"] = _train(TVConv(1, (SIZE, SIZE), hidden=32, layers=1), target, seed, tick)
        ours.append(error)
        error, curves["depthwise"] = _train(nn.Conv2d(1, 1, 3, padding=1, bias=False), target, seed, tick)
        baseline.append(error)
    row = Row(name="relative squared error of a filter that varies with place", ours=ours, baseline=baseline, expected="lower", margin=0.5)
    return DemoResult(rows=(row,), curves=curves)
