"""A cue in the corner says how to filter the rest: ContMix follows it, a 7 × 7 depthwise layer cannot see it.

Images of 14 × 14: a channel of noise, and a cue channel that is zero but for a patch of 4 × 4 in the upper left corner, +1 or -1. The
target is the noise moved two pixels to the right, or to the left if the cue is negative; the patch and four pixels beside it, which a
local kernel might see, are left out. Ours: pointwise layer, x + ContMix(LN x), pointwise layer. The baseline's block is DW7, LN, 1 × 1,
GELU, 1 × 1 with a residual (ConvNeXt), as wide as it takes for no fewer multiply-accumulates; blind to the corner, it cannot do better
than the mean of both shifts, a relative squared error of 0.5. The second row is the same two networks on images, and cues, of twice the
side. Steps and margins were chosen on seed 7 (0.03 against 0.50), which is not in the table.

How far this goes: ContMix goes without its squeeze-excitation here, because that alone carries the cue too; a depthwise layer with
squeeze-excitation and a per-pixel MLP (RepConv block) solves this task as well (seed 7, 200 steps: 0.001).
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import learn, ticks
from models.zoo.layers import LayerNorm2d
from models.zoo.overlock import ContMix

SEEDS = (0, 1, 2)
STEPS = 120
SIDE, PATCH, SHIFT = 14, 4, 2
OURS, PLAIN = 16, 48


def batch(n: int, generator: torch.Generator, zoom: int = 1) -> tuple[Tensor, Tensor]:
    """x (n, 2, zoom SIDE, zoom SIDE), y (n, 1, ...)."""
    side, patch = zoom * SIDE, zoom * PATCH
    noise = torch.randn(n, 1, side, side, generator=generator)
    sign = 2.0 * torch.randint(2, (n, 1, 1, 1), generator=generator) - 1
    cue = torch.zeros_like(noise)
    cue[..., :patch, :patch] = sign
    return torch.cat((noise, cue), 1), torch.where(sign > 0, noise.roll(SHIFT, 3), noise.roll(-SHIFT, 3))


class Local(nn.Module):
    """x + 1 × 1 GELU(1 × 1 LN(dw7 x)): (N, dim, H, W) both ways."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(dim, dim, 7, padding=3, groups=dim), LayerNorm2d(dim), nn.Conv2d(dim, 4 * dim, 1), nn.GELU(),
            nn.Conv2d(4 * dim, dim, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out


class Global(nn.Module):
    """x + ContMix(LN x), without its squeeze-excitation, which would carry the cue as well: (N, dim, H, W) both ways."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.mixer = LayerNorm2d(dim), ContMix(dim, value=True)
        self.mixer.se = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        out: Tensor = self.mixer(y, y, y)
        return x + out


def network(ours: bool) -> nn.Module:
    dim = OURS if ours else PLAIN
    return nn.Sequential(nn.Conv2d(2, dim, 1), Global(dim) if ours else Local(dim), nn.Conv2d(dim, 1, 1))


def fit(ours: bool, seed: int, tick: Callable[[], None]) -> tuple[float, float, list[float]]:
    """Squared error over the target's square on fresh data of the same and of twice the side, and the training error every 5 steps."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = network(ours)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)

    def error(n: int, zoom: int = 1) -> Tensor:
        x, y = batch(n, generator, zoom)
        inner = (..., slice(zoom * PATCH + 4, None), slice(zoom * PATCH + 4, -SHIFT))
        return F.mse_loss(model(x)[inner], y[inner]) / y[inner].square().mean()

    curve = learn(lambda: error(16), optimiser, STEPS, tick, every=5)
    model.eval()
    with torch.no_grad():
        return float(error(256)), float(error(64, 2)), curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Relative error of ContMix against the depthwise block, at the trained size and twice that."""
    tick = ticks(progress, 2 * len(SEEDS) * STEPS)

    ours = [fit(True, seed, tick) for seed in SEEDS]
    plain = [fit(False, seed, tick) for seed in SEEDS]
    names = ("relative error where a far cue says the filter", "the same, twice the side")
    rows = tuple(
        Row(name=name, ours=[r[i] for r in ours], baseline=[r[i] for r in plain], expected="lower", margin=0.3)  # type: ignore[misc]
        for i, name in enumerate(names)
    )
    return DemoResult(rows=rows, curves={"ContMix": ours[0][2], "depthwise 7×7": plain[0][2]})
