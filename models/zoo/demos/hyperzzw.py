"""Two-step walks in a graph: one slow-fast block sees every pixel's whole row and column, a deep stack of 7 × 7 convolutions does not.

An image of 12 × 12 is the adjacency matrix of a random directed graph; the target at pixel (i, j) is how many walks of two steps lead
from i to j. It depends on row i and column j and on nothing near the pixel, a full-context interaction. The baseline has three residual
layers of 7 × 7 depthwise and pointwise convolutions with batch norm and GELU, which together see most of the image, and it has no fewer
parameters.

How far this goes: ZZW_G is a product of matrices, as this target is, so the task favours it; it shows reach, not accuracy on images. On
noisy gratings, which a local filter tells apart, a plain 3 × 3 network of as many parameters learned faster than Terminator. The margin
was set from seeds 7 and 8 (0.07 against 0.61), which are not in the table.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import learn, ticks
from models.zoo.hyperzzw import SFNEBlock

SEEDS = (0, 1, 2)
STEPS = 150
SIDE, DENSITY, WIDTH = 12, 0.25, 32


def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Adjacency (n, 1, 12, 12) and two-step walks less their mean, (n, 1, 12, 12)."""
    edges = (torch.rand(n, 1, SIDE, SIDE, generator=generator) < DENSITY).float()
    return edges, edges @ edges - SIDE * DENSITY**2


class Layer(nn.Module):
    """x + GELU(BN(1 × 1 dw7(x)))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.body(x))


def network(ours: bool) -> nn.Module:
    if ours:
        return nn.Sequential(SFNEBlock(1, 12, SIDE, hidden=16, hidden_l=8), nn.Conv2d(12, 1, 1))
    return nn.Sequential(nn.Conv2d(1, WIDTH, 1), *(Layer(WIDTH) for _ in range(3)), nn.Conv2d(WIDTH, 1, 1))


def fit(ours: bool, seed: int, tick: Callable[[], None]) -> tuple[float, list[float]]:
    """Squared error over the target's variance on fresh graphs in eval mode, and the training error every 5 steps."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = network(ours)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)

    def error(n: int) -> Tensor:
        x, y = batch(n, generator)
        return F.mse_loss(model(x), y) / y.square().mean()

    curve = learn(lambda: error(32), optimiser, STEPS, tick, every=5)
    model.eval()
    with torch.no_grad():
        return float(error(256)), curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Relative squared error of the slow-fast block against the convolutions."""
    tick = ticks(progress, 2 * len(SEEDS) * STEPS)

    ours = [fit(True, seed, tick) for seed in SEEDS]
    plain = [fit(False, seed, tick) for seed in SEEDS]
    row = Row(
        name="relative error of two-step walks", ours=[e for e, _ in ours], baseline=[e for e, _ in plain], expected="lower", margin=0.3,
    )
    return DemoResult(rows=(row,), curves={"slow-fast block": ours[0][1], "7×7 convolutions": plain[0][1]})
