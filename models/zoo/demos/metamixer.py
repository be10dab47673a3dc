"""The scheme, not softmax: FFNified attention learns to tell shapes where self-attention of no fewer multiply-accumulates lags.

One outline on a 24 × 24 image (square, disc, cross, triangle), anywhere, three sizes, under noise. Networks: a strided stem, two blocks,
mean, linear; channel mixers are the same, only the token mixer changes. Self-attention gets a learned position code; on this map it
has twice our multiply-accumulates. Two more rows swap sub-operations inside the scheme, as the paper does: softmax over the channels
(times their number) for GELU, and dense for depthwise convolutions; both must beat self-attention as well. Noise, steps and margins
were chosen on seed 7 (0.90, 0.90 and 0.92 against 0.80), which is not in the table.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import learn, ticks
from models.zoo.layers import ConvBN
from models.zoo.metamixer import Block, ChannelMixer, FFNifiedAttention, MetaMixer, SelfAttention

SEEDS = (0, 1, 2)
STEPS = 100
SIDE, DIM, KINDS, NOISE = 24, 16, 4, 0.5


def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (n, 1, SIDE, SIDE), label (n,)."""
    label = torch.randint(KINDS, (n,), generator=generator)
    radius = torch.randint(4, 7, (n, 1, 1), generator=generator).float()
    centre = torch.randint(7, SIDE - 7, (n, 2, 1), generator=generator).float()
    axis = torch.arange(SIDE).float()
    dy, dx = (axis - centre[:, 0])[:, :, None], (axis - centre[:, 1])[:, None, :]
    distance = torch.stack((
        torch.maximum(dy.abs(), dx.abs()), (dy * dy + dx * dx).sqrt(),
        torch.minimum(dy.abs(), dx.abs()) + radius + 4 * F.relu(torch.maximum(dy.abs(), dx.abs()) - radius),
        torch.maximum(dy, dx.abs() * 1.7 - dy * 0.85),
    ), 1)[torch.arange(n), label]
    image = ((distance - radius).abs() < 0.8).float()
    return (image + NOISE * torch.randn(image.shape, generator=generator))[:, None], label


class Positioned(nn.Module):
    """Self-attention of batch-normed tokens with a learned position code: (N, dim, 12, 12) both ways."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.BatchNorm2d(dim), SelfAttention(dim, 2)
        self.place = nn.Parameter(0.02 * torch.randn(dim, SIDE // 2, SIDE // 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(self.norm(x) + self.place)
        return out


def mixer(which: str, dim: int) -> nn.Module:
    """The token mixer of that name."""
    if which == "self-attention":
        return Positioned(dim)
    if which == "dense":
        return MetaMixer(ConvBN(dim, dim), nn.Conv2d(dim, dim, 3, padding=1), nn.Conv2d(dim, dim, 3, padding=1))
    own = FFNifiedAttention(dim, 7)
    if which == "softmax":
        own.activation = lambda x: x.softmax(1) * x.shape[1]  # mean one, so that the range is that of GELU
    return own


def network(which: str) -> nn.Module:
    blocks = (Block(mixer(which, DIM), ChannelMixer(DIM, 3), DIM) for _ in range(2))
    stem = (ConvBN(1, DIM, 3, stride=2, padding=1), nn.GELU())
    return nn.Sequential(*stem, *blocks, nn.BatchNorm2d(DIM), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(DIM, KINDS))


def fit(which: str, seed: int, tick: Callable[[], None]) -> tuple[float, list[float]]:
    """Accuracy on 1024 fresh images, and the training loss every 5 steps."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = network(which)
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)

    def loss() -> Tensor:
        x, label = batch(32, generator)
        return F.cross_entropy(model(x), label)

    curve = learn(loss, optimiser, STEPS, tick, every=5)
    model.eval()
    with torch.no_grad():
        x, label = batch(1024, generator)
        return float((model(x).argmax(1) == label).float().mean()), curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Accuracy of FFNified attention, and of the scheme with other sub-operations, against self-attention."""
    names = ("FFNified attention", "softmax", "dense", "self-attention")
    tick = ticks(progress, len(names) * len(SEEDS) * STEPS)
    runs = {which: [fit(which, seed, tick) for seed in SEEDS] for which in names}
    scores = {which: [accuracy for accuracy, _ in run] for which, run in runs.items()}
    rows = tuple(
        Row(name=f"accuracy, {which}", ours=scores[which], baseline=scores["self-attention"], expected="higher", margin=margin)
        for which, margin in (("FFNified attention", 0.05), ("softmax", 0.05), ("dense", 0.05))
    )
    return DemoResult(rows=rows, curves={which: run[0][1] for which, run in runs.items()})
