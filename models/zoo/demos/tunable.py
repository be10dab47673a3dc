"""One network whose answer slides from the noisy image to the clean one, against a plain one and against blended weights.

Images are boxes of random greys with noise. The two losses are the squared errors to the clean and to the noisy image; omega is drawn
from the simplex for every sample. Baselines: the plain network of the same layers, trained on equal parts of the two losses, at the ends
of the slide; and, half way, the average of the weights of two plain networks, one trained for each end from the same start (deep network
interpolation), by the blended loss. Margins come from seed 7, which is not in the table.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import ticks
from models.zoo.tunable import ParametricMultiLoss, TunableConv2d, draw_omega

SEEDS = (0, 1, 2)
STEPS = 150
SIDE, WIDTH, NOISE = 16, 12, 0.4


def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clean and noisy, (n, 1, SIDE, SIDE) each."""
    clean = torch.zeros(n, 1, SIDE, SIDE)
    at = torch.arange(SIDE)
    for _ in range(3):
        corner = torch.randint(SIDE - 4, (n, 2, 1), generator=generator)
        extent = torch.randint(4, 10, (n, 2, 1), generator=generator)
        rows, columns = ((at >= corner) & (at < corner + extent)).unbind(1)
        inside = (rows[:, :, None] & columns[:, None]).unsqueeze(1)
        clean = torch.where(inside, torch.rand(n, 1, 1, 1, generator=generator), clean)
    return clean, clean + NOISE * torch.randn(n, 1, SIDE, SIDE, generator=generator)


class Network(nn.Module):
    """Three 3 × 3 tunable layers with ReLU between; P = 1 with omega = 1 is the plain network."""

    def __init__(self, params: int) -> None:
        super().__init__()
        sizes = [(1, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)]
        self.layers = nn.ModuleList(TunableConv2d(a, b, 3, padding=1, params=params, mode="linear") for a, b in sizes)

    def forward(self, x: Tensor, omega: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x, omega))
        found: Tensor = self.layers[-1](x, omega)
        return found


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean((1, 2, 3))


LOSS = ParametricMultiLoss((squared, squared))


def fit(seed: int, fixed: tuple[float, float] | None, tick: Callable[[], None]) -> Network:
    """Tunable where ``fixed`` is None, else a plain network trained at that blend of losses."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Network(2 if fixed is None else 1)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        clean, noisy = batch(16, generator)
        omega = draw_omega(16, 2, generator=generator) if fixed is None else torch.tensor(fixed).expand(16, 2)
        loss = LOSS(model(noisy, omega if fixed is None else torch.ones(1)), (clean, noisy), omega)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        tick()
    return model


@torch.no_grad()
def judge(model: Network, omega: Tensor, seed: int) -> tuple[float, float]:
    """PSNR to clean and to noisy on fresh images."""
    clean, noisy = batch(128, torch.Generator().manual_seed(1000 + seed))
    y = model(noisy, omega)
    to_clean, to_noisy = (-10 * math.log10(float(squared(y, t).mean())) for t in (clean, noisy))
    return to_clean, to_noisy


def halfway(ends: list[Network]) -> Network:
    """The network whose weights are the average of two."""
    model = Network(1)
    states = [end.state_dict() for end in ends]
    model.load_state_dict({name: (states[0][name] + states[1][name]) / 2 for name in states[0]})
    return model


def blended(psnr: tuple[float, float]) -> float:
    """The loss at omega = (1/2, 1/2)."""
    return sum(10 ** (-value / 10) for value in psnr) / 2


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Both ends, the middle and the smallest rise between five stops of the slide."""
    tick = ticks(progress, 4 * len(SEEDS) * STEPS)

    stops = [torch.tensor([s / 4, 1 - s / 4]) for s in range(5)]
    one = torch.ones(1)
    ours, plain, middles = [], [], []
    for seed in SEEDS:
        model = fit(seed, None, tick)
        ours.append([judge(model, omega, seed) for omega in stops])
        plain.append(judge(fit(seed, (0.5, 0.5), tick), one, seed))
        ends = [fit(seed, (1.0, 0.0), tick), fit(seed, (0.0, 1.0), tick)]
        middles.append(judge(halfway(ends), one, seed))
    rises = [min(b[0] - a[0] for a, b in pairwise(each)) for each in ours]
    falls = [min(a[1] - b[1] for a, b in pairwise(each)) for each in ours]
    rows = (
        Row(name="PSNR to clean, dB, omega (1, 0)", ours=[s[-1][0] for s in ours], baseline=[p[0] for p in plain],
            expected="higher", margin=2.0),
        Row(name="PSNR to noisy, dB, omega (0, 1)", ours=[s[0][1] for s in ours], baseline=[p[1] for p in plain],
            expected="higher", margin=4.0),
        Row(name="blended loss half way", ours=[blended(s[2]) for s in ours], baseline=[blended(m) for m in middles],
            expected="lower", margin=0.004),
        Row(name="smallest rise to clean, fall to noisy, dB a quarter", ours=[min(pair) for pair in zip(rises, falls, strict=True)],
            baseline=[0.0] * len(SEEDS), expected="higher", margin=0.5),
    )  # fmt: skip
    curves = {"to clean": [s[0] for s in ours[0]], "to noisy": [s[1] for s in ours[0]]}
    return DemoResult(rows=rows, curves=curves)
