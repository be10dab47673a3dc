# amaranth: UnusedElaboratable=no
"""Max-pooling unit."""
from __future__ import annotations

from amaranth import Module, Mux
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.paged import line_buffer
from hw.params import Lanes, LineBuffer, Window
from hw.units.average_pool import window_words
from hw.units.base import Unit, signature


class MaxPoolUnit(Unit):
    """Greatest value of every window, outside the map never. Golden model: :meth:`sw.ops.max_pool.MaxPool.golden`.

    Throughput: one tap of ``i.lanes`` channels a cycle. Latency: five cycles from the last beat that a result needs.

    Parameters: ``height``, ``width``, ``channels`` of the input map; ``window``; ``lines``: the line buffer
    (:func:`hw.lib.paged.line_buffer`); ``i`` lanes of both streams. Raises ValueError if the window does not fit.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, height: int, width: int, channels: int, window: Window, i: Lanes, lines: LineBuffer = "ring") -> None:
        self.window = line_buffer(lines, height=height, width=width, channels=channels, window=window, i=i, order="group", fill=i.lowest)
        self.channels = channels
        super().__init__({"i": In(signature(i)), "o": Out(signature(i))})

    @property
    def frame_cycles(self) -> int:
        """Taps of all output pixels and channel groups, or input beats if those are more."""
        return self.window.frame_cycles

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.window = self.window
        wiring.connect(m, wiring.flipped(self.i), self.window.i)
        x, first, used = window_words(m, self.window, self.channels, self.o)
        with m.If(self.window.o.valid & self.window.o.ready):
            for k, best in enumerate(self.o.payload):
                value = Mux(used[k], x[k], 0)
                with m.If(first | (value > best)):
                    m.d.sync += best.eq(value)
        return m
