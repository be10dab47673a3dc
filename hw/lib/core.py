# amaranth: UnusedElaboratable=no
"""The matrix-vector core: inner products and the accumulators behind them."""
from __future__ import annotations

from itertools import pairwise
from typing import Any

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.dot import Dot
from hw.params import Lanes, Multiplier, Range


class MatVecCore(wiring.Component):
    """PE accumulators over SIMD products each: ``o[p] = bias[p] + Σ over steps and n of w[p][n] · x[n]`` from ``first`` to ``end``.

    Ports: ``x``, ``w`` (as :class:`hw.lib.dot.Dot`), ``valid``, ``first``, ``end`` come together, one operand set an enabled cycle;
    ``bias`` is taken :attr:`latency` - 1 enabled cycles after ``first``; ``done`` is up while ``o`` holds results.
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

    def __init__(self, *, pe: int, simd: int, weight: Range, i: Lanes, bits: int, kind: Multiplier = "inferred") -> None:
        self.dot = Dot(pe=pe, simd=simd, weight=weight, i=i, kind=kind)
        self.pe, self.bits = pe, bits
        ports = self.dot.signature.members
        row = data.ArrayLayout(signed(bits), pe)
        flags = {name: In(1) for name in ("valid", "first", "end", "en")}
        super().__init__({"x": ports["x"], "w": ports["w"], **flags, "bias": In(row), "o": Out(row), "done": Out(1)})

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
            m.d.sync += self.done.eq(valid[-1] & end[-1])
        for k in range(self.pe):
            acc = Signal(signed(self.bits), name=f"acc{k}", reset_less=True)
            with m.If(self.en & valid[-1]):
                # The multiplexer second: it then shares the adder's LUTs.
                m.d.sync += acc.eq(dot.o[k] + Mux(first[-1], self.bias[k], acc))
            m.d.comb += self.o[k].eq(acc)
        return m
