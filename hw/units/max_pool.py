# amaranth: UnusedElaboratable=no
"""Max-pooling unit."""
from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.ring import counter
from hw.lib.window import WindowStage
from hw.params import Lanes, Window
from hw.units.base import Unit, signature


class MaxPoolUnit(Unit):
    """Greatest value of every window, outside the map never. Golden model: :meth:`sw.ops.max_pool.MaxPool.golden`.

    Throughput: one tap of ``i.lanes`` channels a cycle. Latency: five cycles from the last beat that a result needs.

    Parameters: ``height``, ``width``, ``channels`` of the input map; ``window``; ``i`` lanes of both streams.
    Raises ValueError if the window does not fit.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, height: int, width: int, channels: int, window: Window, i: Lanes) -> None:
        self.window = WindowStage(height=height, width=width, channels=channels, window=window, i=i, order="group", fill=i.lowest)
        self.lanes, self.taps, self.channels = i, window.taps, channels
        super().__init__({"i": In(signature(i)), "o": Out(signature(i))})

    @property
    def frame_cycles(self) -> int:
        """Taps of all output pixels and channel groups, or input beats if those are more."""
        return self.window.frame_cycles

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.window = self.window
        wiring.connect(m, wiring.flipped(self.i), self.window.i)
        word, groups = self.window.o, self.window.groups
        tap, group = counter(self.taps, "tap"), counter(groups, "group")
        last = tap == self.taps - 1
        best = Signal(self.o.payload.shape(), reset_less=True)
        m.d.comb += word.ready.eq(~self.o.valid | self.o.ready)
        with m.If(word.ready):
            m.d.sync += self.o.valid.eq(word.valid & last)
        with m.If(word.valid & word.ready):
            m.d.sync += tap.eq(Mux(last, 0, tap + 1))
            with m.If(last):
                m.d.sync += group.eq(Mux(group == groups - 1, 0, group + 1))
            for k in range(self.lanes.lanes):
                greater = Mux((tap == 0) | (word.payload[k] > best[k]), word.payload[k], best[k])
                m.d.sync += best[k].eq(greater)
                used = (group != groups - 1) if (groups - 1) * self.lanes.lanes + k >= self.channels else 1
                with m.If(last):
                    m.d.sync += self.o.payload[k].eq(Mux(used, greater, 0))
        return m
