"""Add unit."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.params import Lanes

from .base import Unit, signature


class AddUnit(Unit):
    """Sum of two maps, lane by lane, one bit wider than they are. Golden model: sw.ops.add.Add.golden.

    Throughput one beat a cycle, latency 1; ready is registered at the output. A beat is taken of both inputs together.

    Parameters
    ----------
    height, width, channels: of the maps
    i: type of both inputs

    Members
    -------
    i0, i1: streams in; o: stream out, lanes of ``i``
    """

    i0: stream.Interface
    i1: stream.Interface
    o: stream.Interface

    def __init__(self, *, channels: int, i: Lanes, height: int = 1, width: int = 1) -> None:
        if channels < 1:
            raise ValueError(f"channels must be a positive integer, not {channels!r}")
        self.channels, self.groups = channels, i.beats(channels)
        self.beats = height * width * self.groups
        self.lanes, self.sums = i, replace(i, bits=i.bits + 1)
        super().__init__({"i0": In(signature(i)), "i1": In(signature(i)), "o": Out(signature(self.sums))})

    @property
    def frame_cycles(self) -> int:
        """One cycle a beat."""
        return self.beats

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.slice = out = Fifo(self.sums, 2)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        both = self.i0.valid & self.i1.valid
        m.d.comb += [out.i.valid.eq(both), self.i0.ready.eq(both & out.i.ready), self.i1.ready.eq(both & out.i.ready)]
        last = self.last_group(m, out.i.valid & out.i.ready)
        filled = self.channels - (self.groups - 1) * self.lanes.lanes
        for k in range(self.lanes.lanes):
            total = self.i0.payload[k] + self.i1.payload[k]
            m.d.comb += out.i.payload[k].eq(total if k < filled else Mux(last, 0, total))
        return m

    def last_group(self, m: Module, taken: Value) -> Value:
        """Whether the beat is a pixel's last, whose lanes may be partly unused: those leave as 0."""
        if self.groups == 1:
            return Const(1)
        group = Signal(range(self.groups))
        with m.If(taken):
            m.d.sync += group.eq(Mux(group == self.groups - 1, 0, group + 1))
        return group == self.groups - 1
