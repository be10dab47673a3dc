"""What the dominant channel's gather is for: CMixer learns a value that depends on which channel is strongest.

Each seed draws 8-channel noise and eight factors a; the target is a_i x_i at every pixel, i its strongest channel. CMixer reads x_i's
gated value directly. The baseline is CMixer without the gather (a gated feed-forward layer), widened until it has more parameters and
multiply-accumulates than ours. The margin was set on seeds 7 and 8 (0.004 and 0.009 against 0.17 and 0.15), which are not in the table.

How far this goes: it shows the operator, not the network. On scikit-learn's digits, enlarged to 32 × 32 and 120 steps, a plain strided
network of as many parameters was ahead of a two-stage SpaRTAN (0.98 against 0.93, two seeds); the paper's claim is about ImageNet.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import learn, ticks
from models.zoo.spartan import CMixer

SEEDS = (0, 1, 2)
STEPS = 400
CHANNELS, SIDE = 8, 10
OURS, PLAIN = 2, 3  # ratios


def network(gather: bool) -> CMixer:
    return CMixer(CHANNELS, OURS if gather else PLAIN, True, gather)


def fit(gather: bool, seed: int, tick: Callable[[], None]) -> tuple[float, list[float]]:
    """Squared error over the target's variance on fresh data in eval mode, and the training error every 10 steps."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    factors = torch.randn(CHANNELS, generator=generator)
    model = network(gather)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)

    def error(n: int) -> Tensor:
        x = torch.randn(n, CHANNELS, SIDE, SIDE, generator=generator)
        best, i = x.max(1)
        y = factors[i] * best
        return F.mse_loss(model(x)[:, 0], y) / y.var()

    curve = learn(lambda: error(32), optimiser, STEPS, tick, every=10)
    model.eval()
    with torch.no_grad():
        return float(error(256)), curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Relative squared error with the gather against without."""
    tick = ticks(progress, 2 * len(SEEDS) * STEPS)

    ours = [fit(True, seed, tick) for seed in SEEDS]
    plain = [fit(False, seed, tick) for seed in SEEDS]
    row = Row(name="relative error", ours=[e for e, _ in ours], baseline=[e for e, _ in plain], expected="lower", margin=0.1)
    return DemoResult(rows=(row,), curves={"CMixer": ours[0][1], "without gather": plain[0][1]})
