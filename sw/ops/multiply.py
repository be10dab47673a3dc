"""Element-wise product of two maps."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .base import Array, Op, TensorType


@dataclass(frozen=True, kw_only=True, eq=False)
class Multiply(Op):
    """``y = a · b`` exactly, as many bits as both together; a requantization follows.

    The inputs agree in size and channels; their scales, bits and signs may differ (the product's scale is the product of the scales).
    """

    name = "multiply"

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        a, b = inputs
        if a.shape != b.shape:
            raise ValueError(f"multiply's inputs must agree in size and channels, not {a} and {b}")
        return (replace(a, bits=a.bits + b.bits, signed=a.signed or b.signed),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        a, b = inputs
        return (a.astype(np.int64) * b,)
