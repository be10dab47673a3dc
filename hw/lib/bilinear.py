"""Bilinear interpolation of words, exact and without multipliers."""
from __future__ import annotations

from collections.abc import Sequence

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import data

from hw.lib.arith import adder_tree, tree_stages
from hw.params import Lanes
from hw.units.base import layout


def later(m: Module, step: Value, value: Value, stages: int, *, reset_less: bool = False) -> Value:
    """``value`` as it was ``stages`` steps ago."""
    for _ in range(stages):
        register = Signal(len(value), reset_less=reset_less)
        with m.If(step):
            m.d.sync += register.eq(value)
        value = register
    return value


def interpolate_stages(frac_bits: int) -> int:
    """Steps that :func:`interpolate` takes: one for the neighbours, then for each direction the difference and an adder tree."""
    return 3 + 2 * tree_stages(frac_bits + 1)


def interpolate(m: Module, step: Value, lanes: Lanes, words: Sequence[Value], fy: Value, fx: Value) -> Value:
    """The neighbours ``words`` (by 2·down + right, ``lanes`` each) along x, then along y, times 2^(2F) for fractions of F bits.

    The result has 2F bits more a lane. The products with the few bits of a fraction are sums of shifted differences. Latency:
    :func:`interpolate_stages`.
    """
    corners = [data.View(layout(lanes), later(m, step, word, 1)) for word in words]
    fx, fy = later(m, step, fx, 2), later(m, step, fy, 3 + tree_stages(len(fy) + 1))
    found = []
    for k in range(lanes.lanes):
        a, b, c, d = (corner[k] for corner in corners)
        upper, lower = (_between(m, step, lanes, (p, q), fx, f"{n}{k}") for p, q, n in ((a, b, "upper"), (c, d, "lower")))
        found.append(_between(m, step, lanes, (upper, lower), fy, f"value{k}"))
    return Cat(found)


def _between(m: Module, step: Value, lanes: Lanes, ends: tuple[Value, Value], fraction: Value, name: str) -> Value:
    """``p·2^F + fraction·(q - p)``, exactly, 1 + tree_stages(F + 1) steps later; ``fraction`` comes one step after the ends."""
    p, q = ends
    base, difference = (Signal(v.shape(), name=f"{name}_{n}", reset_less=True) for v, n in ((p, "base"), (q - p, "difference")))
    with m.If(step):
        m.d.sync += [base.eq(p), difference.eq(q - p)]
    terms = [base << len(fraction), *(Mux(bit, difference << n, 0) for n, bit in enumerate(fraction))]
    total = adder_tree(m, terms, step, f"{name}_sum")[: len(p) + len(fraction)]
    return total.as_signed() if lanes.signed else total
