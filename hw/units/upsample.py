"""Nearest-neighbour upsampling unit."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.params import Lanes

from .base import Unit, signature

#: Entries of the ring beyond one row: what is written while the last reads of a row free their entries.
SLACK = 4


class UpsampleUnit(Unit):
    """Repeats every pixel ``factor`` times in both directions.

    Golden model: sw.ops.upsample.Upsample.golden. A ring of one row and a little more: a row is read ``factor`` times, every
    pixel ``factor`` times in turn; entries are freed by their last read and taken by the next row at once. Throughput one
    beat of the output a cycle, latency 3 cycles; ready is registered.

    Parameters
    ----------
    height, width, channels: of the map that comes in
    factor: at least 2
    i: stream in, also the type of the output
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, height: int, width: int, channels: int, factor: int, i: Lanes) -> None:
        if factor < 2:
            raise ValueError(f"factor must be at least 2, not {factor!r}")
        self.height, self.width, self.factor, self.lanes = height, width, factor, i
        self.beats = i.beats(channels)
        self.channels = channels
        super().__init__({"i": In(signature(i)), "o": Out(signature(i))})

    @property
    def frame_cycles(self) -> int:
        return self.height * self.width * self.factor**2 * self.beats

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.slice = out = Fifo(self.lanes, 2)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        row = self.width * self.beats
        depth = row + SLACK
        m.submodules.row = memory = Memory(shape=self.lanes.width, depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port()

        have, used = Signal(range(2 * depth)), Signal(range(depth + 1))  # entries since the row's start; entries not yet freed
        store, issue, free, row_end = Signal(), Signal(), Signal(), Signal()
        write_addr = Signal(range(depth))
        m.d.comb += [self.i.ready.eq(used != depth), store.eq(self.i.valid & self.i.ready)]
        m.d.comb += [write.addr.eq(write_addr), write.data.eq(self.masked(m)), write.en.eq(store)]
        with m.If(store):
            m.d.sync += write_addr.eq(Mux(write_addr == depth - 1, 0, write_addr + 1))

        fetched = Signal()  # the memory's output holds a beat
        advance = Signal()
        m.d.comb += [advance.eq(~fetched | out.i.ready), read.en.eq(advance)]
        m.d.comb += [out.i.valid.eq(fetched), out.i.payload.as_value().eq(read.data)]
        entry = self.walk(m, issue, free, row_end, read.addr, depth)
        m.d.comb += issue.eq(advance & (entry < have))
        with m.If(advance):
            m.d.sync += fetched.eq(issue)
        m.d.sync += [used.eq(used + store - free), have.eq(have + store - Mux(row_end, row, 0))]
        return m

    def masked(self, m: Module) -> Any:
        """The beat coming in, with the unused lanes of a pixel's last beat cleared."""
        raw = self.i.payload.as_value()
        used = self.channels - (self.beats - 1) * self.lanes.lanes
        if used == self.lanes.lanes:
            return raw
        group = Signal(range(self.beats), name="i_group")
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += group.eq(Mux(group == self.beats - 1, 0, group + 1))
        return Mux(group == self.beats - 1, raw[: used * self.lanes.bits], raw)

    def walk(self, m: Module, issue: Signal, free: Signal, row_end: Signal, addr: Any, depth: int) -> Signal:
        """The order of reads: rows ``factor`` times, in them pixels ``factor`` times, in them channel groups.

        Returns the entry of the row to read; ``addr`` is its place in the ring.
        """
        entry, start = Signal(range(self.width * self.beats + 1)), Signal(range(depth))
        group, column = Signal(range(self.beats)), Signal(range(self.width))
        again_x, again_y = Signal(range(self.factor)), Signal(range(self.factor))
        place = Signal(range(2 * depth))
        m.d.comb += [place.eq(start + entry), addr.eq(Mux(place >= depth, place - depth, place))]
        last_group, last_column = group == self.beats - 1, column == self.width - 1
        last_x, last_y = again_x == self.factor - 1, again_y == self.factor - 1
        m.d.comb += [free.eq(issue & last_x & last_y), row_end.eq(issue & last_group & last_x & last_column & last_y)]
        with m.If(issue):
            m.d.sync += [group.eq(group + 1), entry.eq(entry + 1)]
            with m.If(last_group):
                m.d.sync += [group.eq(0), again_x.eq(again_x + 1), entry.eq(entry - (self.beats - 1))]
                with m.If(last_x):
                    m.d.sync += [again_x.eq(0), column.eq(column + 1), entry.eq(entry + 1)]
                    with m.If(last_column):
                        m.d.sync += [column.eq(0), again_y.eq(Mux(last_y, 0, again_y + 1)), entry.eq(0)]
        with m.If(row_end):
            # entry is the row's last, so the next row starts one place on.
            m.d.sync += start.eq(Mux(addr == depth - 1, 0, addr + 1))
        return entry
