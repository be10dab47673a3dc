"""Adder trees, comparisons and packed constants."""
from __future__ import annotations

from collections.abc import Iterable, Sequence

from amaranth.hdl import Cat, Const, Module, Signal, Value


def bits_for(values: Iterable[int]) -> int:
    """Bits of the smallest signed type that holds all ``values``."""
    return max((v if v >= 0 else ~v).bit_length() for v in values) + 1


def wrap(value: int, bits: int) -> int:
    """``value`` as ``bits`` of two's complement hold it."""
    half = 1 << bits - 1
    return (value + half & (1 << bits) - 1) - half


def pack_row(values: Iterable[int], bits: int) -> int:
    """Integers side by side as one memory row, the first lowest, each two's complement in ``bits``."""
    row = 0
    for k, value in enumerate(values):
        row |= (value & (1 << bits) - 1) << k * bits
    return row


def tree_stages(terms: int, every: int = 2) -> int:
    """Registers that a value passes in :func:`adder_tree`."""
    levels = max(terms - 1, 0).bit_length()
    return -(-levels // every)


def adder_tree(m: Module, terms: Sequence[Value], en: Value, name: str, every: int = 2) -> Value:
    """Exact sum of ``terms``, pairwise, with a register after every ``every`` levels and the last; they move when ``en`` is set.

    Latency :func:`tree_stages`; a single term passes without a register. Not ``sum()``, whose chain is as deep as it is long
    and a bit wider at every step.
    """
    level = 0
    row = list(terms)
    while len(row) > 1:
        row = [row[k] + row[k + 1] if k + 1 < len(row) else row[k] for k in range(0, len(row), 2)]
        level += 1
        if level % every == 0 or len(row) == 1:
            registers = [Signal(v.shape(), name=f"{name}_{level}_{k}", reset_less=True) for k, v in enumerate(row)]
            with m.If(en):
                m.d.sync += [r.eq(v) for r, v in zip(registers, row, strict=True)]
            row = list(registers)
    return row[0]


def add_carry(a: Value, b: Value, carry: Value) -> Value:
    """``a + b + carry`` in one adder, signed and as wide as ``a``; written as two additions it would become two."""
    wide = Cat(Const(1, 1), a).as_signed() + Cat(carry, b).as_signed()
    return wide[1 : len(a) + 1].as_signed()


def ordered(value: Value) -> Value:
    """Unsigned numbers in the order of ``value``, signed or not: comparing them takes one carry chain, signed ones ECP5's tools two."""
    return Cat(value[:-1], ~value[-1]) if value.shape().signed else value
