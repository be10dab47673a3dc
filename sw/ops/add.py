"""Element-wise sum of two maps of one scale."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .base import Array, Op, TensorType


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Op):
    """``y = a + b`` exactly: the result is one bit wider than its inputs, and a requantization follows.

    Both inputs have the same shape, type and scale; where a file's scales differ the front end requantizes to the coarser one.
    """

    name = "add"

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        a, b = inputs
        if a != b:
            raise ValueError(f"add's inputs must agree in size, channels, bits and sign, not {a} and {b}")
        return (replace(a, bits=a.bits + 1),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        a, b = inputs
        return (a.astype(np.int64) + b,)
