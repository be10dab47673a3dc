"""Copy what was 13 steps ago, with attention in chunks of 8: a TCN carries it over, MEGA's moving average and attention alone do not.

Sequences of 40 random symbols out of eight; at every step from the 13th the target is the symbol of 13 steps before, always in an earlier
chunk. One layer, alike but for what moves between chunks: a TCN that sees 15 steps, MEGA's average of 16 terms, or nothing. The average
must single out one step of a random sequence, which it can only do by mixing many decays.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import ticks
from models.zoo.tcnca import TCNCA, Move

SEEDS = (0, 1, 2)
STEPS = 300
SYMBOLS, LENGTH, DELAY, CHUNK, DIM = 8, 40, 13, 8, 32


def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Symbols (n, 40), and what they were 13 steps ago, (n, 27)."""
    words = torch.randint(0, SYMBOLS, (n, LENGTH), generator=generator)
    return words, words[:, :-DELAY]


def fit(move: Move, seed: int, tick: Callable[[], None]) -> tuple[float, list[float]]:
    """Accuracy on fresh sequences, and while training every 5 steps."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = TCNCA(SYMBOLS, DIM, 1, keys=16, values=DIM, chunk=CHUNK, move=move)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    curve: list[float] = []

    def judge(n: int) -> tuple[Tensor, float]:
        words, y = batch(n, generator)
        scores = model(words)[:, DELAY:]
        return F.cross_entropy(scores.flatten(0, 1), y.flatten()), float((scores.detach().argmax(-1) == y).float().mean())

    for step in range(STEPS):
        loss, accuracy = judge(32)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % 5 == 0:
            curve.append(accuracy)
        tick()
    model.eval()
    with torch.no_grad():
        return judge(256)[1], curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Accuracy of the copy, TCN against moving average and against attention alone."""
    tick = ticks(progress, 3 * len(SEEDS) * STEPS)

    moves: tuple[Move, ...] = ("tcn", "ema", "none")
    runs = {move: [fit(move, seed, tick) for seed in SEEDS] for move in moves}
    ours, average, alone = ([a for a, _ in runs[move]] for move in moves)
    return DemoResult(
        rows=(
            Row(name="accuracy, TCN against MEGA's average", ours=ours, baseline=average, expected="higher", margin=0.3),
            Row(name="accuracy, TCN against attention alone", ours=ours, baseline=alone, expected="higher", margin=0.6),
        ),
        curves={"TCN": runs["tcn"][0][1], "moving average": runs["ema"][0][1], "attention alone": runs["none"][0][1]},
    )
