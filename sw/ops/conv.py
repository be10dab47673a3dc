"""Dense and pointwise convolution: activations and weights to accumulators."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hw.params import Window

from .base import Array, Op, TensorType, accumulator, expect_channels, integers, signed_bits
from .windows import exact_matmul, windows

#: The window of a pointwise convolution.
POINT = Window()


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(Op):
    """``acc[y, x, o] = bias[o] + Σ_{i,j,c} weights[o, i, j, c] · x[y·s + i·d - top, x·s + j·d - left, c]``, 0 outside.

    Attributes: ``weights`` (OC, KH, KW, IC) integers, ``bias`` (OC,) at accumulator scale, ``window``.
    """

    name = "conv"
    weights: Array
    bias: Array
    window: Window = POINT

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", integers("weights", self.weights, 4))
        object.__setattr__(self, "bias", integers("bias", self.bias, 1))
        if self.weights.shape[1:3] != self.window.kernel:
            raise ValueError(f"weights must be (OC, KH, KW, IC) with a {self.window.kernel} kernel, not {self.weights.shape!r}")
        if self.bias.shape != self.weights.shape[:1]:
            raise ValueError(f"bias must have {self.weights.shape[0]} entries, not shape {self.bias.shape!r}")

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        expect_channels("conv", x.channels, self.weights.shape[3])
        height, width = self.window.out_size(x.height, x.width)
        low, high = accumulator(x, self.weights.reshape(len(self.weights), -1), self.bias)
        return (TensorType(height=height, width=width, channels=len(self.weights), bits=signed_bits(low, high), signed=True),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        cut = windows(x, self.window)
        flat = cut.reshape(*cut.shape[:3], -1)
        return (exact_matmul(flat, self.weights.reshape(len(self.weights), -1).T) + self.bias,)

    def multiplications(self, *inputs: TensorType) -> int:
        height, width = self.window.out_size(inputs[0].height, inputs[0].width)
        return height * width * int(np.prod(self.weights.shape))
