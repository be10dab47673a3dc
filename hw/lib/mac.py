"""Multiply and accumulate over taps, many channels wide."""
from __future__ import annotations

from collections.abc import Iterable

from amaranth import Module, Mux, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.arith import add_carry, pack_row
from hw.lib.primitives import DspMac, Mult18x18d, register
from hw.lib.ring import counter
from hw.lib.rom import Rom
from hw.lib.soft import booth, booth_sum
from hw.lib.store import rows_of
from hw.params import Ints, Ints2, Lanes, Multiplier, RomKind
from hw.units.base import signature


def bits_for(values: Iterable[int]) -> int:
    """Bits of the smallest signed type that holds all ``values``."""
    return max((v if v >= 0 else ~v).bit_length() for v in values) + 1


def words_of(values: Ints, lanes: int) -> list[list[int]]:
    """One value a channel, as the words of ``lanes`` that its groups make; 0 in unused lanes."""
    padded = [*values, *[0] * (-len(values) % lanes)]
    return [padded[k : k + lanes] for k in range(0, len(padded), lanes)]


class Mac(wiring.Component):
    """``o[c] = bias[c] + Σ_tap weights[tap][c] · i[tap][c]`` for the groups of channels in turn, pixel after pixel.

    Words come in order group, tap; a result leaves for each group. Throughput: one word a cycle, a result every ``taps``
    cycles. Latency: three cycles ("dsp48e2", "soft") or four from the last tap to its result. While a result waits, everything waits:
    the sum is its register.

    Parameters: ``weights`` (taps, channels), ``bias`` (channels,), ``i`` lanes of the words, ``o`` lanes of the results: as
    many, signed, with bits enough for every sum (intermediate sums may wrap). Unused lanes of ``o`` are 0.
    ``multiplier``: "dsp48e2" has a slice a lane that also accumulates, "mult18x18d" one that multiplies between registers of its own (words
    of at most 17 bits, 18 if signed), "soft" Booth digits in logic; others leave a product to the tools.
    ``memory``: place of the weights.
    Raises ValueError if sizes do not agree or the bias does not fit ``o``.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(
        self, *, weights: Ints2, bias: Ints, i: Lanes, o: Lanes, multiplier: Multiplier = "inferred", memory: RomKind = "auto"
    ) -> None:  # fmt: skip
        if not weights or any(len(row) != len(bias) for row in weights):
            raise ValueError(f"weights must be (taps, {len(bias)}) like the bias, not {[len(row) for row in weights]}")
        if o.lanes != i.lanes or not o.signed:
            raise ValueError(f"o must be signed and have {i.lanes} lanes like i, not {o!r}")
        if multiplier == "mult18x18d" and i.bits + (not i.signed) > 18:
            raise ValueError(f"words must fit 18 bits, signed, for a MULT18X18D, not {i!r}")
        if bits_for(bias) > o.bits:
            raise ValueError(f"bias must fit {o.bits} bits, not {min(bias)}..{max(bias)}")
        self.lanes, self.out, self.taps, self.multiplier, self.memory = i, o, len(weights), multiplier, memory
        self._bias = words_of(bias, i.lanes)
        by_tap = [words_of(row, i.lanes) for row in weights]
        self._weights = [by_tap[tap][group] for group in range(len(self._bias)) for tap in range(self.taps)]
        super().__init__({"i": In(signature(i)), "o": Out(signature(o))})

    @property
    def multipliers(self) -> int:
        """Multiplications a cycle."""
        return self.lanes.lanes

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes, groups, taps = self.lanes.lanes, len(self._bias), self.taps
        bits = bits_for(v for word in self._weights for v in word)
        # Weights are read ahead: block RAM is slow, so that only registers stand behind it.
        m.submodules.weights = weights = Rom([pack_row(word, bits) for word in self._weights], bits * lanes, self.memory)
        step, read, taken = Signal(), Signal(), Signal()  # read: the next word's weights are there
        m.d.comb += [step.eq(~self.o.valid | self.o.ready), self.i.ready.eq(step & read), taken.eq(self.i.valid & self.i.ready)]
        m.d.comb += [weights.en.eq(taken | ~read), weights.next.eq(weights.en)]
        m.d.sync += read.eq(1)

        tap, group, group_1 = counter(taps, "tap"), counter(groups, "group"), counter(groups, "group_1")
        last = tap == taps - 1
        bias = rows_of(m, "bias", self._bias, self.out.bits, group_1, step)
        with m.If(taken):
            m.d.sync += tap.eq(Mux(last, 0, tap + 1))
            with m.If(last):
                m.d.sync += group.eq(Mux(group == groups - 1, 0, group + 1))

        # Stage 1: word and weights. Stage 2: products and bias; once more where a slice has a register more, or nothing but registers
        # should stand at both ends of a multiplier that has none of its own. Last stage: sum.
        stages = 2 if self.multiplier in ("dsp48e2", "soft") else 3
        valid, first, end = Signal(stages), Signal(stages), Signal(stages)
        with m.If(step):
            m.d.sync += [group_1.eq(group), valid.eq(valid << 1 | taken)]
            m.d.sync += [first.eq(first << 1 | (tap == 0)), end.eq(end << 1 | last)]
            m.d.sync += self.o.valid.eq(valid[-1] & end[-1])
        if stages == 3:
            bias = [register(m, value, step, f"bias_{k}") for k, value in enumerate(bias)]
        lane = {"dsp48e2": self._slice, "mult18x18d": self._multiplier, "soft": self._soft}.get(self.multiplier, self._inferred)
        for k in range(lanes):
            weight = weights.data[k * bits : (k + 1) * bits].as_signed()
            lane(m, k, weight, bias[k], step, step & valid[-1], first[-1])
        return m

    def _slice(self, m: Module, k: int, weight: Value, bias: Value, step: Value, add: Value, first: Value) -> None:
        """A lane in a DSP48E2, whose registers hold word, product and sum."""
        m.submodules[f"dsp{k}"] = dsp = DspMac()
        m.d.comb += [dsp.a.eq(self.i.payload[k]), dsp.b.eq(weight), dsp.c.eq(bias), dsp.load.eq(first), dsp.en.eq(step), dsp.add.eq(add)]
        m.d.comb += self.o.payload[k].eq(dsp.p)

    def _multiplier(self, m: Module, k: int, weight: Value, bias: Value, step: Value, add: Value, first: Value) -> None:
        """A lane with a MULT18X18D, whose registers hold word and weight, then the product twice."""
        m.submodules[f"mult{k}"] = mult = Mult18x18d()
        m.d.comb += [mult.a.eq(self.i.payload[k]), mult.b.eq(weight), mult.en.eq(step)]
        product = mult.p[: self.lanes.bits + len(weight)].as_signed()
        with m.If(add):
            m.d.sync += self.o.payload[k].eq(Mux(first, bias, self.o.payload[k]) + product)

    def _inferred(self, m: Module, k: int, weight: Value, bias: Value, step: Value, add: Value, first: Value) -> None:
        """A lane with a product that the tools find a multiplier for."""
        product = Signal(signed(self.lanes.bits + len(weight)), name=f"product_{k}", reset_less=True)
        with m.If(step):
            m.d.sync += product.eq(register(m, self.i.payload[k], step, f"word_{k}") * register(m, weight, step, f"weight_{k}"))
        product = register(m, product, step, f"late_{k}")
        with m.If(add):
            m.d.sync += self.o.payload[k].eq(Mux(first, bias, self.o.payload[k]) + product)

    def _soft(self, m: Module, k: int, weight: Value, bias: Value, step: Value, add: Value, first: Value) -> None:
        """A lane in logic: the product's digits are in registers and join the sum."""
        rows = []
        word, weight = register(m, self.i.payload[k], step, f"word_{k}"), register(m, weight, step, f"weight_{k}")
        for n, (row, negative) in enumerate(booth(word, weight)):
            held = Signal(row.shape(), name=f"row_{k}_{n}", reset_less=True), Signal(name=f"negative_{k}_{n}", reset_less=True)
            with m.If(step):
                m.d.sync += [held[0].eq(row), held[1].eq(negative)]
            rows.append(held)
        product, carry = booth_sum(rows)
        before = Signal(signed(self.out.bits), name=f"before_{k}")
        m.d.comb += before.eq(Mux(first, bias, self.o.payload[k]))
        with m.If(add):
            m.d.sync += self.o.payload[k].eq(add_carry(before, product, carry))
