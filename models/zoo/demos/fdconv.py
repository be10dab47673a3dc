"""Blur or sharpen, as the image as a whole says: FDConv switches its filter, a static convolution of equal width cannot.

An image is white noise plus a small offset of either sign. Where the offset is positive the target is the noise blurred 3 × 3, else
the noise less its blur: low-pass or high-pass. The offset is a quarter of the noise, so that a 3 × 3 window can hardly tell its sign
and the mean of the image can. Both networks are pointwise, 3 × 3, ReLU, pointwise, with the same width.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import learn, ticks
from models.zoo.fdconv import FDConv

SEEDS = (0, 1, 2)
STEPS = 400
WIDTH, SIDE, OFFSET = 24, 12, 0.25


def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x and y (n, 1, 12, 12)."""
    noise = torch.randn(n, 1, SIDE, SIDE, generator=generator)
    sign = torch.randint(0, 2, (n, 1, 1, 1), generator=generator).float() * 2 - 1
    blur = F.avg_pool2d(noise, 3, 1, 1)
    return noise + OFFSET * sign, torch.where(sign > 0, blur, noise - blur)


def network(ours: bool) -> nn.Module:
    middle = FDConv(WIDTH, WIDTH, 3, groups=4, bias=True) if ours else nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
    return nn.Sequential(nn.Conv2d(1, WIDTH, 1), middle, nn.ReLU(), nn.Conv2d(WIDTH, 1, 1))


def fit(ours: bool, seed: int, tick: Callable[[], None]) -> tuple[float, list[float]]:
    """Squared error over the target's square on fresh data in eval mode, and the training error every 10 steps; border left out."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = network(ours)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)

    def error(n: int) -> Tensor:
        x, y = batch(n, generator)
        inner = (..., slice(1, -1), slice(1, -1))
        return F.mse_loss(model(x)[inner], y[inner]) / y[inner].square().mean()

    curve = learn(lambda: error(32), optimiser, STEPS, tick, every=10)
    model.eval()
    with torch.no_grad():
        return float(error(256)), curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Relative squared error of FDConv against the static convolution."""
    tick = ticks(progress, 2 * len(SEEDS) * STEPS)

    ours = [fit(True, seed, tick) for seed in SEEDS]
    plain = [fit(False, seed, tick) for seed in SEEDS]
    row = Row(
        name="relative error of the filter", ours=[e for e, _ in ours], baseline=[e for e, _ in plain], expected="lower", margin=0.2,
    )
    return DemoResult(rows=(row,), curves={"FDConv": ours[0][1], "static 3×3": plain[0][1]})
