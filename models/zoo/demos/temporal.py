"""The order of three events in 25 frames: TS-LSTM and Temporal-Inception tell it, the mean over time cannot.

Three directions of a 24-dimensional feature space light up for one frame each, one in every third of the video, in one of six orders;
the rest is noise. The mean over time holds the three events whatever their order, so the baseline's ceiling is chance, 1/6. It has the
head of Temporal-Inception. All three are trained alike, for as many steps; the paper's rates (1e-4, 5e-5) are for far longer training.
"""
from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import ticks
from models.zoo.temporal import FRAMES, TSLSTM, MeanPool, TemporalInception, clamp_gradients_

SEEDS = (0, 1, 2)
STEPS = 300
DIM, HIDDEN, NOISE = 24, 64, 0.3
ORDERS = torch.tensor(list(permutations(range(3))))


def batch(n: int, events: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features (n, 25, 24) and the order (n,) in 0..5; events (3, 24)."""
    label = torch.randint(0, len(ORDERS), (n,), generator=generator)
    x = NOISE * torch.randn(n, FRAMES, DIM, generator=generator)
    when = torch.randint(0, FRAMES // 3, (n, 3), generator=generator) + torch.arange(3) * (FRAMES // 3)
    x[torch.arange(n)[:, None], when] += events[ORDERS[label]]
    return x, label


def fit(model: nn.Module, seed: int, tick: Callable[[], None]) -> tuple[float, list[float]]:
    """Accuracy on fresh videos, and that while training every 5 steps."""
    generator = torch.Generator().manual_seed(seed)
    events = torch.randn(3, DIM, generator=generator)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    curve: list[float] = []
    for step in range(STEPS):
        x, y = batch(64, events, generator)
        scores = model(x)
        loss = F.nll_loss(scores, y)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clamp_gradients_(model)
        optimiser.step()
        if step % 5 == 0:
            curve.append(float((scores.detach().argmax(-1) == y).float().mean()))
        tick()
    model.eval()
    with torch.no_grad():
        x, y = batch(2000, events, generator)
        return float((model(x).argmax(-1) == y).float().mean()), curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Accuracy of both networks against the mean over time."""
    tick = ticks(progress, 3 * len(SEEDS) * STEPS)

    makers: dict[str, Callable[[], nn.Module]] = {
        "TS-LSTM": lambda: TSLSTM(DIM, 6, hidden=HIDDEN),
        "Temporal-Inception": lambda: TemporalInception(DIM, 6, hidden=HIDDEN),
        "mean over time": lambda: MeanPool(DIM, 6, hidden=HIDDEN),
    }
    scores: dict[str, list[float]] = {}
    curves: dict[str, list[float]] = {}
    for name, make in makers.items():
        runs = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            runs.append(fit(make(), seed, tick))
        scores[name], curves[name] = [a for a, _ in runs], runs[0][1]
    plain = scores.pop("mean over time")
    rows = (Row(name=f"accuracy of {name}", ours=found, baseline=plain, expected="higher", margin=0.5) for name, found in scores.items())
    return DemoResult(rows=tuple(rows), curves=curves)
