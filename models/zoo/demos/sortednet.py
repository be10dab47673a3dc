"""One training, sixteen networks: the truncations of a sorted MLP work, those of an ordinarily trained one do not.

Data: scikit-learn's handwritten digits (8 × 8), split by seed. Both trainings see the same number of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import ticks
from models.zoo.sortednet import Choice, Sampler, SortedMLP, sorted_step

SEEDS = (0, 1, 2)
STEPS = 400
GRADIENTS = 2  # g_r, sub-networks a step
WIDTHS, DEPTHS = (16, 32, 64, 128), (1, 2, 3, 4)


def batches(x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(GRADIENTS):
        pick = torch.randint(0, len(x), (64,), generator=generator)
        yield x[pick], y[pick]


@torch.no_grad()
def accuracy(model: SortedMLP, x: Tensor, y: Tensor) -> dict[Choice, float]:
    return {c: float((model(x, *c).argmax(1) == y).float().mean()) for c in model.choices()}


def train(seed: int, nested: bool, tick: Callable[[], None]) -> dict[Choice, float]:
    """Test accuracy of every sub-network after the sorted or the ordinary training."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    x, y = (torch.tensor(data.data, dtype=torch.float32) / 8 - 1)[order], torch.tensor(data.target)[order]
    torch.manual_seed(seed)
    model = SortedMLP(64, 10, WIDTHS, DEPTHS)
    sampler = Sampler(model.choices() if nested else model.choices()[-1:], seed)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        sorted_step(model, optimiser, sampler, batches(x[:1200], y[:1200], generator))
        tick()
    return accuracy(model, x[1200:], y[1200:])


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Accuracy of the 15 truncated sub-networks (mean), of the smallest, and of the full network."""
    tick = ticks(progress, 2 * len(SEEDS) * STEPS)

    ours = [train(seed, True, tick) for seed in SEEDS]
    plain = [train(seed, False, tick) for seed in SEEDS]
    full, small = (WIDTHS[-1], DEPTHS[-1]), (WIDTHS[0], DEPTHS[0])

    def truncated(result: dict[Choice, float]) -> float:
        return sum(v for c, v in result.items() if c != full) / (len(result) - 1)

    def row(name: str, value: Callable[[dict[Choice, float]], float], margin: float) -> Row:
        return Row(name=name, ours=[value(r) for r in ours], baseline=[value(r) for r in plain], expected="higher", margin=margin)

    return DemoResult(
        rows=(
            row("accuracy, mean of the 15 truncations", truncated, 0.15),
            row("accuracy, smallest sub-network", lambda r: r[small], 0.3),
            row("accuracy, full network (may lose 0.05)", lambda r: r[full], -0.05),
        ),
        curves={
            "sorted": [sum(r[c] for r in ours) / len(ours) for c in ours[0]],
            "ordinary": [sum(r[c] for r in plain) / len(plain) for c in plain[0]],
        },
    )
