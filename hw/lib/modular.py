"""Arithmetic modulo 2^n as Boolean formulas: as '+' it would become carry chains, which cost more at two or three bits."""
from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Const, Value


def add_mod(a: Sequence[Value], b: Sequence[Value]) -> list[Value]:
    """(a + b) mod 2^n of two little-endian bit lists."""
    total, carry = [], None
    for x, y in zip(a, b, strict=True):
        half = x ^ y
        total.append(half if carry is None else half ^ carry)
        carry = (x & y) if carry is None else (x & y) | (carry & half)
    return total


def subtract_mod(a: Sequence[Value], b: Sequence[Value]) -> list[Value]:
    """(a - b) mod 2^n."""
    total, borrow = [], None
    for x, y in zip(a, b, strict=True):
        half = x ^ y
        total.append(half if borrow is None else half ^ borrow)
        borrow = (~x & y)[0] if borrow is None else ((~x & y) | (borrow & ~half))[0]
    return total


def multiply_mod(x: Value, w: Value, bits: int) -> list[Value]:
    """(x · w) mod 2^n from the low bits of both."""
    rows = [[x[k - j] & w[j] if 0 <= k - j < len(x) and j < len(w) else None for k in range(bits)] for j in range(bits)]
    total: list[Value] = [Const(0)] * bits
    for j, row in enumerate(rows):
        upper = [Const(0) if v is None else v for v in row[j:]]
        total = total[:j] + add_mod(total[j:], upper)
    return total
