"""Table unit."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from hw.lib.groups import last_group, used_lanes
from hw.lib.store import table
from hw.params import Ints, Lanes

from .base import Unit, signature


class TableUnit(Unit):
    """A value of the table for every value that comes. Golden model: sw.ops.table.Table.golden.

    A ROM a lane (hw/lib/store.py). Throughput one beat a cycle, latency 1; ready passes through from the output.

    Parameters
    ----------
    height, width, channels: of the map
    values: 2^``i.bits`` of them, from the least input on
    i, o: streams, with equal lanes
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, channels: int, values: Ints, i: Lanes, o: Lanes, height: int = 1, width: int = 1) -> None:
        if channels < 1:
            raise ValueError(f"channels must be a positive integer, not {channels!r}")
        if len(values) != 1 << i.bits:
            raise ValueError(f"values must be {1 << i.bits} for {i.bits} bits, not {len(values)}")
        if min(values) < o.lowest or max(values) > o.highest:
            raise ValueError(f"values must lie in {o.lowest}..{o.highest}, not {min(values)}..{max(values)}")
        if i.lanes != o.lanes:
            raise ValueError(f"i and o must have equal lanes, not {i.lanes!r} and {o.lanes!r}")
        self.channels, self.i_lanes, self.o_lanes, self.groups = channels, i, o, i.beats(channels)
        self.beats = height * width * self.groups
        # By the bits of the input: from 0 on, then the negative ones.
        self.values = [*values[-i.lowest :], *values[: -i.lowest]]
        super().__init__({"i": In(signature(i)), "o": Out(signature(o))})

    @property
    def frame_cycles(self) -> int:
        """One cycle a beat."""
        return self.beats

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        bits = self.o_lanes.bits
        values = [v & (1 << bits) - 1 for v in self.values]
        step = Signal()
        m.d.comb += [step.eq(~self.o.valid | self.o.ready), self.i.ready.eq(step)]
        last = last_group(m, self.groups, step & self.i.valid)
        used = Signal(self.i_lanes.lanes)
        with m.If(step):
            m.d.sync += [self.o.valid.eq(self.i.valid), used.eq(Cat(used_lanes(self.channels, self.i_lanes, last)))]
        found = []
        for k in range(self.i_lanes.lanes):
            found.append(Mux(used[k], table(m, f"values{k}", values, bits, self.i.payload[k].as_unsigned(), step), 0))
        m.d.comb += self.o.payload.as_value().eq(Cat(found))
        return m
