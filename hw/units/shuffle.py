"""Channel shuffle unit."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.params import Lanes

from .base import Unit, signature


class ShuffleUnit(Unit):
    """Permutes the channels of every pixel: output channel k is input channel (k mod groups)·(C / groups) + k // groups.

    Golden model: sw.ops.shuffle.Shuffle.golden. A pixel is collected, permuted by wiring, and leaves while the next is
    collected: two registers of a pixel each. Throughput one beat a cycle, latency ceil(C / lanes) + 2; ready waits for the
    output only at a pixel's last beat.

    Parameters
    ----------
    height, width, channels: of the map
    groups: divides the channels
    i: stream in, also the type of the output
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, channels: int, groups: int, i: Lanes, height: int = 1, width: int = 1) -> None:
        if groups < 2 or channels % groups:
            raise ValueError(f"groups must be at least 2 and divide the {channels} channels, not {groups!r}")
        self.pixels, self.lanes, self.beats = height * width, i, i.beats(channels)
        part = channels // groups
        self.permutation = [k % groups * part + k // groups for k in range(channels)]
        super().__init__({"i": In(signature(i)), "o": Out(signature(i))})

    @property
    def frame_cycles(self) -> int:
        return self.pixels * self.beats

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.slice = out = Fifo(self.lanes, 2)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        width, bits = self.lanes.width, self.lanes.bits
        collected = Signal((self.beats - 1) * width, reset_less=True)  # all beats of a pixel but the last
        leaving = Signal(self.beats * width, reset_less=True)
        taken, left = Signal(range(self.beats)), Signal(range(self.beats + 1))
        last, free = Signal(), Signal()
        m.d.comb += [
            last.eq(taken == self.beats - 1),
            free.eq((left == 0) | ((left == 1) & out.i.ready)),
            self.i.ready.eq(~last | free),
            out.i.valid.eq(left != 0),
            out.i.payload.as_value().eq(leaving),
        ]
        pixel = Cat(collected, self.i.payload.as_value())
        with m.If(out.i.valid & out.i.ready):
            m.d.sync += [leaving.eq(leaving >> width), left.eq(left - 1)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [taken.eq(Mux(last, 0, taken + 1)), collected.eq(pixel >> width)]
            with m.If(last):
                m.d.sync += [leaving.eq(Cat(pixel[k * bits : (k + 1) * bits] for k in self.permutation)), left.eq(self.beats)]
        return m
