"""Which band counts is said by the image: a dynamic spectral filter follows, a fixed one cannot.

Each 16 × 16 image holds noise of a low and of a high band, one of them strong and one weak, and a constant second channel, the cue. The
label says whether the cued band is the strong one: neither energies nor cue alone tell anything. Both networks are a pointwise layer,
the mixer, the energy of each channel and a linear layer, so that a fixed filter, however wide, gives a sum of band energies and cue: of
an exclusive or, three quarters right at best, and a cross-entropy not under ln 2 = 0.69. The baseline is wide enough to have more
parameters than ours. Steps, rate and margins were chosen on seed 7, which is not in the table.

How far this goes: behind the per-pixel MLP of a whole block, which sees the cue, a fixed filter solves the same task (seed 7: 1.00 with
2.5 times the parameters and 6 times the multiply-accumulates); the claim is of the operator.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import learn, ticks
from models.zoo.dsm import DynamicSpectrumMixer, Select, bands, idct2

SEEDS = (0, 1, 2)
STEPS = 200
SIDE, WEAK = 16, 0.5
OURS, PLAIN = 8, 36


def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (n, 2, SIDE, SIDE), label (n,)."""
    strong, cue = (torch.randint(2, (n,), generator=generator) for _ in range(2))
    high = bands(SIDE, SIDE, 8).clamp(max=4).div(2, rounding_mode="floor")  # 0 low, 1 high, 2 nothing
    amplitude = torch.stack((torch.where(strong == 0, 1.0, WEAK), torch.where(strong == 1, 1.0, WEAK), torch.zeros(n)), 1)
    coefficients = torch.randn(n, SIDE, SIDE, generator=generator) * amplitude[:, high]
    coefficients[:, 0, 0] = 0  # no mean, which is where the cue lies
    signal = idct2(coefficients)
    named = (2.0 * cue - 1)[:, None, None].expand(signal.shape)
    return torch.stack((signal, named), 1), (strong == cue).long()


class Energy(nn.Module):
    """Mean square of each channel: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square().mean((2, 3))


def network(dynamic: bool, select: Select = "filters") -> nn.Module:
    dim = OURS if dynamic else PLAIN
    mixer = DynamicSpectrumMixer(dim, 4, size=(8, 8), select=select, dynamic=dynamic)
    return nn.Sequential(nn.Conv2d(2, dim, 1), mixer, Energy(), nn.Linear(dim, 2))


def fit(dynamic: bool, seed: int, tick: Callable[[], None], select: Select = "filters") -> tuple[float, float, list[float]]:
    """Accuracy and cross-entropy on 2048 fresh images, and the training loss every 5 steps."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = network(dynamic, select)
    optimiser = torch.optim.Adam(model.parameters(), 2e-2)

    def loss() -> Tensor:
        x, label = batch(64, generator)
        return F.cross_entropy(model(x), label)

    curve = learn(loss, optimiser, STEPS, tick, every=5)
    with torch.no_grad():
        x, label = batch(2048, generator)
        scores = model(x)
        return float((scores.argmax(1) == label).float().mean()), float(F.cross_entropy(scores, label)), curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Accuracy of the dynamic against the fixed spectral filter."""
    tick = ticks(progress, 2 * len(SEEDS) * STEPS)

    ours = [fit(True, seed, tick) for seed in SEEDS]
    plain = [fit(False, seed, tick) for seed in SEEDS]
    rows = (
        Row(name="accuracy where a cue names the band", ours=[a for a, *_ in ours], baseline=[a for a, *_ in plain], expected="higher",
            margin=0.2),
        Row(name="cross-entropy", ours=[e for _, e, _ in ours], baseline=[e for _, e, _ in plain], expected="lower", margin=0.5),
    )  # fmt: skip
    return DemoResult(rows=rows, curves={"dynamic filters": ours[0][2], "fixed filter": plain[0][2]})
