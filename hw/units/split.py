"""Split unit."""
from __future__ import annotations

from itertools import accumulate
from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.params import Lanes

from .base import Unit, signature


def check_sizes(sizes: tuple[int, ...], lanes: Lanes) -> None:
    """ValueError unless there are two sizes or more and the lanes divide each of them."""
    if len(sizes) < 2:
        raise ValueError(f"sizes must be at least two positive integers, not {sizes!r}")
    for size in sizes:
        if size < 1 or size % lanes.lanes:
            raise ValueError(f"sizes must be positive multiples of the {lanes.lanes} lanes, not {size!r}")


class SplitUnit(Unit):
    """Consecutive channels of a pixel to different outputs.

    Golden model: sw.ops.split.Split.golden. Throughput one beat a cycle, latency 1; ready is registered at the input. A beat
    waits until its output takes it, also while other outputs are idle: put queues behind them.

    Parameters
    ----------
    height, width: of the map
    sizes: channels of each output; the lanes must divide each
    i: stream in, also the type of the outputs

    Members
    -------
    i: stream in; o0, o1, ...: streams out
    """

    i: stream.Interface

    def __init__(self, *, sizes: tuple[int, ...], i: Lanes, height: int = 1, width: int = 1) -> None:
        check_sizes(sizes, i)
        self.pixels, self.lanes = height * width, i
        self.ends = list(accumulate(size // i.lanes for size in sizes))
        super().__init__({"i": In(signature(i)), **{f"o{k}": Out(signature(i)) for k in range(len(sizes))}})

    @property
    def frame_cycles(self) -> int:
        return self.pixels * self.ends[-1]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.slice = source = Fifo(self.lanes, 2)
        wiring.connect(m, wiring.flipped(self.i), source.i)
        beat = Signal(range(self.ends[-1]))
        for k, (start, end) in enumerate(zip([0, *self.ends], self.ends, strict=False)):
            o = getattr(self, f"o{k}")
            mine = (beat >= start) & (beat < end)
            m.d.comb += [o.payload.eq(source.o.payload), o.valid.eq(source.o.valid & mine)]
            with m.If(mine):
                m.d.comb += source.o.ready.eq(o.ready)
        with m.If(source.o.valid & source.o.ready):
            m.d.sync += beat.eq(Mux(beat == self.ends[-1] - 1, 0, beat + 1))
        return m
