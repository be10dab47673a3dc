"""Global average-pooling unit."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw.lib.delay import delayed
from hw.lib.groups import last_group, used_lanes
from hw.lib.ring import counter
from hw.params import Lanes

from .average_pool import check_sums
from .base import Unit, signature


class GlobalAveragePoolUnit(Unit):
    """Exact sum of every channel of a map. Golden model: :meth:`sw.ops.global_average_pool.GlobalAveragePool.golden`.

    The sums go round in a delay of as many words as a pixel has beats. Throughput one beat a cycle, back to back across frames;
    latency 1 from a channel's last beat.

    Parameters: ``height``, ``width``, ``channels`` of the input map; ``i``; ``o``: as many lanes, wide enough for the sums.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, height: int, width: int, channels: int, i: Lanes, o: Lanes) -> None:
        if min(height, width, channels) < 1:
            raise ValueError(f"height, width and channels must be positive, not {(height, width, channels)!r}")
        check_sums(i, o, height * width)
        self.pixels, self.channels, self.groups, self.lanes = height * width, channels, i.beats(channels), o
        super().__init__({"i": In(signature(i)), "o": Out(signature(o))})

    @property
    def frame_cycles(self) -> int:
        """One cycle a beat."""
        return self.pixels * self.groups

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        pixel = counter(self.pixels, "pixel")
        end, step = Signal(), Signal()  # the map's last pixel; a beat is taken
        m.d.comb += [end.eq(pixel == self.pixels - 1), self.i.ready.eq(~self.o.valid | self.o.ready | ~end)]
        m.d.comb += step.eq(self.i.valid & self.i.ready)
        last = last_group(m, self.groups, step)
        with m.If(step & last):
            m.d.sync += pixel.eq(Mux(end, 0, pixel + 1))
        layout = self.o.payload.shape()
        sums = Signal(layout, name="sums")
        before = data.View(layout, delayed(m, sums.as_value(), self.groups, step, "before"))
        m.d.comb += [sums[k].eq(Mux(pixel == 0, 0, before[k]) + self.i.payload[k]) for k in range(self.lanes.lanes)]
        with m.If(self.i.ready & end):
            m.d.sync += self.o.valid.eq(self.i.valid)
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(step & end):
            m.d.sync += self.o.payload.as_value().eq(Cat(
                Mux(used, total, 0)[: self.lanes.bits]
                for used, total in zip(used_lanes(self.channels, self.lanes, last), sums, strict=True)
            ))  # fmt: skip
        return m
