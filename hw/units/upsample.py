"""Nearest-neighbour upsampling unit."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.arith import add_carry
from hw.lib.fifo import Fifo
from hw.lib.ring import Loop, strides
from hw.lib.store import ram
from hw.lib.walk import Walk, ring_address
from hw.params import Lanes

from .base import Unit, signature

#: Entries of the ring beyond one row: what is written while the last reads of a row free their entries.
SLACK = 4
#: Beats of a row that needs none: the first place is free long before the next row's first beat is read.
LONG = 16


def ring_beats(row: int) -> int:
    """Places for a row of ``row`` beats."""
    return row if row >= LONG else row + SLACK


class UpsampleUnit(Unit):
    """Repeats every pixel ``factor`` times in both directions.

    Golden model: sw.ops.upsample.Upsample.golden. A ring of one row (:func:`ring_beats`): a row is read ``factor`` times, every
    pixel ``factor`` times in turn; entries are freed by their last read and taken by the next row at once. Throughput one
    beat of the output a cycle, latency 4 cycles; ready is registered.

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
        row, factor = self.width * self.beats, self.factor
        depth = ring_beats(row)
        m.submodules.row = memory = ram(self.lanes.width, depth)
        write, read = memory.write_port(), memory.read_port()
        store, go, step = Signal(), Signal(), Signal()
        # Rows `factor` times, in them pixels `factor` times, in them channel groups.
        walk = Walk(m, go, {"y": self.height, "again_y": factor, "column": self.width, "again_x": factor, "group": self.beats})
        loops = (self.height, row), (factor, 0), (self.width, self.beats), (factor, 0), (self.beats, 1)
        moves = strides([Loop(1, self.height * row), *(Loop(count, by) for count, by in loops)])

        # Beats written from the current one on, and places free, each less 1: their signs decide.
        bits = signed((self.height * row + depth).bit_length() + 2)
        ahead, room = Signal(bits, init=-1), Signal(bits, init=depth - 1)
        last = Signal()  # nobody reads the current beat again
        with m.If(go):
            m.d.sync += last.eq((walk.at["again_x"] == factor - 1) & (walk.at["again_y"] == factor - 1))
        passed = walk.ready(m, go, "passed", [-n for n in moves], bits)
        m.d.sync += [
            ahead.eq(add_carry(ahead, Mux(go, passed, 0), store)),
            room.eq(add_carry(room, Mux(go & last, 0, -1), ~store)),
        ]
        write_addr = Signal(range(depth))
        m.d.comb += [self.i.ready.eq(~room[-1]), store.eq(self.i.valid & self.i.ready)]
        m.d.comb += [write.addr.eq(write_addr), write.data.eq(self.masked(m)), write.en.eq(store)]
        with m.If(store):
            m.d.sync += write_addr.eq(Mux(write_addr == depth - 1, 0, write_addr + 1))

        fetched, valid, word = Signal(), Signal(), Signal(self.lanes.width, reset_less=True)
        m.d.comb += [step.eq(out.i.ready), go.eq(step & ~ahead[-1])]
        m.d.comb += [read.addr.eq(ring_address(m, go, walk, moves, depth)), read.en.eq(step)]
        m.d.comb += [out.i.valid.eq(valid), out.i.payload.as_value().eq(word)]
        with m.If(step):
            m.d.sync += [fetched.eq(go), valid.eq(fetched), word.eq(read.data)]
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
