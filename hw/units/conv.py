# amaranth: UnusedElaboratable=no
"""Convolution unit."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.matvec import MatVec
from hw.lib.window import WindowStage
from hw.params import Ints, Ints4, Lanes, Multiplier, RomKind, Window

from .base import Unit, signature


def by_beats(kernel: Any, simd: int) -> list[list[int]]:
    """One output channel's weights (KH, KW, IC) in the order that the beats come: tap by tap, in each the channel groups."""
    rows = []
    for tap in (tap for line in kernel for tap in line):
        padded = [*tap, *[0] * (-len(tap) % simd)]
        rows += [padded[k : k + simd] for k in range(0, len(padded), simd)]
    return rows


class ConvUnit(Unit):
    """Dense and pointwise convolution with bias, folded PE × SIMD; PE = ``o.lanes`` and SIMD = ``i.lanes``.

    Golden model: sw.ops.conv.Conv.golden. A window stage (where the kernel, stride or padding needs one) and a matrix-vector
    unit. Throughput: an output pixel every ceil(OC / PE) · KH · KW · ceil(IC / SIMD) cycles, back to back across pixels and
    frames. Latency: that of the window (4 cycles after the last beat needed) plus ``matvec.latency`` after it.

    Parameters
    ----------
    height, width, in_channels, out_channels: of the input map and the result
    window: kernel, stride, dilation, padding with 0
    weights: (OC, KH, KW, IC), bias: (OC,)
    i: stream in; o: stream out, signed, as wide as the accumulator

    Raises
    ------
    ValueError: if sizes do not agree
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(
        self,
        *,
        height: int,
        width: int,
        in_channels: int,
        out_channels: int,
        window: Window,
        weights: Ints4,
        bias: Ints,
        i: Lanes,
        o: Lanes,
        multiplier: Multiplier = "inferred",
        memory: RomKind = "auto",
    ) -> None:
        if len(weights) != out_channels or len(bias) != out_channels:
            raise ValueError(f"weights and bias must have {out_channels} rows, not {len(weights)} and {len(bias)}")
        shapes = {(len(k), len(line), len(tap)) for k in weights for line in k for tap in line}
        if shapes != {(*window.kernel, in_channels)}:
            raise ValueError(f"weights must be (OC, {window.kernel[0]}, {window.kernel[1]}, {in_channels}), not {sorted(shapes)}")
        out_height, out_width = window.out_size(height, width)
        self.out_pixels = out_height * out_width
        rows = [by_beats(kernel, i.lanes) for kernel in weights]
        self.matvec = MatVec(weights=rows, bias=bias, i=i, o=o, multiplier=multiplier, memory=memory)
        self.window: WindowStage | None = None
        if window != Window():
            self.window = WindowStage(height=height, width=width, channels=in_channels, window=window, i=i, order="tap")
        super().__init__({"i": In(signature(i)), "o": Out(signature(o))})

    @property
    def frame_cycles(self) -> int:
        """Steps of all output pixels, or input beats if those are more (a stride that drops pixels)."""
        computing = self.out_pixels * self.matvec.vector_cycles
        return computing if self.window is None else max(computing, self.window.frame_cycles)

    @property
    def multipliers(self) -> int:
        return self.matvec.multipliers

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.matvec = self.matvec
        wiring.connect(m, self.matvec.o, wiring.flipped(self.o))
        if self.window is None:
            wiring.connect(m, wiring.flipped(self.i), self.matvec.i)
        else:
            m.submodules.window = self.window
            wiring.connect(m, wiring.flipped(self.i), self.window.i)
            wiring.connect(m, self.window.o, self.matvec.i)
        return m
