"""Sum over a whole map: the mean but for its divisor."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .average_pool import sum_type
from .base import Array, Op, TensorType


@dataclass(frozen=True, kw_only=True, eq=False)
class GlobalAveragePool(Op):
    """The exact sum of every channel, (H, W, C) to (1, 1, C). The divisor H·W goes into the requantization: see AveragePool."""

    name = "global_average_pool"

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        return (replace(sum_type(x, x.pixels), height=1, width=1),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        return (inputs[0].astype(np.int64).sum(axis=(1, 2), keepdims=True),)
