# amaranth: UnusedElaboratable=no
"""The matrix-vector core: inner products and the accumulators behind them."""
from __future__ import annotations

from itertools import pairwise
from typing import Any

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.dot import Dot
from hw.params import Ints2, Lanes, Multiplier, Range
from hw.units.base import Unit, signature


class MatVecCore(wiring.Component):
    """PE accumulators over SIMD products each: ``o[p] = bias[p] + Σ over steps and n of w[p][n] · x[n]`` from ``first`` to ``end``.

    Ports: ``x``, ``w`` (as :class:`hw.lib.dot.Dot`), ``valid``, ``first``, ``end`` come together, one operand set an enabled cycle;
    ``bias`` is taken :attr:`latency` - 1 enabled cycles after ``first``; ``done`` is up while ``o`` holds results, ``done_next`` a cycle
    before it.
    No bubbles; latency :attr:`latency` from operands to accumulators. Every step adds ``dot.offset`` too: take it off the bias.

    Parameters: ``pe``, ``simd``; ``weight``: range of the weights; ``i``: elements; ``bits`` of an accumulator; ``kind``: multiplier.
    """

    x: Any
    w: Signal
    valid: Signal
    first: Signal
    end: Signal
    en: Signal
    bias: Any
    o: Any
    done: Signal
    done_next: Signal

    def __init__(self, *, pe: int, simd: int, weight: Range, i: Lanes, bits: int, kind: Multiplier = "inferred") -> None:
        self.dot = Dot(pe=pe, simd=simd, weight=weight, i=i, kind=kind)
        self.pe, self.bits = pe, bits
        ports = self.dot.signature.members
        row = data.ArrayLayout(signed(bits), pe)
        flags = {name: In(1) for name in ("valid", "first", "end", "en")}
        super().__init__({"x": ports["x"], "w": ports["w"], **flags, "bias": In(row), "o": Out(row), "done": Out(1), "done_next": Out(1)})

    @property
    def latency(self) -> int:
        return self.dot.latency + 1

    @property
    def multipliers(self) -> int:
        """Multiplications a cycle."""
        return self.dot.multipliers

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.dot = dot = self.dot
        m.d.comb += [dot.x.eq(self.x), dot.w.eq(self.w), dot.en.eq(self.en)]
        # What travels beside the data, up to the accumulators' input.
        valid, first, end = ([Signal(name=f"{name}{k}") for k in range(dot.latency)] for name in ("valid", "first", "end"))
        with m.If(self.en):
            for chain, start in ((valid, self.valid), (first, self.first), (end, self.end)):
                m.d.sync += [b.eq(a) for a, b in pairwise([start, *chain])]
        m.d.comb += self.done_next.eq(Mux(self.en, valid[-1] & end[-1], self.done))
        m.d.sync += self.done.eq(self.done_next)
        for k in range(self.pe):
            acc = Signal(signed(self.bits), name=f"acc{k}", reset_less=True)
            with m.If(self.en & valid[-1]):
                # The multiplexer second: it then shares the adder's LUTs.
                m.d.sync += acc.eq(dot.o[k] + Mux(first[-1], self.bias[k], acc))
            m.d.comb += self.o[k].eq(acc)
        return m


class StreamedMatVec(Unit):
    """A matrix-vector core whose operands both come by stream: ``o[p] = Σ over steps and n of w[p][n] · i[n]``.

    For weights that are not kept on chip. An operand set a cycle, a beat of PE results every ``steps`` of them, no bubbles.
    Latency ``core.latency`` cycles from a result's last operands.

    Parameters: ``pe``, ``simd``, ``steps``; ``weight``: range of the weights; ``i``: elements (SIMD lanes); ``bits`` of a result;
    ``kind``: multiplier. Port ``w_i`` takes rows of :meth:`encode`.
    """

    i: stream.Interface
    w_i: stream.Interface
    o: stream.Interface

    def __init__(self, *, pe: int, steps: int, weight: Range, i: Lanes, bits: int, kind: Multiplier) -> None:
        self.core = MatVecCore(pe=pe, simd=i.lanes, weight=weight, i=i, bits=bits, kind=kind)
        self.steps = steps
        dot = self.core.dot
        self.w_lanes = Lanes(lanes=dot.groups * i.lanes * dot.lanes, bits=max(dot.bits), signed=True)
        o = Lanes(lanes=pe, bits=bits, signed=True)
        super().__init__({"i": In(signature(i)), "w_i": In(signature(self.w_lanes)), "o": Out(signature(o))})

    @property
    def frame_cycles(self) -> int:
        return self.steps

    @property
    def multipliers(self) -> int:
        return self.core.multipliers

    def encode(self, rows: Ints2) -> list[int]:
        """One operand set's weights (PE, SIMD) as the lanes of a beat of ``w_i``."""
        return self.core.dot.lanes_of(rows)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.core = core = self.core
        dot = core.dot
        both, step = Signal(), Signal(range(self.steps))
        last = step == self.steps - 1
        m.d.comb += [
            both.eq(self.i.valid & self.w_i.valid),
            core.en.eq(~core.done | self.o.ready),
            self.i.ready.eq(core.en & self.w_i.valid),
            self.w_i.ready.eq(core.en & self.i.valid),
            core.valid.eq(both),
            core.first.eq(step == 0),
            core.end.eq(last),
            core.x.eq(self.i.payload),
            core.w.eq(dot.word_of(self.w_i.payload)),
            self.o.valid.eq(core.done),
            self.o.payload.as_value().eq(core.o.as_value()),
        ]
        m.d.comb += [core.bias[k].eq(-self.steps * dot.offset) for k in range(core.pe)]
        with m.If(both & core.en):
            m.d.sync += step.eq(Mux(last, 0, step + 1))
        return m
