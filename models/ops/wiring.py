"""Operators without arithmetic, each a module of its own so that torch.fx sees it as a leaf with a path."""
from __future__ import annotations

import torch
from torch import Tensor, nn


class Concat(nn.Module):
    """Join maps (N, C_i, H, W) along the channels."""

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps, 1)


class Split(nn.Module):
    """Cut a map (N, C, H, W) into two halves of the channels, first half first."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.chunk(2, 1)


class Shuffle(nn.Module):
    """ShuffleNet's channel shuffle: channel ``g * C/groups + i`` moves to ``i * groups + g``."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Add(nn.Module):
    """Sum of two maps (N, C, H, W) of one quantizer; a quantizer follows."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Upsample(nn.Module):
    """Repeat every pixel ``factor`` x ``factor`` times: nearest neighbour."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=self.factor, mode="nearest")
