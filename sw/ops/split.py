"""Split a map's channels into consecutive parts."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .base import Array, Op, TensorType, expect_channels


@dataclass(frozen=True, kw_only=True, eq=False)
class Split(Op):
    """Output k holds the next ``sizes[k]`` channels."""

    name = "split"
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ValueError(f"sizes must be at least two positive integers, not {self.sizes!r}")

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        expect_channels("split", x.channels, sum(self.sizes))
        return tuple(replace(x, channels=n) for n in self.sizes)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        return tuple(np.split(x.astype(np.int64), np.cumsum(self.sizes)[:-1], axis=3))
