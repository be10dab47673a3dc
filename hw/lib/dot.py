# amaranth: UnusedElaboratable=no
"""PE inner products of SIMD terms a cycle, with the multipliers that the folding search chose."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Cat, Const, Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.arith import adder_tree, pack_row, tree_stages
from hw.lib.modular import add_mod, multiply_mod, subtract_mod
from hw.lib.packing import Packing, packing_of, signed_bits
from hw.lib.primitives import Dsp48e2, Mult18x18d, register
from hw.lib.soft import soft_product
from hw.params import Ints, Ints2, Lanes, Multiplier, Range


class Dot(wiring.Component):
    """``o[p] = offset + Σ_n w[p][n] · x[n]``, PE sums of SIMD products every enabled cycle.

    Ports: ``x`` (SIMD elements), ``w`` (a row of :meth:`encode`), ``en`` (all registers move), ``o`` (PE signed sums).
    Throughput: one operand set a cycle. Latency ``latency`` enabled cycles. The constant ``offset`` is what fields that are kept
    positive carry; the user takes it off where a constant is added anyway (MatVec: the bias).

    Parameters: ``pe``, ``simd``; ``weight``: range of the weights; ``i``: the elements; ``kind``: the multiplier.
    """

    x: Any
    w: Signal
    en: Signal
    o: Any

    def __init__(self, *, pe: int, simd: int, weight: Range, i: Lanes, kind: Multiplier = "inferred") -> None:
        self.pe, self.simd, self.weight, self.i, self.kind = pe, simd, weight, i, kind
        self.packing = packing_of(kind, simd, weight, Range(low=i.lowest, high=i.highest))
        self.lanes = self.packing.lanes if self.packing else 1
        self.groups = -(-pe // self.lanes)
        self.chain = self.packing.chain if self.packing else 1
        #: Sizes of the chains that SIMD elements are cut into.
        self.chains = [min(self.chain, simd - k) for k in range(0, simd, self.chain)]
        self.offset = len(self.chains) * self.packing.bias if self.packing else 0
        self.bits = [signed_bits(Range(low=weight.low - (k > 0 and self.encoded), high=weight.high)) for k in range(self.lanes)]
        term = max(abs(weight.low), abs(weight.high)) * max(abs(i.lowest), i.highest)
        self.sum_bits = signed_bits(Range(low=-simd * term, high=simd * term + self.offset))
        super().__init__({
            "x": In(data.ArrayLayout(signed(i.bits) if i.signed else i.bits, simd)), "w": In(self.row_bits), "en": In(1),
            "o": Out(data.ArrayLayout(signed(self.sum_bits), pe)),
        })  # fmt: skip

    @property
    def encoded(self) -> bool:
        """Whether each upper weight is stored less 1 where the one below is negative, so that packing is wiring only."""
        return self.kind in ("packed27", "packed18", "mult18x18d")

    @property
    def word_levels(self) -> int:
        """Registers in the sum of a chain's words where no cascade adds them."""
        return tree_stages(self.chain, every=1)

    @property
    def row_bits(self) -> int:
        """Bits of one operand set's weights."""
        return self.groups * self.simd * sum(self.bits)

    @property
    def multipliers(self) -> int:
        """Multiplications a cycle."""
        return self.pe * self.simd

    @property
    def latency(self) -> int:
        words = 1 + self.word_levels
        stages = {
            "soft": 2, "inferred": 1, "packed27": words, "packed18": words, "mult18x18d": Mult18x18d.LATENCY + words,
            "dsp48e2": Dsp48e2.LATENCY - 1 + self.chain,
        }[self.kind]  # fmt: skip
        # Telling the fields apart, then the trees of fields and of spills, then their difference.
        if self.packing:
            return stages + 1 + tree_stages(len(self.chains)) + (self.lanes > 1)
        return stages + tree_stages(self.simd)

    def encode(self, rows: Ints2) -> int:
        """One operand set's weights, (PE, SIMD), as the integer that ``w`` takes; missing rows are 0."""
        word, at = 0, 0
        for g in range(self.groups):
            for n in range(self.simd):
                lane: Ints = [rows[p][n] if p < len(rows) else 0 for p in range(g * self.lanes, (g + 1) * self.lanes)]
                borrow = 0
                for value, bits in zip(lane, self.bits, strict=True):
                    stored = value - borrow
                    word |= pack_row([stored], bits) << at
                    at += bits
                    borrow = int(stored < 0) if self.encoded else 0
        return word

    def lanes_of(self, rows: Ints2) -> list[int]:
        """:meth:`encode` cut into single stored weights, signed: how operand sets travel in a stream."""
        word, values = self.encode(rows), []
        for bits in self.bits * (self.groups * self.simd):
            values.append((word & (1 << bits) - 1) - (word >> bits - 1 & 1) * (1 << bits))
            word >>= bits
        return values

    def word_of(self, lanes: Any) -> Value:
        """``w`` from the lanes of a beat."""
        return Cat(lanes[k][:bits] for k, bits in enumerate(self.bits * (self.groups * self.simd)))

    def weights_of(self, group: int, n: int) -> list[Value]:
        """The stored weights of one word, lowest lane first."""
        at = (group * self.simd + n) * sum(self.bits)
        result = []
        for bits in self.bits:
            result.append(self.w[at : at + bits].as_signed())
            at += bits
        return result

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        for group in range(self.groups):
            sums = self.packed(m, group) if self.packing else [self.plain(m, group)]
            for lane, total in enumerate(sums[: self.pe - group * self.lanes]):
                m.d.comb += self.o[group * self.lanes + lane].eq(total)
        return m

    def plain(self, m: Module, row: int) -> Value:
        """One row, a multiplier a product."""
        products = []
        for n in range(self.simd):
            (weight,) = self.weights_of(row, n)
            x, name = self.x[n], f"product{row}_{n}"
            soft = self.kind != "inferred"
            products.append(soft_product(m, x, weight, self.en, name) if soft else register(m, x * weight, self.en, name))
        return adder_tree(m, products, self.en, f"sum{row}")

    def packed(self, m: Module, group: int) -> list[Value]:
        """The rows of one group: chains of words, their lanes told apart, sums of fields less sums of spills."""
        packing = self.packing
        assert packing is not None
        fields: list[list[Value]] = [[] for _ in range(self.lanes)]
        carries: list[list[Value]] = [[] for _ in range(self.lanes)]
        start = 0
        for k, length in enumerate(self.chains):
            terms = list(range(start, start + length))
            total, lows = self.chain_sum(m, packing, group, terms, f"g{group}c{k}")
            for lane, (field, carry) in enumerate(self.separate(m, packing, total, lows, f"g{group}c{k}")):
                fields[lane].append(field)
                if carry is not None:
                    carries[lane + 1].append(carry)
            start += length
        result = []
        for lane in range(self.lanes):
            total = adder_tree(m, fields[lane], self.en, f"g{group}l{lane}_fields")
            if self.lanes == 1:
                result.append(total)
                continue
            if carries[lane]:
                total = total - adder_tree(m, carries[lane], self.en, f"g{group}l{lane}_spills")
            result.append(register(m, total, self.en, f"g{group}l{lane}_sum"))
        return result

    def low_bits(self, packing: Packing, group: int, n: int) -> list[list[Value]]:
        """Each upper lane's product modulo 2^spill of the lane below; empty lists where nothing spills."""
        weights = self.weights_of(group, n)
        result = []
        for lane, bits in enumerate(packing.spills, 1):
            weight: Any = weights[lane][: min(bits, len(weights[lane]))]
            if self.encoded and bits:  # the weight is what is stored plus the borrow
                borrow = [weights[lane - 1][-1], *[Const(0)] * (len(weight) - 1)]
                weight = Cat(add_mod(list(weight), borrow))
            result.append(multiply_mod(Value.cast(self.x[n]), weight, bits) if bits else [])
        return result

    def chain_sum(self, m: Module, packing: Packing, group: int, terms: Sequence[int], name: str) -> tuple[Value, list[Value]]:
        """A chain's sum of words, and as late the sums of the low bits of each upper lane."""
        make = {"dsp48e2": self.dsp_chain, "mult18x18d": self.mult_chain}.get(self.kind, self.inferred_chain)
        total, delay = make(m, packing, group, terms, name)
        lows = []
        for lane, bits in enumerate(packing.spills):
            parts = []
            for n in terms:
                low = self.low_bits(packing, group, n)[lane]
                parts.append(register(m, Cat(low), self.en, f"{name}_low{lane}_{n}") if bits else Const(0))
            acc = list(parts[0])
            for part in parts[1:]:
                acc = add_mod(acc, list(part))
            value: Value = Cat(acc) if bits else Const(0)
            for k in range(delay - 1 if bits else 0):
                value = register(m, value, self.en, f"{name}_low{lane}_d{k}")
            lows.append(value)
        return total[: packing.total_bits].as_signed(), lows

    def stored_word(self, packing: Packing, group: int, n: int) -> Value:
        """Encoded weights laid side by side, each sign-extended up to the next: the packed operand, by wiring."""
        parts: list[Value] = []
        for lane, weight in enumerate(self.weights_of(group, n)):
            room = packing.fields[lane] if lane < self.lanes - 1 else len(weight)
            parts.append(Cat(weight, weight[-1].replicate(room - len(weight))))
        return Cat(parts).as_signed()

    def inferred_chain(self, m: Module, packing: Packing, group: int, terms: Sequence[int], name: str) -> tuple[Value, int]:
        words = [register(m, self.x[n] * self.stored_word(packing, group, n), self.en, f"{name}_word{n}") for n in terms]
        return self.words_sum(m, words, name), 1 + self.word_levels

    def mult_chain(self, m: Module, packing: Packing, group: int, terms: Sequence[int], name: str) -> tuple[Value, int]:
        words: list[Value] = []
        for n in terms:
            m.submodules[f"{name}_mult{n}"] = mult = Mult18x18d()
            m.d.comb += [mult.a.eq(self.x[n]), mult.b.eq(self.stored_word(packing, group, n)), mult.en.eq(self.en)]
            # The way from a multiplier to its adder is long: a register half-way.
            words.append(register(m, mult.p[: packing.total_bits].as_signed(), self.en, f"{name}_word{n}"))
        return self.words_sum(m, words, name), Mult18x18d.LATENCY + 1 + self.word_levels

    def words_sum(self, m: Module, words: Sequence[Value], name: str) -> Value:
        """Sum of a chain's words with a register a level; a short chain waits for the longer ones."""
        total = adder_tree(m, words, self.en, f"{name}_total", every=1)
        for k in range(self.word_levels - tree_stages(len(words), every=1)):
            total = register(m, total, self.en, f"{name}_wait{k}")
        return total

    def dsp_chain(self, m: Module, packing: Packing, group: int, terms: Sequence[int], name: str) -> tuple[Value, int]:
        """Slices in cascade: operands of position j come j cycles later; the pre-adder packs signed weights as D - A."""
        before: Dsp48e2 | None = None
        for j, n in enumerate(terms):
            rnd = sum(packing.bias << o for o in packing.offsets) if j == 0 else 0
            m.submodules[f"{name}_dsp{n}"] = dsp = Dsp48e2(rnd=rnd, cascade=j > 0)
            operands: list[Value] = [Value.cast(self.x[n]), *self.weights_of(group, n)]
            for k in range(j):
                operands = [register(m, v, self.en, f"{name}_x{n}_{i}_{k}") for i, v in enumerate(operands)]
            x, *weights = operands
            pieces, sign_pieces, at = [], [], 0
            for lane, weight in enumerate(weights):
                top, last = len(weight) - 1, lane == self.lanes - 1
                room = (packing.offsets[lane + 1] if not last else 27) - at
                pieces.append(Cat(weight, weight[-1].replicate(room - len(weight))) if last else Cat(weight[:top], Const(0, room - top)))
                sign_pieces.append(Const(0, room) if last else Cat(Const(0, top), weight[-1], Const(0, room - top - 1)))
                at += room
            m.d.comb += [dsp.d.eq(Cat(pieces)), dsp.a.eq(Cat(sign_pieces)), dsp.b.eq(x), dsp.en.eq(self.en)]
            if before is not None:
                m.d.comb += dsp.pcin.eq(before.pcout)
            before = dsp
        assert before is not None
        total: Value = before.p
        for k in range(self.chain - len(terms)):  # a shorter chain waits for the others
            total = register(m, total, self.en, f"{name}_wait{k}")
        return total, Dsp48e2.LATENCY + self.chain - 1

    def separate(self, m: Module, packing: Packing, total: Value, lows: Sequence[Value], name: str) -> list[tuple[Value, Value | None]]:
        """Registered (field with its spill, spill that the next lane must lose) of each lane: Packing.separate."""
        result: list[tuple[Value, Value | None]] = []
        for lane, (field, spill) in enumerate(zip(packing.fields, packing.spills, strict=True)):
            at = packing.offsets[lane]
            part = total[at : at + field]
            carry: Value | None = None
            if spill:
                bits = subtract_mod(list(total[at + field : at + field + spill]), list(lows[lane]))
                whole, carry = Cat(part, *bits), Cat(bits)
                if not packing.bias:
                    whole, carry = whole.as_signed(), carry.as_signed()
            elif packing.bias:
                whole = part
            else:
                whole, carry = part.as_signed(), part[-1:].as_signed()
            registers = register(m, whole, self.en, f"{name}_field{lane}")
            spilled = None if carry is None else (registers[field:] if spill else registers[-1:])
            if spilled is not None and not packing.bias:
                spilled = spilled.as_signed()
            result.append((registers, spilled))
        last = total[packing.offsets[-1] :]
        result.append((register(m, last if packing.bias else last.as_signed(), self.en, f"{name}_field{self.lanes - 1}"), None))
        return result
