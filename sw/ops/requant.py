"""Requantization: accumulators to activations."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .base import Array, Op, TensorType, expect_channels, integers

#: Ties upwards, ties to even, towards minus infinity.
Rounding = Literal["half_up", "half_even", "floor"]


def rescale(acc: Array, multiplier: Array, shift: Array, rounding: Rounding) -> Array:
    """``round(acc · multiplier · 2^-shift)`` on int64; the one copy of the rounding in software (hw/lib/fixed.py is its twin)."""
    product = acc.astype(np.int64) * multiplier
    half = np.int64(1) << (shift - 1)
    addend = {"floor": np.zeros_like(half), "half_up": half, "half_even": half - 1 + (product >> shift & 1)}[rounding]
    result: Array = (product + addend) >> shift
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class Requant(Op):
    """``y = clamp(round(acc · multiplier · 2^-shift), low, high)`` (DESIGN.md section 3).

    Attributes: ``multiplier`` (C,) signed, at most 17 bits; ``shift`` (C,) in 1..47; ``low``, ``high`` the clamp (a ReLU is
    a ``low`` of 0); ``bits``, ``signed`` the output type. The bias is already in the accumulator.
    """

    name = "requant"
    multiplier: Array
    shift: Array
    low: int
    high: int
    bits: int
    signed: bool
    rounding: Rounding = "half_up"

    def __post_init__(self) -> None:
        object.__setattr__(self, "multiplier", integers("multiplier", self.multiplier, 1))
        object.__setattr__(self, "shift", integers("shift", self.shift, 1))
        if self.multiplier.shape != self.shift.shape:
            raise ValueError(f"multiplier and shift must have equal shapes, not {self.multiplier.shape!r} and {self.shift.shape!r}")
        if np.abs(self.multiplier).max() >= 1 << 16:
            raise ValueError(f"multiplier must be less than 2^16 in magnitude, not {np.abs(self.multiplier).max()!r}")
        if self.shift.min() < 1 or self.shift.max() > 47:
            raise ValueError(f"shift must be in 1..47, not {self.shift.min()!r}..{self.shift.max()!r}")
        if self.rounding not in ("half_up", "half_even", "floor"):
            raise ValueError(f"rounding must be half_up, half_even or floor, not {self.rounding!r}")
        out = self.out_type(1, 1)
        if not out.lowest <= self.low <= self.high <= out.highest:
            raise ValueError(f"low and high must lie in {out.lowest}..{out.highest}, not {self.low!r}..{self.high!r}")

    def out_type(self, height: int, width: int) -> TensorType:
        """Type of the output on a map of that size."""
        return TensorType(height=height, width=width, channels=len(self.shift), bits=self.bits, signed=self.signed)

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        expect_channels("requant", x.channels, len(self.shift))
        if x.bits + 17 > 62:
            raise ValueError(f"requant takes at most 45 bits, not {x}")
        return (self.out_type(x.height, x.width),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        return (np.clip(rescale(x, self.multiplier, self.shift, self.rounding), self.low, self.high),)
