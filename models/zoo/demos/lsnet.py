"""A filter that depends on where it is: LSConv learns it, a depthwise convolution between two pointwise layers only nearly.

Each pixel's target is a 3 × 3 neighbour of its values, a blend of the one on its left and the one above it; a smooth field in the last
channel says, pixel by pixel, how much of each. That is a product of inputs, which a fixed kernel cannot form and a ReLU only
approximates. The baseline has the same pointwise layers around a 3 × 3 depthwise kernel with batch norm, identity and ReLU, and is
widened until it has no fewer multiply-accumulates than ours. The margin was set from seed 7 (0.001 against 0.067), which is not in the
table.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import learn, ticks
from models.zoo.layers import ConvBN
from models.zoo.lsnet import LSConv

SEEDS = (0, 1, 2)
STEPS = 400
CHANNELS, SIDE = 7, 12
OURS, PLAIN = 16, 48


def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (n, 8, 12, 12): seven channels of noise and the field in 0..1; y (n, 7, 12, 12)."""
    values = torch.randn(n, CHANNELS, SIDE, SIDE, generator=generator)
    field = torch.randn(n, 1, SIDE, SIDE, generator=generator)
    field = (4 * F.avg_pool2d(field, 3, 1, 1)).sigmoid()
    y = field * values.roll(1, 3) + (1 - field) * values.roll(1, 2)
    return torch.cat((values, field), 1), y


class Plain(nn.Module):
    """relu(BN(dw3 x) + x): (N, dim, H, W) both ways."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dw = ConvBN(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dw(x) + x)


def network(ours: bool) -> nn.Module:
    dim = OURS if ours else PLAIN
    return nn.Sequential(nn.Conv2d(CHANNELS + 1, dim, 1), LSConv(dim) if ours else Plain(dim), nn.Conv2d(dim, CHANNELS, 1))


def fit(ours: bool, seed: int, tick: Callable[[], None]) -> tuple[float, list[float]]:
    """Squared error over the target's square on fresh data in eval mode, and the training error every 10 steps; border left out."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = network(ours)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)

    def error(n: int) -> Tensor:
        x, y = batch(n, generator)
        inner = (..., slice(1, None), slice(1, None))
        return F.mse_loss(model(x)[inner], y[inner]) / y[inner].square().mean()

    curve = learn(lambda: error(32), optimiser, STEPS, tick, every=10)
    model.eval()
    with torch.no_grad():
        return float(error(512)), curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Relative squared error of LSConv against the depthwise convolution."""
    tick = ticks(progress, 2 * len(SEEDS) * STEPS)

    ours = [fit(True, seed, tick) for seed in SEEDS]
    plain = [fit(False, seed, tick) for seed in SEEDS]
    row = Row(
        name="relative error of the blend", ours=[e for e, _ in ours], baseline=[e for e, _ in plain], expected="lower", margin=0.03,
    )
    return DemoResult(rows=(row,), curves={"LSConv": ours[0][1], "depthwise 3×3": plain[0][1]})
