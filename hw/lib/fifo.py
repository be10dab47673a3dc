"""Stream buffers."""
from __future__ import annotations

from typing import Any, Literal, get_args

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from hw.lib.store import ram
from hw.params import Lanes
from hw.units.base import Unit, signature

#: Where the beats are kept: by the rule of hw/lib/store.py, registers, LUT RAM, block RAM.
Kind = Literal["auto", "registers", "lut", "block"]


class Fifo(Unit):
    """A queue of ``depth`` beats.

    Throughput one beat a cycle. Depth 1 is a register whose ready passes through from the output; depth 2 is two registers
    that also cut the path of ready; deeper ones are a memory with synchronous read and a register (latency 2), or, of kind
    "registers", a shift register with a multiplexer behind it (latency 1).

    Parameters
    ----------
    lanes: what a beat carries
    depth: beats it holds, at least 1
    kind: where the beats of a depth of 3 and more are kept

    Members
    -------
    i, o: streams of ``lanes``
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, lanes: Lanes, depth: int, kind: Kind = "auto") -> None:
        if depth < 1:
            raise ValueError(f"depth must be a positive integer, not {depth!r}")
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}")
        self.lanes = lanes
        self.depth = depth
        self.kind = kind
        super().__init__({"i": In(signature(lanes)), "o": Out(signature(lanes))})

    @property
    def frame_cycles(self) -> int:
        """One cycle a beat: a queue knows no frames."""
        return 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        if self.depth == 1:
            self.one(m)
        elif self.depth == 2:
            self.two(m)
        elif self.kind == "registers":
            self.shift(m)
        else:
            self.memory(m)
        return m

    def one(self, m: Module) -> None:
        """A register."""
        valid = Signal()
        payload = Signal(self.lanes.width, reset_less=True)
        m.d.comb += [self.o.valid.eq(valid), self.o.payload.as_value().eq(payload), self.i.ready.eq(~valid | self.o.ready)]
        with m.If(self.i.ready):
            m.d.sync += [valid.eq(self.i.valid), payload.eq(self.i.payload.as_value())]

    def two(self, m: Module) -> None:
        """An output register, and a spare one that fills only while the output waits.

        Ready is a register: a pipeline in front stands still by it alone, a bubble at its end as well. That lets no beat wait longer, since
        the output has one while the spare is full, and whatever enables many registers should itself be one.
        """
        valid, full = Signal(), Signal()
        payload, spare = Signal(self.lanes.width, reset_less=True), Signal(self.lanes.width, reset_less=True)
        m.d.comb += [self.o.valid.eq(valid), self.o.payload.as_value().eq(payload), self.i.ready.eq(~full)]
        with m.If(~valid | self.o.ready):
            m.d.sync += [valid.eq(full | self.i.valid), payload.eq(Mux(full, spare, self.i.payload.as_value())), full.eq(0)]
        with m.Elif(~full):
            m.d.sync += [spare.eq(self.i.payload.as_value()), full.eq(self.i.valid)]

    def shift(self, m: Module) -> None:
        """Beats move on when one comes in; a register tells where the oldest is, so that only a multiplexer stands before the output."""
        valid, oldest = Signal(), Signal(range(self.depth))
        beats = [Signal(self.lanes.width, name=f"beat_{k}", reset_less=True) for k in range(self.depth)]
        m.d.comb += [self.i.ready.eq(oldest != self.depth - 1), self.o.valid.eq(valid)]
        m.d.comb += self.o.payload.as_value().eq(Array(beats)[oldest])
        put, get = self.i.valid & self.i.ready, self.o.valid & self.o.ready
        with m.If(put & ~get):
            m.d.sync += [valid.eq(1), oldest.eq(oldest + valid)]
        with m.Elif(get & ~put):
            m.d.sync += [valid.eq(oldest != 0), oldest.eq(Mux(oldest == 0, 0, oldest - 1))]
        with m.If(put):
            m.d.sync += beats[0].eq(self.i.payload.as_value())
            m.d.sync += [beats[k].eq(beats[k - 1]) for k in range(1, self.depth)]

    def memory(self, m: Module) -> None:
        """A ring of depth - 1 beats and the register of its read port."""
        size = self.depth - 1
        m.submodules.queue = queue = ram(self.lanes.width, size, self.kind if self.kind in ("lut", "block") else None)
        w_port, r_port = queue.write_port(), queue.read_port()
        level, valid = Signal(range(size + 1)), Signal()  # beats in the ring; whether the register holds one
        put, get = Signal(), Signal()
        m.d.comb += [self.i.ready.eq(level != size), put.eq(self.i.valid & self.i.ready)]
        m.d.comb += [get.eq((level != 0) & (~valid | self.o.ready)), self.o.valid.eq(valid)]
        m.d.comb += [w_port.data.eq(self.i.payload.as_value()), w_port.en.eq(put)]
        m.d.comb += [self.o.payload.as_value().eq(r_port.data), r_port.en.eq(get)]
        for port, moves in ((w_port, put), (r_port, get)):
            with m.If(moves):
                m.d.sync += port.addr.eq(Mux(port.addr == size - 1, 0, port.addr + 1))
        m.d.sync += level.eq(level + put - get)
        with m.If(get):
            m.d.sync += valid.eq(1)
        with m.Elif(self.o.ready):
            m.d.sync += valid.eq(0)
