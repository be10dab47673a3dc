"""Exact arithmetic on scales: ratios as m·2^-s, and whether rounding can meet a tie."""
from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

#: Multipliers have at most this many bits (DESIGN.md section 3).
MULTIPLIER_BITS = 16
MAX_SHIFT = 47
#: Accumulators of at most this many bits are tried exhaustively.
EXHAUSTIVE_BITS = 18


def exact(values: np.ndarray | float) -> tuple[Fraction, ...]:
    """The values (float32 or float64, any shape) as exact fractions, flat."""
    return tuple(Fraction(float(v)) for v in np.asarray(values).ravel())


def dyadic(ratio: Fraction) -> tuple[int, int, bool]:
    """``ratio`` as (m, s, exact) with ratio ≈ m·2^-s, |m| < 2^16 and 1 ≤ s ≤ 47; m is odd where that is possible.

    Exact when ``ratio`` has that form; otherwise m has 16 bits, a relative error of at most 2^-16.
    ValueError for a ratio of 2^15 or more in magnitude.
    """
    if ratio == 0:
        return 0, 1, True
    sign, size = (1, ratio) if ratio > 0 else (-1, -ratio)
    numerator, denominator = size.numerator, size.denominator
    shift = denominator.bit_length() - 1
    if denominator == 1 << shift and numerator.bit_length() <= MULTIPLIER_BITS and shift <= MAX_SHIFT:
        if shift == 0:
            numerator, shift = numerator * 2, 1
        if numerator.bit_length() > MULTIPLIER_BITS:
            raise ValueError(f"a multiplier of {float(ratio)} is too large")
        return sign * numerator, shift, True
    shift = MULTIPLIER_BITS - _exponent(size)
    if shift < 1:
        raise ValueError(f"a multiplier of {float(ratio)} is too large")
    if shift > MAX_SHIFT:
        scaled = round(size * (1 << MAX_SHIFT))
        return sign * scaled, MAX_SHIFT, Fraction(scaled, 1 << MAX_SHIFT) == size
    m = min(round(size * (1 << shift)), (1 << MULTIPLIER_BITS) - 1)
    return sign * m, shift, False


def _exponent(size: Fraction) -> int:
    """e with 2^(e-1) ≤ size < 2^e."""
    e = size.numerator.bit_length() - size.denominator.bit_length()
    return e + 1 if size >= Fraction(2) ** e else e


def can_tie(multipliers: Sequence[int], shifts: Sequence[int], low: int, high: int, reach: int) -> bool:
    """Whether any ``acc·m·2^-s`` with |acc| ≤ ``reach`` lies half-way between two integers inside ``low..high``.

    With m odd after reduction a tie needs |acc| ≥ 2^(s-1), that is |y| ≥ m/2; beyond the clamp it does not matter.
    """
    for multiplier, shift in zip(multipliers, shifts, strict=True):
        m, s = abs(int(multiplier)), int(shift)
        while m and m % 2 == 0 and s > 0:
            m, s = m // 2, s - 1
        if m == 0 or s == 0:
            continue
        first_tie = Fraction(m, 2)  # |y| at |acc| = 2^(s-1)
        if reach >= 1 << s - 1 and first_tie <= max(abs(low), abs(high)) + 1:
            return True
    return False


def differing(ratio: Fraction, m: int, s: int, values: tuple[int, int], clamp: tuple[int, int], *, floor: bool) -> int:
    """How many accumulators in the range ``values`` ``m·2^-s`` rounds to another integer than ``ratio``, the clamp applied.

    The true result is rounded to nearest, ties to even, or down with ``floor``; the other one as the hardware does, ties upwards.
    """
    acc = np.arange(values[0], values[1] + 1, dtype=np.int64)
    p, q = ratio.numerator, ratio.denominator
    if abs(p) * int(np.abs(acc).max()) * 2 + q >= 1 << 62:
        acc = acc.astype(object)  # Python integers: slow but exact
    if floor:
        true = acc * p // q
    else:
        true = (2 * acc * p + q) // (2 * q)
        true = true - ((2 * acc * p + q) % (2 * q) == 0) * (true % 2)  # a tie went up to an odd number: it belongs below
    half = 0 if floor else 1 << s - 1
    got = acc * m + half >> s
    return int(np.count_nonzero(np.clip(true, *clamp) != np.clip(got, *clamp)))
