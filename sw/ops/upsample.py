"""Nearest-neighbour upsampling."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .base import Array, Op, TensorType


@dataclass(frozen=True, kw_only=True, eq=False)
class Upsample(Op):
    """Repeat every pixel ``factor`` times in both directions."""

    name = "upsample"
    factor: int = 2

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ValueError(f"factor must be at least 2, not {self.factor!r}")

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        return (replace(x, height=x.height * self.factor, width=x.width * self.factor),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        return (x.astype(np.int64).repeat(self.factor, axis=1).repeat(self.factor, axis=2),)
