"""A jump is abnormal although every frame looks normal: prediction of frames notices it, their reconstruction does not.

Clips of nine frames of 16 × 16 pixels: a bright square moves on a torus at constant speed; in abnormal clips it stands elsewhere in the
three frames in the middle. Both networks see normal clips only. Ours is the published network with half its widths and one layer for each
five; the baseline has its encoder and decoder without time and rebuilds each frame. The table has the area under the ROC curve over fresh
clips by the squared error of the middle frames. Sizes and steps were set on seed 7, which is not in the table.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.zoo.base import DemoResult, Row
from models.zoo.demos.training import ticks
from models.zoo.hybrid_vad import HybridVAD, auc, ssim_l1

SEEDS = (0, 1, 2)
STEPS = 80
SIDE, SQUARE = 16, 5
WIDTHS = (8, 16, 32)


def batch(n: int, generator: torch.Generator, jump: bool = False) -> Tensor:
    """(n, 9, 1, SIDE, SIDE) of -0.8 and 0.8."""
    start = torch.randint(SIDE, (n, 1, 2), generator=generator)
    speed = torch.randint(-1, 2, (n, 1, 2), generator=generator)
    at = start + speed * torch.arange(9).view(1, 9, 1)
    if jump:
        at[:, 3:6] += torch.randint(4, SIDE - 3, (n, 1, 2), generator=generator)
    line = (torch.arange(SIDE) - at[..., None]) % SIDE < SQUARE  # (n, 9, 2, SIDE)
    inside = line[:, :, 0, :, None] & line[:, :, 1, None, :]
    return (1.6 * inside - 0.8).unsqueeze(2)


class Rebuild(nn.Module):
    """The encoder and decoder of the network, frame by frame: (N, 1, H, W) both ways."""

    def __init__(self) -> None:
        super().__init__()
        whole = HybridVAD(widths=WIDTHS, layers=(0, 0))
        self.body = nn.Sequential(whole.low, whole.encoder, whole.decoder, whole.out, nn.Tanh())

    def loss(self, clip: Tensor) -> Tensor:
        frames = clip[:, 3:6].flatten(0, 1)
        return ssim_l1(self.body(frames) / 2 + 0.5, frames / 2 + 0.5)

    @torch.no_grad()
    def errors(self, clip: Tensor) -> Tensor:
        frames = clip[:, 3:6].flatten(0, 1)
        error: Tensor = (self.body(frames) - frames) / 2
        return error.square().mean((1, 2, 3)).view(len(clip), 3)


def fit(model: HybridVAD | Rebuild, seed: int, tick: Callable[[], None]) -> tuple[float, list[float]]:
    """Area under the curve on fresh clips, and the loss every two steps."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3, (0.9, 0.98))
    curve: list[float] = []
    for step in range(STEPS):
        loss = model.loss(batch(8, generator))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 2 == 0:
            curve.append(float(loss.detach()))
        tick()
    model.eval()
    clips = torch.cat((batch(32, generator), batch(32, generator, jump=True)))
    mixed = torch.randperm(64, generator=generator)  # batch statistics: both kinds in every batch
    errors = torch.empty(64)
    for part in mixed.view(-1, 16):
        errors[part] = model.errors(clips[part]).mean(1)
    return auc(errors[:32], errors[32:]), curve


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """Area under the ROC curve of prediction against reconstruction."""
    tick = ticks(progress, 2 * len(SEEDS) * STEPS)

    ours, plain = [], []
    for seed in SEEDS:
        torch.manual_seed(seed)
        ours.append(fit(HybridVAD(widths=WIDTHS, layers=(1, 1)), seed, tick))
        plain.append(fit(Rebuild(), seed, tick))
    row = Row(name="area under the ROC curve", ours=[a for a, _ in ours], baseline=[a for a, _ in plain], expected="higher", margin=0.25)
    return DemoResult(rows=(row,), curves={"prediction": ours[0][1], "reconstruction": plain[0][1]})
