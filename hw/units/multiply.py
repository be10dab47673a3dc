"""Multiplication unit."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.lib.groups import last_group, used_lanes
from hw.params import Lanes

from .base import Unit, signature


class MultiplyUnit(Unit):
    """Product of two maps, lane by lane. Golden model: sw.ops.multiply.Multiply.golden.

    Throughput one beat a cycle, latency 3 (operands, product, output are registered); ready is registered at the output. A
    beat is taken of both inputs together.

    Parameters
    ----------
    height, width, channels: of the maps
    a, b: types of the inputs, with equal lanes

    Members
    -------
    i0, i1: streams in; o: stream out, as many bits as both together, signed if one is
    """

    i0: stream.Interface
    i1: stream.Interface
    o: stream.Interface

    def __init__(self, *, channels: int, a: Lanes, b: Lanes, height: int = 1, width: int = 1) -> None:
        if channels < 1:
            raise ValueError(f"channels must be a positive integer, not {channels!r}")
        if a.lanes != b.lanes:
            raise ValueError(f"a and b must have equal lanes, not {a.lanes!r} and {b.lanes!r}")
        self.channels, self.groups = channels, a.beats(channels)
        self.beats = height * width * self.groups
        self.products = Lanes(lanes=a.lanes, bits=a.bits + b.bits, signed=a.signed or b.signed)
        super().__init__({"i0": In(signature(a)), "i1": In(signature(b)), "o": Out(signature(self.products))})

    @property
    def frame_cycles(self) -> int:
        """One cycle a beat."""
        return self.beats

    @property
    def multipliers(self) -> int:
        """One a lane."""
        return self.products.lanes

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.slice = out = Fifo(self.products, 2)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        valid, step, both = Signal(2), Signal(), Signal()
        m.d.comb += [step.eq(out.i.ready), both.eq(self.i0.valid & self.i1.valid), out.i.valid.eq(valid[1])]
        m.d.comb += [self.i0.ready.eq(both & step), self.i1.ready.eq(both & step)]
        last = last_group(m, self.groups, both & step)
        with m.If(step):
            m.d.sync += valid.eq(valid << 1 | both)
        for k, used in enumerate(used_lanes(self.channels, self.products, last)):
            a, b = (Signal.like(port.payload[k], name=f"{name}_{k}", reset_less=True) for name, port in (("a", self.i0), ("b", self.i1)))
            product = Signal.like(self.o.payload[k], name=f"product_{k}", reset_less=True)
            with m.If(step):
                m.d.sync += [a.eq(Mux(used, self.i0.payload[k], 0)), b.eq(self.i1.payload[k]), product.eq(a * b)]
            m.d.comb += out.i.payload[k].eq(product)
        return m
