"""Rounding and saturation: the twins in hw/lib/fixed.py and sw/ops/requant.py agree on every value."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal, signed
from amaranth.sim import Simulator

from hw.lib.fixed import ROUNDINGS, Rounding, rescale, saturate
from sw.ops import requant

BITS = 7
ACCS = np.arange(-(1 << BITS - 1), 1 << BITS - 1)
MULTIPLIERS = [1, -1, 3, -5, 7, -8]
SHIFTS = [1, 2, 3, 6, 9]


def outputs(acc: Any, value: Any, extra: Sequence[tuple[Any, int]] = ()) -> list[int]:
    """``value`` for each of ACCS."""
    out = Signal(signed(32))
    m = Module()
    m.d.comb += out.eq(value)
    got: list[int] = []

    async def sweep(ctx: Any) -> None:
        for signal, constant in extra:
            ctx.set(signal, constant)
        for x in ACCS.tolist():
            ctx.set(acc, x)
            got.append(ctx.get(out))

    sim = Simulator(m)
    sim.add_testbench(sweep)
    sim.run()
    return got


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("constant", [True, False])
def test_rescale_equals_its_twin(rounding: Rounding, multiplier: int, constant: bool) -> None:
    for shift in SHIFTS:
        acc, m, s = Signal(signed(BITS)), Signal(signed(4)), Signal(range(max(SHIFTS) + 1))
        if constant:
            got = outputs(acc, rescale(acc, multiplier, shift, rounding))
        else:
            got = outputs(acc, rescale(acc, m, s, rounding), [(m, multiplier), (s, shift)])
        expected = requant.rescale(ACCS, np.array(multiplier), np.array(shift), rounding)
        assert got == expected.tolist(), f"shift {shift}"


@pytest.mark.parametrize(("low", "high"), [(-64, 63), (0, 15), (-8, 7), (3, 3), (-64, -2)])
def test_saturate_equals_clip(low: int, high: int) -> None:
    acc = Signal(signed(BITS))
    assert outputs(acc, saturate(acc, low, high)) == np.clip(ACCS, low, high).tolist()
