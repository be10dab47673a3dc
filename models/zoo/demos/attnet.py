"""Adaptive routing: what must be done everywhere is written in one place, far from most pixels. ATConv reads it, static kernels cannot.

Each seed draws 12 × 12 noise; two further channels, zero but for the top row, name one of four directions, and the target is the noise
moved by one pixel that way, judged in the lower half. Both networks are two AttNet blocks between 1 × 1 layers and differ in the mixer
only: ATConv against 1 × 1, static depthwise 3 × 3, 1 × 1 of as many channels. The static network's reach (four pixels, with the GLUs')
ends before that half: it can do no better than the mean over the directions, a relative error of 0.75. So this shows routing, not better
optimisation; attention would route too, at quadratic cost. The task is one that the project had tried before, in another setting.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.attnet import Block
from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import learn, ticks

SEEDS = (0, 1, 2)
STEPS = 500
DIM, SIDE = 16, 12
DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (n, 3, 12, 12) and y (n, 1, 12, 12)."""
    noise = torch.randn(n, 1, SIDE, SIDE, generator=generator)
    which = torch.randint(4, (n,), generator=generator)
    cue = torch.zeros(n, 2, SIDE, SIDE)
    cue[:, :, 0] = torch.tensor(DIRECTIONS, dtype=torch.float)[which][..., None]
    moved = torch.stack([noise.roll(shift, (2, 3)) for shift in DIRECTIONS])
    return torch.cat((noise, cue), 1), moved[which, torch.arange(n)]


def network(ours: bool) -> nn.Module:
    def mixer() -> nn.Module | None:
        static = nn.Conv2d(DIM, DIM, 3, padding=1, groups=DIM)
        return None if ours else nn.Sequential(nn.Conv2d(DIM, DIM, 1), static, nn.Conv2d(DIM, DIM, 1))

    return nn.Sequential(nn.Conv2d(3, DIM, 1), Block(DIM, 2, mixer=mixer()), Block(DIM, 2, mixer=mixer()), nn.Conv2d(DIM, 1, 1))


def fit(ours: bool, seed: int, tick: Callable[[], None]) -> tuple[float, list[float]]:
    """Squared error over the target's square on fresh data, and in training every 10 steps, both in the lower half."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = network(ours)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)

    def error(n: int) -> Tensor:
        x, y = batch(n, generator)
        inner = (..., slice(SIDE // 2, -1), slice(1, -1))
        return F.mse_loss(model(x)[inner], y[inner]) / y[inner].square().mean()

    curve = learn(lambda: error(32), optimiser, STEPS, tick, every=10)
    with torch.no_grad():
        return float(error(512)), curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Relative squared error of ATConv against static kernels."""
    tick = ticks(progress, 2 * len(SEEDS) * STEPS)

    ours = [fit(True, seed, tick) for seed in SEEDS]
    plain = [fit(False, seed, tick) for seed in SEEDS]
    row = Row(name="relative error of the move", ours=[e for e, _ in ours], baseline=[e for e, _ in plain], expected="lower", margin=0.4)
    return DemoResult(rows=(row,), curves={"ATConv": ours[0][1], "static 3 × 3": plain[0][1]})
