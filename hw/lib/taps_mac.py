"""Multiply and accumulate several taps of a window at once, many channels wide."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.arith import adder_tree, bits_for, tree_stages
from hw.lib.mac import words_of
from hw.lib.ring import counter
from hw.lib.store import rows_of
from hw.params import Ints, Ints2, Lanes
from hw.units.base import signature


class TapsMac(wiring.Component):
    """``o[c] = bias[c] + Σ_tap weights[tap][c] · i[tap][c]`` for windows whose taps come together, the groups of channels in turn.

    Of a window ``at_once`` taps are multiplied a cycle, through an adder tree and, if there are more, an accumulator.
    Throughput: a window every taps / ``at_once`` cycles. Latency: 3 cycles and those of the tree from the last taps to the result.
    Weights that never change (one group, all taps at once) are constants.

    Parameters: ``weights`` (taps, channels), ``bias`` (channels,), ``at_once`` divides taps; ``i``: lane ``tap · o.lanes + k`` is
    lane k of a tap's word; ``o``: signed, with bits enough for every sum. Unused lanes of ``o`` are 0.
    Raises ValueError if sizes do not agree or the bias does not fit ``o``.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, weights: Ints2, bias: Ints, at_once: int, i: Lanes, o: Lanes) -> None:
        if not weights or any(len(row) != len(bias) for row in weights):
            raise ValueError(f"weights must be (taps, {len(bias)}) like the bias, not {[len(row) for row in weights]}")
        if at_once < 1 or len(weights) % at_once:
            raise ValueError(f"at_once must divide the {len(weights)} taps, not {at_once!r}")
        if i.lanes != o.lanes * len(weights) or not o.signed:
            raise ValueError(f"o must be signed and have a lane for every {len(weights)} of i, not {o!r} for {i!r}")
        if bits_for(bias) > o.bits:
            raise ValueError(f"bias must fit {o.bits} bits, not {min(bias)}..{max(bias)}")
        self.at_once, self.phases, self.lanes, self.out = at_once, len(weights) // at_once, i, o
        self._bias = words_of(bias, o.lanes)
        by_tap = [words_of(row, o.lanes) for row in weights]
        self._weights = [
            [w for tap in range(phase * at_once, (phase + 1) * at_once) for w in by_tap[tap][group]]
            for group in range(len(self._bias))
            for phase in range(self.phases)
        ]
        super().__init__({"i": In(signature(i)), "o": Out(signature(o))})

    @property
    def multipliers(self) -> int:
        """Multiplications a cycle."""
        return self.at_once * self.out.lanes

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        step = Signal()
        m.d.comb += step.eq(~self.o.valid | self.o.ready)
        phase, group, index = counter(self.phases, "phase"), counter(len(self._bias), "group"), counter(len(self._weights), "index")
        last = phase == self.phases - 1
        m.d.comb += self.i.ready.eq(step & last)
        with m.If(step & self.i.valid):
            m.d.sync += phase.eq(Mux(last, 0, phase + 1))
            m.d.sync += index.eq(Mux(index == len(self._weights) - 1, 0, index + 1))
            with m.If(last):
                m.d.sync += group.eq(Mux(group == len(self._bias) - 1, 0, group + 1))
        bits = bits_for(w for row in self._weights for w in row)
        weights = self._rom(m, "weights", self._weights, bits, index, step)
        words = Signal(data.ArrayLayout(self.i.payload.shape().elem_shape, self.multipliers), name="words", reset_less=True)
        size = self.multipliers * self.lanes.bits
        parts = [self.i.payload.as_value()[k * size : (k + 1) * size] for k in range(self.phases)]
        sums = self._sums(m, step, words, weights, bits)
        with m.If(step):
            with m.Switch(phase):
                for k, part in enumerate(parts):
                    with m.Case(k) if k < len(parts) - 1 else m.Default():
                        m.d.sync += words.as_value().eq(part)
        self._finish(m, step, sums, {"valid": self.i.valid, "first": phase == 0, "end": last, "group": group})
        return m

    def _rom(self, m: Module, name: str, rows: list[list[int]], bits: int, at: Value, step: Value) -> list[Value]:
        """The words of row ``at``, one step later; constants if there is one row."""
        if len(rows) == 1:
            return [Const(v, signed(bits)) for v in rows[0]]
        found = rows_of(m, name, rows, bits, at, step)
        return [found[k] for k in range(len(rows[0]))]

    def _sums(self, m: Module, step: Value, words: Any, weights: list[Value], bits: int) -> list[Value]:
        """Products, then a tree of them for each lane."""
        products = [Signal(signed(self.lanes.bits + bits), name=f"product_{k}", reset_less=True) for k in range(self.multipliers)]
        with m.If(step):
            m.d.sync += [product.eq(words[k] * weights[k]) for k, product in enumerate(products)]
        lanes = self.out.lanes
        return [adder_tree(m, products[k::lanes], step, f"sum_{k}") for k in range(lanes)]

    def _finish(self, m: Module, step: Value, sums: list[Value], flags: dict[str, Value]) -> None:
        """Adds the phases and the bias behind the tree."""
        stages = 2 + tree_stages(self.at_once)
        line = [flags]
        for k in range(stages):
            late = {n: Signal(len(Value.cast(v)), name=f"{n}_{k + 1}") for n, v in line[-1].items()}
            with m.If(step):
                m.d.sync += [late[n].eq(v) for n, v in line[-1].items()]
            line.append(late)
        bias = self._rom(m, "bias", self._bias, self.out.bits, line[-2]["group"], step)
        now = line[-1]
        with m.If(step):
            m.d.sync += self.o.valid.eq(now["valid"] & now["end"])
            for k, term in enumerate(sums):
                total = Signal(signed(self.out.bits), name=f"total_{k}", reset_less=True)
                result = (Mux(now["first"], bias[k], total) + term)[: self.out.bits].as_signed()
                if self.phases > 1:
                    with m.If(now["valid"]):
                        m.d.sync += total.eq(result)
                m.d.sync += self.o.payload[k].eq(result)
