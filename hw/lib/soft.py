"""Products in logic, by Booth's digits (A. D. Booth, 1951; two bits of the weight a digit, as O. L. MacSorley, 1961, has it)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Cat, Const, Value


def booth(x: Any, weight: Any) -> list[tuple[Value, Value]]:
    """``x · weight`` for a signed weight as rows (row, negative): it is Σ 4^k · (row_k + negative_k), rows signed.

    A digit is -2, -1, 0, 1 or 2 by three bits of the weight, so a bit of a row takes one LUT of five inputs.
    """
    signed = x.shape().signed
    bits = [*weight, *[weight[-1]] * (len(weight) % 2)]
    rows = []
    for k in range(0, len(bits), 2):
        before, low, high = bits[k - 1] if k else Const(0), bits[k], bits[k + 1]
        once, twice = low ^ before, (high & ~low & ~before) | (~high & low & before)
        top: Value = x[-1] if signed else Const(0, 1)
        wide = [*x, top, *[top] * (not signed)]
        row = Cat(high ^ ((once & wide[n]) | (twice & wide[n - 1] if n else 0)) for n in range(len(wide)))
        rows.append((row.as_signed(), high))
    return rows


def booth_sum(rows: Sequence[tuple[Value, Value]]) -> tuple[Value, Value]:
    """(product less a carry, carry): the first row's carry is left for the adder that takes the product."""
    *rest, (total, carry) = rows
    for row, negative in reversed(rest):
        # The two low bits of a row pass the adder by.
        upper = (Cat(Const(1, 1), row[2:]).as_signed() + Cat(carry, total).as_signed()) >> 1
        total, carry = Cat(row[:2], upper).as_signed(), negative
    return total, carry
