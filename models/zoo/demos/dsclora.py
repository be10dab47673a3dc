"""A frozen SPAN learns another blur by low-rank updates and a teacher, and is no larger afterwards.

Images are sums of waves, made small by blurring and taking every second pixel. A SPAN of 12 channels learns this for a narrow blur,
then is frozen; a teacher of 16 channels learns a wide blur. The updates learn the wide blur from images and teacher and are merged. The
baseline is the same network without them: first on the wide blur, by PSNR, then in size. The output is the difference from mid-grey,
as so few steps cannot move its bias. Sizes and steps were set on seed 7, which is not in the table.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.zoo.base import DemoResult, Row
from models.zoo.counting import parameters
from models.zoo.demos.training import ticks
from models.zoo.dsclora import SPAN, DistillationLoss, adapt_, deploy_

SEEDS = (0, 1, 2)
STEPS, ADAPTING = 120, 80
SIDE, WIDTH, TEACHER = 12, 12, 16
NARROW, WIDE = 0.6, 1.4


def batch(n: int, sigma: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Small images (n, 3, SIDE, SIDE) and large ones of twice the side, in 0..1."""
    side = 2 * SIDE + 8
    at = torch.arange(side, dtype=torch.float32)
    where = torch.rand(n, 3, 6, 3, 1, 1, generator=generator)
    frequency = (where[..., :2, :, :] - 0.5) * 2.4
    waves = (frequency[..., 0, :, :] * at.view(-1, 1) + frequency[..., 1, :, :] * at + 2 * math.pi * where[..., 2, :, :]).cos()
    large = (0.5 + waves.sum(2) / 8).clamp(0, 1)
    taps = (-((torch.arange(9) - 4.0) ** 2) / (2 * sigma**2)).exp()
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    blurred = F.conv2d(large, kernel.expand(3, 1, 9, 9), groups=3)
    return blurred[..., ::2, ::2], large[..., 4:-4, 4:-4]


def train(model: SPAN, sigma: float, steps: int, seed: int, tick: Callable[[], None], teacher: SPAN | None = None) -> list[float]:
    """The absolute error every five steps, in grey levels."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    loss_of, curve = DistillationLoss((1.0, 0.5, 20.0)), []
    for step in range(steps):
        small, large = batch(8, sigma, generator)
        y, features = model(small, features=True)
        target = 255 * (large - 0.5)
        plain = F.l1_loss(y, target)
        loss = plain if teacher is None else loss_of((y, features), teacher(small, features=True), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 5 == 0:
            curve.append(float(plain.detach()))
        tick()
    return curve


@torch.no_grad()
def psnr(model: SPAN, sigma: float, seed: int) -> float:
    small, large = batch(64, sigma, torch.Generator().manual_seed(1000 + seed))
    return -10 * math.log10(float((model(small) / 255 + 0.5 - large).square().mean()))


def demo(progress: Callable[[int, int], None] | None = None) -> DemoResult:
    """PSNR on the wide blur and size, of the adapted and the frozen network."""
    tick = ticks(progress, len(SEEDS) * (2 * STEPS + ADAPTING))

    ours, plain, sizes, before, curves = [], [], [], [], {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        model, teacher = SPAN(WIDTH, 2, reparam=False), SPAN(TEACHER, 2, reparam=False)
        train(model, NARROW, STEPS, seed, tick)
        train(teacher, WIDE, STEPS, seed + 100, tick)
        plain.append(psnr(model, WIDE, seed))
        before.append(float(parameters(model)))
        curves[f"adapting, seed {seed}"] = train(adapt_(model), WIDE, ADAPTING, seed + 200, tick, teacher.requires_grad_(False))
        deploy_(model)
        ours.append(psnr(model, WIDE, seed))
        sizes.append(float(parameters(model)))
    return DemoResult(
        rows=(
            Row(name="PSNR on the new blur, dB", ours=ours, baseline=plain, expected="higher", margin=1.5),
            Row(name="parameters", ours=sizes, baseline=before, expected="lower", margin=0.0),
        ),
        curves=curves,
    )
