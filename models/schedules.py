"""Learning rates over time and the average of the weights."""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: Share of the steps in which the learning rate rises.
WARM_UP = 0.05
#: The average of the weights forgets with this factor a step.
EMA_DECAY = 0.998
#: CoDeNet's drops to a tenth: after 50 and 70 of 90 epochs.
DROPS = (50 / 90, 70 / 90)
SCHEDULES = ("cosine", "step", "constant")


def _rise(step: int, steps: int, warm_up: float) -> float:
    return min(1.0, (step + 1) / max(1, round(warm_up * steps)))


def cosine_lr(step: int, steps: int, peak: float, warm_up: float = WARM_UP) -> float:
    """Learning rate at ``step`` of ``steps``: linear rise, then half a cosine down to 0."""
    rise = max(1, round(warm_up * steps))
    if step < rise:
        return peak * _rise(step, steps, warm_up)
    return peak * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def step_lr(step: int, steps: int, peak: float, warm_up: float = WARM_UP, drops: tuple[float, ...] = DROPS) -> float:
    """Learning rate at ``step`` of ``steps``: linear rise, then a tenth from each of ``drops`` (shares of the steps) on."""
    return float(peak * _rise(step, steps, warm_up) * 0.1 ** sum(step >= drop * steps for drop in drops))


def learning_rate(schedule: str, step: int, steps: int, peak: float) -> float:
    """The rate of one of SCHEDULES."""
    if schedule == "cosine":
        return cosine_lr(step, steps, peak)
    if schedule == "step":
        return step_lr(step, steps, peak)
    if schedule == "constant":
        return peak * _rise(step, steps, WARM_UP)
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")


class Average:
    """Exponential moving average of a model's parameters and statistics; with ``decay`` 0 simply the model."""

    def __init__(self, model: nn.Module, decay: float = EMA_DECAY) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and less than 1, not {decay!r}")
        self.decay, self.steps = decay, 0
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value.to(self.state[name].dtype), 1 - decay)
            else:
                self.state[name].copy_(value)
