"""Concat unit."""
from __future__ import annotations

from itertools import accumulate
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.params import Lanes

from .base import Unit, signature
from .split import check_sizes


class ConcatUnit(Unit):
    """Channels of several maps one after the other, or interleaved.

    Golden model: sw.ops.concat.Concat.golden. Throughput one beat of the output a cycle, latency 1 or 2; ready is registered at
    the output. In order, an input waits while the others' channels pass. Interleaved, one beat is taken of all inputs
    together and leaves as as many beats as there are inputs.

    Parameters
    ----------
    height, width: of the map
    sizes: channels of each input; the lanes must divide each
    interleave: channel k of input j of n becomes channel n·k + j; sizes must be equal
    i: type of every input and of the output

    Members
    -------
    i0, i1, ...: streams in; o: stream out
    """

    o: stream.Interface

    def __init__(self, *, sizes: tuple[int, ...], interleave: bool = False, i: Lanes, height: int = 1, width: int = 1) -> None:
        check_sizes(sizes, i)
        if interleave and len(set(sizes)) > 1:
            raise ValueError(f"sizes must be equal to be interleaved, not {sizes!r}")
        self.pixels, self.lanes, self.interleave = height * width, i, interleave
        self.ends = list(accumulate(size // i.lanes for size in sizes))
        super().__init__({**{f"i{k}": In(signature(i)) for k in range(len(sizes))}, "o": Out(signature(i))})
        self.inputs = [getattr(self, f"i{k}") for k in range(len(sizes))]

    @property
    def frame_cycles(self) -> int:
        return self.pixels * self.ends[-1]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.slice = out = Fifo(self.lanes, 2)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        if self.interleave:
            self.interleaved(m, out.i)
        else:
            self.in_order(m, out.i)
        return m

    def in_order(self, m: Module, o: stream.Interface) -> None:
        """Pass the input whose channels are due."""
        beat = Signal(range(self.ends[-1]))
        for i, start, end in zip(self.inputs, [0, *self.ends], self.ends, strict=False):
            with m.If((beat >= start) & (beat < end)):
                m.d.comb += [o.payload.eq(i.payload), o.valid.eq(i.valid), i.ready.eq(o.ready)]
        with m.If(o.valid & o.ready):
            m.d.sync += beat.eq(Mux(beat == self.ends[-1] - 1, 0, beat + 1))

    def interleaved(self, m: Module, o: stream.Interface) -> None:
        """Take a beat of every input at once, woven into a shift register that leaves beat by beat."""
        count = len(self.inputs)
        held = Signal(count * self.lanes.width, reset_less=True)
        left = Signal(range(count + 1))
        everyone, take = Signal(), Signal()
        m.d.comb += [
            everyone.eq(Cat(i.valid for i in self.inputs).all()),
            take.eq(everyone & ((left == 0) | ((left == 1) & o.ready))),
            o.valid.eq(left != 0),
            o.payload.as_value().eq(held),
            *(i.ready.eq(take) for i in self.inputs),
        ]
        with m.If(take):
            bits = self.lanes.bits
            woven = Cat(i.payload.as_value()[k : k + bits] for k in range(0, self.lanes.width, bits) for i in self.inputs)
            m.d.sync += [held.eq(woven), left.eq(count)]
        with m.Elif(o.valid & o.ready):
            m.d.sync += [held.eq(held >> self.lanes.width), left.eq(left - 1)]
