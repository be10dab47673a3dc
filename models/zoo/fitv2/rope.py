"""Rotary embedding of two places, and how its frequencies change for sizes larger than in training."""
from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Form = Literal["normal", "linear", "ntk-aware", "ntk-aware-pro1", "ntk-aware-pro2", "ntk-by-parts", "yarn"]
FORMS: tuple[Form, ...] = ("normal", "linear", "ntk-aware", "ntk-aware-pro1", "ntk-aware-pro2", "ntk-by-parts", "yarn")
TURNS = {"parts": ((1.25, 0.75), (16.0, 2.0)), "yarn": ((32.0, 1.0),)}  # turns in the training length between which forms are blended


def _ramp(turns: tuple[float, float], dim: int, theta: float, train: int, like: Tensor) -> Tensor:
    """1 for the fast frequencies, 0 for the slow ones, a line between: (dim / 2)."""
    low, high = (dim * math.log(train / (n * 2 * math.pi)) / (2 * math.log(theta)) for n in turns)
    first, last = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
    place = torch.arange(dim // 2, device=like.device, dtype=like.dtype)
    return 1 - ((place - first) / max(last - first, 1e-3)).clamp(0, 1)


def frequencies(dim: int, length: Tensor, form: Form = "normal", *, theta: float = 1e4, train: int = 16) -> Tensor:
    """Angles a step for one axis with ``dim`` dimensions: length (...) -> (..., dim / 2)."""
    power = torch.arange(0, dim, 2, device=length.device, dtype=length.dtype) / dim
    base = theta**-power
    s = (length / train).clamp_min(1.0).unsqueeze(-1)
    ntk = (theta * s ** (dim / (dim - 2))) ** -power
    if form == "normal":
        return base.expand_as(ntk)
    if form == "linear":
        return base / s
    if form.startswith("ntk-aware"):
        return ntk
    parts = TURNS["yarn" if form == "yarn" else "parts"]
    slow = base / s
    if form == "ntk-by-parts":
        mask = _ramp(parts[0], dim, theta, train, length)
        slow = slow * (1 - mask) + ntk * mask
    mask = _ramp(parts[-1], dim, theta, train, length)
    return slow * (1 - mask) + base * mask


class VisionRotary(nn.Module):
    """grid (B, 2, N) and size (B, 2) or (B, N, 2), (h, w), -> cos and sin (B, N, head). ``size`` is needed unless ``form`` is normal."""

    def __init__(self, head: int, form: Form = "normal", *, theta: float = 1e4, train: int = 16, decouple: bool = False) -> None:
        super().__init__()
        if head < 8 or head % 4:
            raise ValueError(f"head must be a multiple of 4 and at least 8, not {head!r}")
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
        self.dim, self.form, self.theta, self.train_length, self.decouple = head // 2, form, theta, train, decouple

    def forward(self, grid: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if size is None:
            if self.form != "normal":
                raise ValueError(f"size must be given for form {self.form}, not None")
            size = grid.new_full((len(grid), 2), self.train_length)
        size = (size if size.ndim == 3 else size.unsqueeze(1)).float()
        axes = size if self.decouple else size.amax(-1, keepdim=True).expand_as(size)
        step = frequencies(self.dim, axes, self.form, theta=self.theta, train=self.train_length)  # (B, 1 or N, 2, dim / 2)
        place = grid.flip(1).transpose(1, 2).float()  # row first
        angle = (place.unsqueeze(-1) * step).flatten(2).repeat_interleave(2, -1)
        factor = self._factor(size)
        return angle.cos() * factor, angle.sin() * factor

    def _factor(self, size: Tensor) -> Tensor:
        """What cos and sin are multiplied by, (B, 1 or N, 1)."""
        longest = size.amax(-1, keepdim=True)
        if self.form == "yarn":
            return 0.1 * (longest / self.train_length).clamp_min(1.0).log() + 1
        if not self.form.endswith(("pro1", "pro2")):
            return torch.ones_like(longest)
        now, train = (longest, self.train_length) if self.form.endswith("pro1") else (size.prod(-1, keepdim=True), self.train_length**2)
        return torch.where(2 * now <= train, 1.0, ((2 * now).log() / math.log(train)).sqrt())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn adjacent pairs: x (B, heads, N, head), cos and sin (B, N, head)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)  # type: ignore[no-untyped-call]
    return x * cos.unsqueeze(1).to(x.dtype) + torch.stack((-b, a), -1).flatten(-2) * sin.unsqueeze(1).to(x.dtype)
