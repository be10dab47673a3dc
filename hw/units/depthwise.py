# amaranth: UnusedElaboratable=no
"""Depthwise convolution unit."""
from __future__ import annotations

from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.mac import Mac
from hw.lib.window import WindowStage
from hw.params import Ints, Ints3, Lanes, Window
from hw.units.base import Unit, signature


class DepthwiseUnit(Unit):
    """One kernel a channel, bias added. Golden model: :meth:`sw.ops.depthwise.Depthwise.golden`.

    A line buffer emits the taps of each channel group, a row of multipliers accumulates them. Throughput: one tap of
    ``i.lanes`` channels a cycle. Latency: six cycles from the last beat that a result needs.

    Parameters: ``height``, ``width``, ``channels`` of the input map; ``window``; ``weights`` (KH, KW, C); ``bias`` (C,);
    ``i``; ``o``: as many lanes, signed, the exact accumulator. Raises ValueError if they do not fit together.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, height: int, width: int, channels: int, window: Window, weights: Ints3, bias: Ints, i: Lanes, o: Lanes) -> None:
        if (len(weights), *{len(row) for row in weights}) != window.kernel:
            raise ValueError(f"weights must be (KH, KW, C) with a {window.kernel} kernel, not rows of {[len(row) for row in weights]}")
        if len(bias) != channels:
            raise ValueError(f"bias must have {channels} entries, not {len(bias)}")
        self.window = WindowStage(height=height, width=width, channels=channels, window=window, i=i, order="group")
        self.mac = Mac(weights=[tap for row in weights for tap in row], bias=bias, i=i, o=o)
        super().__init__({"i": In(signature(i)), "o": Out(signature(o))})

    @property
    def frame_cycles(self) -> int:
        """Taps of all output pixels and channel groups, or input beats if those are more."""
        return self.window.frame_cycles

    @property
    def multipliers(self) -> int:
        """One a lane."""
        return self.mac.multipliers

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.window, m.submodules.mac = self.window, self.mac
        wiring.connect(m, wiring.flipped(self.i), self.window.i)
        wiring.connect(m, self.window.o, self.mac.i)
        wiring.connect(m, self.mac.o, wiring.flipped(self.o))
        return m
