"""Several products side by side in one wide multiplication: the arithmetic, without any hardware.

Products with a shared factor x fit into one multiplier: ``x · Σ_l w_l·2^(o_l) = Σ_l (x·w_l)·2^(o_l)``. The sums of a chain of
such words overlap where a lane is wider than its field; what a lane spills into the next is found from the next lane's sum
modulo a small power of two, which needs only the low bits of the operands. Facts: Xilinx WP521 states the idea for two INT4
lanes; overlap and repair after summing a chain are this project's (docs/arithmetic.md).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from hw.params import Multiplier, Range

#: Widest spill between lanes that is still cheap to find (inputs of the logic: three bits of each operand).
SPILL_BITS = 3


def signed_bits(values: Range) -> int:
    """Bits of the smallest signed type that holds all of a range."""
    return max((v if v >= 0 else ~v).bit_length() for v in (values.low, values.high)) + 1


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How ``lanes`` weights lie in one operand, and how the lanes of a sum of ``chain`` words are told apart.

    ``offsets``: lowest bit of each lane; ``weight``, ``x``: ranges of the operands; ``bias``: added to every lane of a
    chain's sum so that no lane is negative (0: lanes are signed).
    """

    offsets: tuple[int, ...]
    chain: int
    weight: Range
    x: Range
    bias: int = 0

    @property
    def lanes(self) -> int:
        return len(self.offsets)

    @property
    def fields(self) -> list[int]:
        """Bits up to the next lane, of all lanes but the last."""
        return [b - a for a, b in pairwise(self.offsets)]

    @property
    def lane(self) -> Range:
        """A lane's sum over the chain, the bias included."""
        corners = [a * b for a in (self.weight.low, self.weight.high) for b in (self.x.low, self.x.high)]
        return Range(low=self.chain * min(0, *corners) + self.bias, high=self.chain * max(0, *corners) + self.bias)

    @property
    def total_bits(self) -> int:
        """Bits of the chain's sum, signed."""
        low, high = (sum(v << o for o in self.offsets) for v in (self.lane.low, self.lane.high))
        return signed_bits(Range(low=low, high=high))

    @property
    def spills(self) -> list[int]:
        """Bits of what each lane but the last spills into the next: 0 where at most a sign does."""
        carry, result = Range(low=0, high=0), []
        for field in self.fields:
            low, high = (self.lane.low + carry.low) >> field, (self.lane.high + carry.high) >> field
            bits = high.bit_length() if self.bias else signed_bits(Range(low=low, high=high))
            # A signed lane that fits its field spills only its sign.
            fits = not self.bias and -1 <= (self.lane.low + carry.low) >> field - 1 and (self.lane.high + carry.high) >> field - 1 <= 0
            result.append(0 if fits else bits)
            carry = Range(low=low, high=high)
        return result

    def word(self, weights: Sequence[int]) -> int:
        """The operand that holds one weight a lane (missing ones are 0), a signed integer."""
        return sum(w << o for w, o in zip(weights, self.offsets, strict=False))

    def operand(self) -> Range:
        """The range of :meth:`word`."""
        return Range(low=self.word([self.weight.low] * self.lanes), high=self.word([self.weight.high] * self.lanes))

    def separate(self, total: int, lows: Sequence[int]) -> list[int]:
        """Lane sums of a chain's ``total`` (bias included), given the sums modulo 2^spill of lanes 1.. (``lows``).

        The definition that the hardware (hw/lib/dot.py) follows; the bias stays in the result.
        """
        result, carry = [], 0
        for k, (field, spill) in enumerate(zip(self.fields, self.spills, strict=True)):
            part = total >> self.offsets[k] & (1 << field) - 1
            if spill:
                seen = total >> self.offsets[k + 1]
                c = (seen - lows[k] - self.bias) & (1 << spill) - 1
                c -= (1 << spill) if not self.bias and c >> spill - 1 else 0
            else:
                c = -(part >> field - 1) if not self.bias else 0
            result.append(part + (c << field) - carry)
            carry = c
        result.append((total >> self.offsets[-1]) - carry)
        return result


def plan(*, lanes: int, width: int, chain: int, weight: Range, x: Range, biased: bool = False) -> Packing | None:
    """The packing of ``lanes`` weights in a signed operand of ``width`` bits, lanes as far apart as fit; None if none is exact."""
    top = width
    while top >= lanes - 1:
        top -= 1
        gaps = [top // (lanes - 1) + (k < top % (lanes - 1)) for k in range(lanes - 1)] if lanes > 1 else []
        offsets = tuple(sum(gaps[:k]) for k in range(lanes))
        candidate = Packing(offsets=offsets, chain=chain, weight=weight, x=x)
        if signed_bits(candidate.operand()) > width:
            continue
        if biased:
            bias = 1 << max(-candidate.lane.low - 1, 0).bit_length()
            candidate = Packing(offsets=offsets, chain=chain, weight=weight, x=x, bias=max(bias, 1 << SPILL_BITS))
        return candidate if all(s <= SPILL_BITS for s in candidate.spills) else None
    return None


#: Operand width, most lanes, and most words added before the lanes are told apart, of the packing multipliers.
PACKERS: dict[Multiplier, tuple[int, int, int]] = {
    "packed27": (27, 3, 2), "dsp48e2": (27, 3, 4), "packed18": (18, 2, 4), "mult18x18d": (18, 2, 4),
}  # fmt: skip


@cache
def packing_of(kind: Multiplier, simd: int, weight: Range, x: Range) -> Packing | None:
    """The densest exact packing that a kind of multiplier has for operands of these ranges; None if it takes one product each."""
    if kind not in PACKERS:
        return None
    width, most, longest = PACKERS[kind]
    for lanes in range(most, 0, -1):
        found = plan(lanes=lanes, width=width, chain=min(simd, longest), weight=weight, x=x, biased=kind == "dsp48e2")
        if found:
            return found
    raise ValueError(f"weights {weight.low}..{weight.high} do not fit the {width} bits of {kind}")
