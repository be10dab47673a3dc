"""Training moves filters away from random ones; a network with too many of them leaves a part of them unused.

Two networks of three 3 × 3 convolutions learn the handwritten digits, one four times as wide as the other, with weight decay. The table
has: the ratio of entropy and random threshold of the last convolution of the wide one, trained against untrained; the sparsity of the
later two convolutions, wide against narrow; the shift D between the trained wide networks of two seeds, against the shift between one of
them and an untrained one.

How far this goes: the paper also finds lower entropy in layers with too many filters. In these few steps it is not lower in the wide
network (0.46 against 0.45 on seed 7), so only sparsity is claimed. Optimiser and steps were chosen on seed 7, not in the table.
"""
from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import ticks
from models.zoo.filter_db import analyse, filters, shift

SEEDS = (0, 1, 2)
STEPS = 900
NARROW, WIDE = 8, 32


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) in 0..1 and classes."""
    images, classes = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(classes, dtype=torch.long)


def network(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    )  # fmt: skip


def train(model: nn.Module, seed: int, tick: Callable[[], None]) -> list[float]:
    """The ratio of the last convolution every thirty steps."""
    images, classes = digits()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    curve = []
    for step in range(STEPS):
        picked = torch.randint(len(images), (32,), generator=generator)
        loss = F.cross_entropy(model(images[picked]), classes[picked])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 30 == 0:
            curve.append(analyse(model)[-1].ratio)
        tick()
    return curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Entropy ratios and shifts."""
    tick = ticks(progress, 2 * len(SEEDS) * STEPS)

    narrow, wide, fresh = ([network(width, seed) for seed in SEEDS] for width in (NARROW, WIDE, WIDE))
    curves = {}
    for name, models in (("narrow", narrow), ("wide", wide)):
        found = [train(model, seed, tick) for model, seed in zip(models, SEEDS, strict=True)]
        curves[name] = found[0]
    last = {name: [analyse(m)[-1].ratio for m in models] for name, models in (("wide", wide), ("fresh", fresh))}
    empty = {name: [fmean(q.sparsity for q in analyse(m)[1:]) for m in models] for name, models in (("narrow", narrow), ("wide", wide))}
    rows = [filters(m) for m in wide]
    among = [shift(rows[i], rows[(i + 1) % len(rows)]) for i in range(len(rows))]
    apart = [shift(rows[i], filters(fresh[(i + 1) % len(rows)])) for i in range(len(rows))]
    return DemoResult(
        rows=(
            Row(name="entropy ratio of the last layer", ours=last["wide"], baseline=last["fresh"], expected="lower", margin=0.3),
            Row(name="sparsity, wide and narrow", ours=empty["wide"], baseline=empty["narrow"], expected="higher", margin=0.15),
            Row(name="shift, to a trained and to an untrained network", ours=among, baseline=apart, expected="lower", margin=0.2),
        ),
        curves=curves,
    )
