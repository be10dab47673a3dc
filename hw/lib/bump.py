# amaranth: UnusedElaboratable=no
"""Room for pieces of differing sizes in one memory: given out in order, given back in order."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.params import Lanes

#: Pieces that are out at a time.
PIECES = 8


class Bump(wiring.Component):
    """Gives out runs of words of a memory of ``depth``; no run goes over its end.

    A run begins behind the last one, or at word 0 if it does not fit there. At most :data:`PIECES` are out.

    Members: ``size``: words asked for, 1..depth; ``room``: there are as many, from ``next`` on, and will be until they are taken;
    ``take``: they are given out; ``oldest``: first word of the oldest run that is out; ``spent``: its next word is not needed any more,
    said of the last only with ``free``: the run comes back.
    """

    size: Signal
    room: Signal
    next: Signal
    take: Signal
    oldest: Signal
    spent: Signal
    free: Signal

    def __init__(self, depth: int) -> None:
        if depth < 1:
            raise ValueError(f"depth must be a positive integer, not {depth!r}")
        self.depth = depth
        word, count = range(depth), range(depth + 1)
        super().__init__({
            "size": In(count), "room": Out(1), "next": Out(word), "take": In(1), "oldest": Out(word),
            "spent": In(1), "free": In(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        lanes = Lanes(lanes=1, bits=max((self.depth - 1).bit_length(), 1), signed=False)
        m.submodules.runs = runs = Fifo(lanes, PIECES, "registers")
        head, some, tail = runs.o.payload[0], runs.o.valid, Signal(range(self.depth + 1))
        end = Signal(range(2 * self.depth + 1))
        gone, front = Signal(range(self.depth)), Signal(range(2 * self.depth))  # words spent of the oldest; the first that is not
        m.d.sync += gone.eq(Mux(self.free, 0, gone + self.spent))
        m.d.comb += [end.eq(tail + self.size), self.oldest.eq(head), front.eq(head + gone)]
        fits = Signal()  # behind the last run
        start = Signal()  # at word 0
        with m.If(~some):
            m.d.comb += start.eq(1)
        with m.Elif(tail > front):
            m.d.comb += [fits.eq(end <= self.depth), start.eq(self.size <= front)]
        with m.Else():
            m.d.comb += fits.eq(end <= front)
        m.d.comb += [self.room.eq((fits | start) & runs.i.ready), self.next.eq(Mux(fits, tail, 0))]
        m.d.comb += [runs.i.valid.eq(self.take), runs.i.payload[0].eq(self.next), runs.o.ready.eq(self.free)]
        with m.If(self.take):
            m.d.sync += tail.eq(Mux(fits, end, self.size))
        return m
