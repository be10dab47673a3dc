"""Frames at the edges: AXI4-Stream packets to frames of a fixed number of beats and back."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.params import Lanes
from hw.units.base import signature


def stream_bits(lanes: Lanes) -> int:
    """Width of TDATA for beats of ``lanes``: whole bytes, the payload in the lowest bits."""
    return -(-lanes.width // 8) * 8


class FrameIn(wiring.Component):
    """Packets of any length in, frames of exactly ``beats`` beats out; a wrong packet is counted and the next frame is right.

    * TLAST early: the frame is filled up with beats of zeros and counted as short. (The units inside always finish a frame.)
    * TLAST late: the frame ends where it must, what follows is dropped up to and with the next TLAST, and counted as long.

    Throughput one beat a cycle, no latency; after a short packet the input waits while zeros go in.

    Parameters
    ----------
    lanes: what a beat carries
    beats: of a frame

    Members
    -------
    i: stream in; last: TLAST beside its payload; o: stream out
    go: a new frame may begin; looked at between frames only
    began, ended: the first, the last beat of a frame leaves in this cycle; short, long: a wrong packet was noticed in this cycle
    open: a frame has begun and not ended; dropping: the rest of a long packet is being dropped
    """

    i: stream.Interface
    o: stream.Interface
    last: Signal
    go: Signal
    began: Signal
    ended: Signal
    short: Signal
    long: Signal
    open: Signal
    dropping: Signal

    def __init__(self, lanes: Lanes, beats: int) -> None:
        if beats < 1:
            raise ValueError(f"beats must be a positive integer, not {beats!r}")
        self.beats = beats
        says = {name: Out(1) for name in ("began", "ended", "short", "long", "open", "dropping")}
        super().__init__({"i": In(signature(lanes)), "last": In(1), "o": Out(signature(lanes)), "go": In(1), **says})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        i, o = self.i, self.o
        count, padding, moves = Signal(range(self.beats)), Signal(), Signal()
        final = count == self.beats - 1
        m.d.comb += [self.open.eq(count != 0), moves.eq(o.valid & o.ready)]
        m.d.comb += [self.began.eq(moves & ~self.open), self.ended.eq(moves & final)]
        with m.If(self.dropping):
            m.d.comb += i.ready.eq(1)
            with m.If(i.valid & self.last):
                m.d.sync += self.dropping.eq(0)
        with m.Elif(padding):
            m.d.comb += o.valid.eq(1)
            with m.If(moves & final):
                m.d.sync += padding.eq(0)
        with m.Elif(self.open | self.go):
            m.d.comb += [o.valid.eq(i.valid), i.ready.eq(o.ready), o.payload.eq(i.payload)]
            m.d.comb += [self.short.eq(moves & self.last & ~final), self.long.eq(moves & ~self.last & final)]
            with m.If(self.short):
                m.d.sync += padding.eq(1)
            with m.If(self.long):
                m.d.sync += self.dropping.eq(1)
        with m.If(moves):
            m.d.sync += count.eq(Mux(final, 0, count + 1))
        return m


class FrameOut(wiring.Component):
    """Marks the last of every ``beats`` beats.

    Members: ``i``: stream in; ``o``: stream out; ``last``: TLAST beside its payload; ``ended``: that beat is taken in this cycle.
    """

    i: stream.Interface
    o: stream.Interface
    last: Signal
    ended: Signal

    def __init__(self, lanes: Lanes, beats: int) -> None:
        if beats < 1:
            raise ValueError(f"beats must be a positive integer, not {beats!r}")
        self.beats = beats
        super().__init__({"i": In(signature(lanes)), "o": Out(signature(lanes)), "last": Out(1), "ended": Out(1)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        wiring.connect(m, wiring.flipped(self.i), wiring.flipped(self.o))
        count = Signal(range(self.beats))
        m.d.comb += [self.last.eq(count == self.beats - 1), self.ended.eq(self.o.valid & self.o.ready & self.last)]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += count.eq(Mux(self.last, 0, count + 1))
        return m
