"""Multiply and accumulate over taps, many channels wide."""
from __future__ import annotations

from collections.abc import Iterable

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.ring import counter
from hw.params import Ints, Ints2, Lanes
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
    cycles. Latency: three cycles from the last tap to its result. While a result waits, input waits.

    Parameters: ``weights`` (taps, channels), ``bias`` (channels,), ``i`` lanes of the words, ``o`` lanes of the results: as
    many, signed, with bits enough for every sum (intermediate sums may wrap). Unused lanes of ``o`` are 0.
    Raises ValueError if sizes do not agree or the bias does not fit ``o``.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, weights: Ints2, bias: Ints, i: Lanes, o: Lanes) -> None:
        if not weights or any(len(row) != len(bias) for row in weights):
            raise ValueError(f"weights must be (taps, {len(bias)}) like the bias, not {[len(row) for row in weights]}")
        if o.lanes != i.lanes or not o.signed:
            raise ValueError(f"o must be signed and have {i.lanes} lanes like i, not {o!r}")
        if bits_for(bias) > o.bits:
            raise ValueError(f"bias must fit {o.bits} bits, not {min(bias)}..{max(bias)}")
        self.lanes, self.out, self.taps = i, o, len(weights)
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
        m.submodules.weights = weights = memory.Memory(shape=data.ArrayLayout(signed(bits), lanes), depth=groups * taps, init=self._weights)
        m.submodules.bias = bias = memory.Memory(shape=data.ArrayLayout(signed(self.out.bits), lanes), depth=groups, init=self._bias)
        w_port, b_port = weights.read_port(), bias.read_port()
        step = Signal()
        m.d.comb += [step.eq(~self.o.valid | self.o.ready), self.i.ready.eq(step), w_port.en.eq(step), b_port.en.eq(step)]

        tap, group, index = counter(taps, "tap"), counter(groups, "group"), counter(groups * taps, "index")
        last = tap == taps - 1
        m.d.comb += w_port.addr.eq(index)
        with m.If(step & self.i.valid):
            m.d.sync += tap.eq(Mux(last, 0, tap + 1))
            with m.If(last):
                m.d.sync += group.eq(Mux(group == groups - 1, 0, group + 1))
            m.d.sync += index.eq(Mux(index == groups * taps - 1, 0, index + 1))

        # Stage 1: word and weights. Stage 2: products and bias. Stage 3: sum.
        layout = self.i.payload.shape()
        word = Signal(layout, reset_less=True)
        product_bits = self.lanes.bits + bits
        products = Signal(data.ArrayLayout(signed(product_bits), lanes), reset_less=True)
        total = Signal(self.o.payload.shape(), reset_less=True)
        valid, first, end, group_1 = Signal(2), Signal(2), Signal(2), counter(groups, "group_1")
        m.d.comb += b_port.addr.eq(group_1)
        with m.If(step):
            m.d.sync += [word.eq(self.i.payload), group_1.eq(group), valid.eq(valid << 1 | self.i.valid)]
            m.d.sync += [first.eq(first << 1 | (tap == 0)), end.eq(end << 1 | last)]
            m.d.sync += self.o.valid.eq(valid[1] & end[1])
            for k in range(lanes):
                m.d.sync += products[k].eq(word[k] * w_port.data[k])
                sum_k = Signal(signed(self.out.bits), name=f"sum_{k}")
                m.d.comb += sum_k.eq(Mux(first[1], b_port.data[k], total[k]) + products[k])
                with m.If(valid[1]):
                    m.d.sync += total[k].eq(sum_k)
                    with m.If(end[1]):
                        m.d.sync += self.o.payload[k].eq(sum_k)
        return m
