"""Deformable depthwise convolution: one dilation a pixel, or a free offset for every tap, shared by all channels."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hw.params import DeformRing

from .base import Array, Op, TensorType, accumulator, expect_channels, integers, signed_bits


@dataclass(frozen=True, kw_only=True, eq=False)
class Deform(Op):
    """CoDeNet's operator (FPGA'21, section 4; DESIGN.md section 3), on integers.

    Inputs: ``x`` (H, W, C) and ``offset`` (H, W, 1), a code in steps of 2^-F pixel, F = ``frac_bits``. The dilation at a pixel is
    s = (code + ``base``)·2^-F: ``base`` is 2^F (the default) where the code is
    o = s - 1, and 0 where it is s itself. Tap (i, j), i and j in -(K-1)/2..(K-1)/2, lies at p + s·(i, j). With ``free``, ``offset``
    is (H, W, 2·K·K), y before x, taps row by row as in ONNX, and tap (i, j) lies at p + (i, j) + offset·2^-F. A coordinate c
    (in 2^-F pixels) splits into c >> F and c & (2^F - 1); the four bilinear weights are exact integers whose sum is 2^(2F); a
    neighbour outside the map counts 0 by itself.

    ``acc = bias + Σ_taps weights[tap, c] · Σ_neighbours bilinear · x``: the accumulator and ``bias`` (C,) are at the scale
    of x · weights · 2^(-2F). Attributes: ``weights`` (K, K, C), K odd; ``low``, ``high``: range of the code, which saturates;
    ``upsample`` f, a power of two: the map is ``x`` with every pixel repeated f times in both directions, which is never stored:
    H and W are ``offset``'s, ``x`` is (H / f, W / f, C).
    """

    name = "deform"
    weights: Array
    bias: Array
    frac_bits: int
    low: int
    high: int
    base: int | None = None
    free: bool = False
    upsample: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", integers("weights", self.weights, 3))
        object.__setattr__(self, "bias", integers("bias", self.bias, 1))
        if self.weights.shape[0] != self.weights.shape[1] or self.weights.shape[0] % 2 == 0:
            raise ValueError(f"weights must be (K, K, C) with K odd, not {self.weights.shape!r}")
        if self.bias.shape != self.weights.shape[2:]:
            raise ValueError(f"bias must have {self.weights.shape[2]} entries, not shape {self.bias.shape!r}")
        if not 0 <= self.frac_bits <= 4:
            raise ValueError(f"frac_bits must be in 0..4, not {self.frac_bits!r}")
        if self.free and self.base is not None:
            raise ValueError(f"base must be left out with free offsets, not {self.base!r}")
        if self.upsample < 1 or self.upsample & self.upsample - 1:
            raise ValueError(f"upsample must be a power of two, not {self.upsample!r}")
        if self.low > self.high:
            raise ValueError(f"low must be at most high, not {self.low!r} > {self.high!r}")

    @property
    def origin(self) -> int:
        """What is added to a code to give the dilation in steps of 2^-F."""
        return 1 << self.frac_bits if self.base is None else self.base

    @property
    def reach(self) -> int:
        """Rows (and columns) around a pixel that a tap's own position can touch: R = ceil(max|s|·(K-1)/2).

        Free offsets: (K-1)/2 + ceil(max|offset|).
        """
        half, one = int(self.weights.shape[0] // 2), 1 << self.frac_bits
        if self.free:
            return half + -(-max(abs(self.low), abs(self.high)) // one)
        furthest = max(abs(self.low + self.origin), abs(self.high + self.origin)) * half
        return -(-furthest // one)

    @property
    def offsets(self) -> int:
        """Channels of ``offset``."""
        return 2 * int(self.weights.shape[0]) ** 2 if self.free else 1

    @property
    def banks(self) -> int:
        """Memories that the unit's ring has in each direction: all four bilinear neighbours in one cycle, or the only one."""
        return 2 if self.frac_bits else 1

    def ring(self, x: TensorType) -> DeformRing:
        """The rows of ``x`` that the unit keeps."""
        return DeformRing(height=x.height, reach=self.reach, repeat=self.upsample)

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, offset = inputs
        channels = self.weights.shape[2]
        expect_channels("deform", x.channels, channels)
        expect_channels("deform's offset", offset.channels, self.offsets)
        height, width = x.height * self.upsample, x.width * self.upsample
        if (height, width) != (offset.height, offset.width):
            raise ValueError(f"offset must be {height}x{width} like its map, not {offset.height}x{offset.width}")
        if self.low < offset.lowest or self.high > offset.highest:
            raise ValueError(f"offset must hold {self.low}..{self.high}, its type is {offset}")
        low, high = accumulator(x, self.weights.reshape(-1, channels).T, self.bias, gain=1 << 2 * self.frac_bits)
        return (TensorType(height=height, width=width, channels=channels, bits=signed_bits(low, high), signed=True),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        small, offset = inputs
        size = self.weights.shape[0]
        x = small.astype(np.int64).repeat(self.upsample, axis=1).repeat(self.upsample, axis=2)
        acc = np.zeros(x.shape, np.int64) + self.bias
        for i in range(size):
            for j in range(size):
                acc += self.weights[i, j] * self._sample(x, *self.distance(offset, i, j))
        return (acc,)

    def distance(self, offset: Array, i: int, j: int) -> tuple[Array, Array]:
        """How far tap (i, j) lies from its pixel, down and right, in 2^-F pixels; each (N, H, W)."""
        half = self.weights.shape[0] // 2
        code = np.clip(offset.astype(np.int64), self.low, self.high)
        if self.free:
            tap = 2 * (i * self.weights.shape[0] + j)
            return code[..., tap] + (i - half << self.frac_bits), code[..., tap + 1] + (j - half << self.frac_bits)
        dilation = code[..., 0] + self.origin
        return (i - half) * dilation, (j - half) * dilation

    def _sample(self, x: Array, down_by: Array, right_by: Array) -> Array:
        """The map at those distances from every pixel, times 2^(2F)."""
        frac, one = self.frac_bits, 1 << self.frac_bits
        _, height, width, _ = x.shape
        row = (np.arange(height)[:, None] << frac) + down_by
        col = (np.arange(width) << frac) + right_by
        total = np.zeros(x.shape, np.int64)
        for down in (0, 1):
            for right in (0, 1):
                y, x_ = (row >> frac) + down, (col >> frac) + right
                fy, fx = row & one - 1, col & one - 1
                weight = (fy if down else one - fy) * (fx if right else one - fx)
                inside = (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width)
                image = np.arange(len(x))[:, None, None]
                value = x[image, np.clip(y, 0, height - 1), np.clip(x_, 0, width - 1)]
                total += (weight * inside)[..., None] * value
        return total

    def multiplications(self, *inputs: TensorType) -> int:
        return inputs[1].pixels * int(np.prod(self.weights.shape))
