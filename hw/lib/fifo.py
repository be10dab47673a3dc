"""Stream buffers."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import fifo, stream
from amaranth.lib.wiring import In, Out

from hw.params import Lanes
from hw.units.base import Unit, signature


class Fifo(Unit):
    """A queue of ``depth`` beats.

    Throughput one beat a cycle. Depth 1 is a register whose ready passes through from the output; depth 2 is two registers
    that also cut the path of ready; deeper ones are a memory with synchronous read and a register (latency 2).

    Parameters
    ----------
    lanes: what a beat carries
    depth: beats it holds, at least 1

    Members
    -------
    i, o: streams of ``lanes``
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, lanes: Lanes, depth: int) -> None:
        if depth < 1:
            raise ValueError(f"depth must be a positive integer, not {depth!r}")
        self.lanes = lanes
        self.depth = depth
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
        else:
            m.submodules.queue = queue = fifo.SyncFIFOBuffered(width=self.lanes.width, depth=self.depth)
            m.d.comb += [
                queue.w_data.eq(self.i.payload.as_value()),
                queue.w_en.eq(self.i.valid),
                self.i.ready.eq(queue.w_rdy),
                self.o.payload.as_value().eq(queue.r_data),
                self.o.valid.eq(queue.r_rdy),
                queue.r_en.eq(self.o.ready),
            ]
        return m

    def one(self, m: Module) -> None:
        """A register."""
        valid = Signal()
        payload = Signal(self.lanes.width, reset_less=True)
        m.d.comb += [self.o.valid.eq(valid), self.o.payload.as_value().eq(payload), self.i.ready.eq(~valid | self.o.ready)]
        with m.If(self.i.ready):
            m.d.sync += [valid.eq(self.i.valid), payload.eq(self.i.payload.as_value())]

    def two(self, m: Module) -> None:
        """An output register, and a spare one that fills only while the output waits."""
        valid, full = Signal(), Signal()
        payload, spare = Signal(self.lanes.width, reset_less=True), Signal(self.lanes.width, reset_less=True)
        m.d.comb += [self.o.valid.eq(valid), self.o.payload.as_value().eq(payload), self.i.ready.eq(~full)]
        with m.If(~valid | self.o.ready):
            m.d.sync += [valid.eq(full | self.i.valid), payload.eq(Mux(full, spare, self.i.payload.as_value())), full.eq(0)]
        with m.Elif(~full):
            m.d.sync += [spare.eq(self.i.payload.as_value()), full.eq(self.i.valid)]
