"""Sum over a window: the mean but for its divisor."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hw.params import Window

from .base import Array, Op, TensorType, signed_bits
from .windows import windows


def sum_type(x: TensorType, count: int) -> TensorType:
    """``x`` with the bits that sums of ``count`` of its elements take (none of them, too: padding counts as 0)."""
    low, high = min(count * x.lowest, 0), count * x.highest
    return replace(x, bits=signed_bits(low, high) if x.signed else high.bit_length())


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePool(Op):
    """The exact sum of every window, 0 outside the map. The division is the requantization's.

    A mean is the sum at a scale KH·KW times finer, so the divisor goes into the multiplier of the requantization that follows:
    m·2^-s stands for scale_in / (KH·KW · scale_out). Where KH·KW is a power of two that is exact; otherwise m has 16
    bits and the front end proves by trying all sums that every one is rounded as by the true quotient, or says how many are not.
    """

    name = "average_pool"
    window: Window

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        height, width = self.window.out_size(x.height, x.width)
        return (replace(sum_type(x, self.window.taps), height=height, width=width),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        return (windows(inputs[0].astype(np.int64), self.window).sum(axis=(3, 4)),)
