"""What the demonstrations' training loops have in common."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.zoo.base import Progress


def ticks(progress: Progress | None, total: int) -> Callable[[], None]:
    """A function to call after each of ``total`` steps, which tells ``progress`` how many are done."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


def learn(loss: Callable[[], Tensor], optimiser: torch.optim.Optimizer, steps: int, tick: Callable[[], None], *, every: int) -> list[float]:
    """Minimise ``loss``, which draws a batch of its own each time, along half a cosine of the learning rate; the loss every
    ``every`` steps."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    curve: list[float] = []
    for step in range(steps):
        value = loss()
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % every == 0:
            curve.append(float(value.detach()))
        tick()
    return curve
