"""Any function of one value, as a table."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Array, Op, TensorType, integers

#: Inputs have at most this many bits.
TABLE_BITS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Table(Op):
    """``y = values[x - low]``: sigmoid, tanh, hard-swish, GELU... of an activation, one table for the whole tensor.

    Attributes: ``values`` (2^b,) for an input of b <= 8 bits, from its least value ``low`` on; ``bits``, ``signed``: the output type.
    """

    name = "table"
    values: Array
    low: int
    bits: int
    signed: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", integers("values", self.values, 1))
        size = len(self.values)
        if size & size - 1 or not 2 <= size <= 1 << TABLE_BITS:
            raise ValueError(f"values must be 2^b with b in 1..{TABLE_BITS}, not {size}")
        out = TensorType(height=1, width=1, channels=1, bits=self.bits, signed=self.signed)
        if self.values.min() < out.lowest or self.values.max() > out.highest:
            raise ValueError(f"values must lie in {out.lowest}..{out.highest}, not {self.values.min()}..{self.values.max()}")

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        if 1 << x.bits != len(self.values) or x.lowest != self.low:
            raise ValueError(f"a table of {len(self.values)} values from {self.low} on does not fit {x}")
        return (TensorType(height=x.height, width=x.width, channels=x.channels, bits=self.bits, signed=self.signed),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        return (self.values[x.astype(np.int64) - self.low],)
