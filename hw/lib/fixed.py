"""Rounding and saturation, the one copy in hardware. Twin of sw.ops.requant.rescale; tests compare the two exhaustively."""
from __future__ import annotations

from typing import Any, Literal

from amaranth.hdl import Const, Mux, Value

Rounding = Literal["half_up", "half_even", "floor"]
ROUNDINGS: tuple[Rounding, ...] = ("half_up", "half_even", "floor")


def shift_right(value: Value, count: Value) -> tuple[Any, Any]:
    """``value >> count`` and whether a bit that fell out was set."""
    mask = ((Const(1) << count) - 1)[: len(value)]
    return value >> count, (value & mask).any()


def shift_keep(product: Value, shift: Value | int) -> tuple[Any, Any]:
    """``product >> (shift - 1)``, which keeps the first discarded bit, and whether a bit below that was set; shift >= 1.

    Rounding in two steps (this, then :func:`round_kept`) lets a register stand between the shifter and the adder, and the
    adder is as narrow as the result.
    """
    if isinstance(shift, int):
        return product >> shift - 1, product[: shift - 1].any() if shift > 1 else Const(0)
    return shift_right(product, (shift - 1)[: len(shift)])


def round_kept(kept: Value, sticky: Value, rounding: Rounding) -> Value:
    """Second half of the rounding: half of ``kept``, rounded."""
    whole = kept >> 1
    if rounding == "floor":
        return whole
    if rounding == "half_up":
        return whole + kept[0]
    odd = kept[1] if len(kept) > 1 else kept[0]
    return whole + (kept[0] & (odd | sticky))


def rescale(acc: Value, multiplier: Value | int, shift: Value | int, rounding: Rounding) -> Value:
    """``round(acc · multiplier · 2^-shift)`` as one expression: what the pipeline of RequantUnit computes in steps."""
    return round_kept(*shift_keep(acc * multiplier, shift), rounding)


def saturate(value: Value, low: int, high: int) -> Value:
    """``value`` clamped to ``low..high``."""
    return Mux(value < low, low, Mux(value > high, high, value))
