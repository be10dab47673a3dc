"""Products in logic: by Booth's digits (A. D. Booth, 1951; two bits of the weight a digit, as O. L. MacSorley, 1961, has it), or plain."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Cat, Const, Module, Signal, Value

from hw.lib.primitives import register


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


def soft_product(m: Module, x: Value, weight: Value, en: Signal, name: str) -> Value:
    """x · weight in logic, two registers: bits of the weight two by two, the top one negative, then their sum."""
    shifted = []
    for k in range(0, len(weight), 2):
        low = Cat(*(bit & weight[k] for bit in x))
        low = low.as_signed() if x.shape().signed else low
        part: Value = low
        if k + 1 < len(weight):
            high = Cat(*(bit & weight[k + 1] for bit in x))
            high = high.as_signed() if x.shape().signed else high
            part = low - (high << 1) if k + 2 == len(weight) else low + (high << 1)
        elif k + 1 == len(weight):
            part = -low
        shifted.append(register(m, part, en, f"{name}_{k}") << k)
    total = shifted[0]
    for part in shifted[1:]:
        total = total + part
    return register(m, total, en, name)
