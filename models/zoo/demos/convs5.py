"""A map seen in the first frames has to be told much later: a ConvS5 layer carries it, a ConvLSTM layer of more parameters forgets.

A random map of -1 and +1 is shown in the first four of 40 frames, then nothing; a bouncing dot runs through a second channel all the
time. The target of the last eight frames is the map. Predicting zero has the error 1. Both networks are one 1 × 1 convolution in, one
layer, one 1 × 1 convolution out, with the same optimiser, data and steps. Rate and steps were set on
seed 7 (0.01 against 1.00), which is not in the table.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.convs5 import ConvLSTMLayer, ConvS5Layer
from models.zoo.demos.training import learn, ticks

SEEDS = (0, 1, 2)
STEPS = 70
SIDE, FRAMES, CUE, ASKED, WIDTH = 6, 40, 4, 8, 8


def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """u (FRAMES, n, 2, SIDE, SIDE) and the targets (ASKED, n, 1, SIDE, SIDE)."""
    place = torch.randint(2 * SIDE - 2, (n, 2), generator=generator)
    speed = torch.randint(-1, 2, (n, 2), generator=generator)
    period = (place + torch.arange(FRAMES).view(-1, 1, 1) * speed) % (2 * SIDE - 2)
    at = SIDE - 1 - (period - SIDE + 1).abs()  # to and fro between the walls
    dot = F.one_hot(at[..., 0] * SIDE + at[..., 1], SIDE**2).float().view(FRAMES, n, 1, SIDE, SIDE)
    shown = 2.0 * torch.randint(2, (n, 1, SIDE, SIDE), generator=generator) - 1
    cue = shown * (torch.arange(FRAMES).view(-1, 1, 1, 1, 1) < CUE)
    return torch.cat((dot, cue), 2), shown.expand(ASKED, -1, -1, -1, -1)


class Network(nn.Module):
    """(L, B, 2, H, W) -> (L, B, 1, H, W)."""

    def __init__(self, ours: bool) -> None:
        super().__init__()
        self.into, self.out = nn.Conv2d(2, WIDTH, 1), nn.Conv2d(WIDTH, 1, 1)
        self.layer: nn.Module = ConvS5Layer(WIDTH, WIDTH, groups=4) if ours else ConvLSTMLayer(WIDTH)

    def forward(self, u: Tensor) -> Tensor:
        y, _ = self.layer(self.into(u.flatten(0, 1)).unflatten(0, u.shape[:2]))
        found: Tensor = self.out(y.flatten(0, 1)).unflatten(0, u.shape[:2])
        return found


def fit(ours: bool, seed: int, tick: Callable[[], None]) -> tuple[float, list[float]]:
    """Squared error over the target's square on fresh data, and the training error every two steps."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Network(ours)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)

    def error(n: int) -> Tensor:
        u, y = batch(n, generator)
        return F.mse_loss(model(u)[-ASKED:], y) / y.square().mean()

    curve = learn(lambda: error(16), optimiser, STEPS, tick, every=2)
    with torch.no_grad():
        return float(error(128)), curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Relative squared error of ConvS5 against ConvLSTM."""
    tick = ticks(progress, 2 * len(SEEDS) * STEPS)

    ours = [fit(True, seed, tick) for seed in SEEDS]
    plain = [fit(False, seed, tick) for seed in SEEDS]
    row = Row(
        name="relative error of the recalled map", ours=[e for e, _ in ours], baseline=[e for e, _ in plain], expected="lower", margin=0.5,
    )
    return DemoResult(rows=(row,), curves={"ConvS5": ours[0][1], "ConvLSTM": plain[0][1]})
