"""Depthwise convolution: one kernel a channel."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hw.params import Window

from .base import Array, Op, TensorType, accumulator, expect_channels, integers, signed_bits
from .windows import windows


@dataclass(frozen=True, kw_only=True, eq=False)
class Depthwise(Op):
    """``acc[y, x, c] = bias[c] + Σ_{i,j} weights[i, j, c] · x[y·s + i·d - top, x·s + j·d - left, c]``, 0 outside.

    Attributes: ``weights`` (KH, KW, C) integers, ``bias`` (C,) at accumulator scale, ``window``.
    """

    name = "depthwise"
    weights: Array
    bias: Array
    window: Window

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", integers("weights", self.weights, 3))
        object.__setattr__(self, "bias", integers("bias", self.bias, 1))
        if self.weights.shape[:2] != self.window.kernel:
            raise ValueError(f"weights must be (KH, KW, C) with a {self.window.kernel} kernel, not {self.weights.shape!r}")
        if self.bias.shape != self.weights.shape[2:]:
            raise ValueError(f"bias must have {self.weights.shape[2]} entries, not shape {self.bias.shape!r}")

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        channels = self.weights.shape[2]
        expect_channels("depthwise", x.channels, channels)
        height, width = self.window.out_size(x.height, x.width)
        low, high = accumulator(x, self.weights.reshape(-1, channels).T, self.bias)
        return (TensorType(height=height, width=width, channels=channels, bits=signed_bits(low, high), signed=True),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        cut = windows(x.astype(np.int64), self.window)
        return (np.einsum("nyxijc,ijc->nyxc", cut, self.weights) + self.bias,)

    def multiplications(self, *inputs: TensorType) -> int:
        height, width = self.window.out_size(inputs[0].height, inputs[0].width)
        return height * width * int(np.prod(self.weights.shape))
