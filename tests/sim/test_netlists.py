# amaranth: UnusedElaboratable=no
"""What Yosys makes of the arithmetic units computes golden's integers, on both families."""
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hw.lib.fifo import Fifo
from hw.params import Lanes, Window
from sim.netlist import NetlistUnit, behaviour
from sim.run import Case, run_cases
from sw.bench.unit_case import Copies, UnitCase, chain, conv, depthwise, joined, kind, moved, requant, weights
from sw.ops import Deform
from sw.synth import netlist
from sw.synth.measure import Family
from sw.synth.tools import ToolError

SMALL = Window(kernel=(2, 3), pad=(1, 1, 0, 1))


def arithmetic(variant: str) -> list[Any]:
    """Small cases of every unit that multiplies."""
    acc = kind(2, 2, 5, 14, True)
    taps = Deform(weights=weights("d", 3, 3, 3), bias=weights("d", 3, bits=10), frac_bits=1, low=-4, high=3)
    return [
        chain("pointwise", kind(2, 2, 6), (conv("p", 6, 5), 2, 3), variant=variant),
        chain("conv", kind(3, 3, 3, 4, True), (conv("c", 3, 3, SMALL), 2, 2), variant=variant),
        chain("depthwise", kind(3, 3, 3), (depthwise("d", 3, SMALL), 2, 2), variant=variant),
        chain("requant", acc, (requant("r", acc), 2, 2), variant=variant),
        joined("deform", (kind(4, 3, 3), kind(4, 3, 1, 5, True)), taps, 2, 2),
    ]


def made(case: UnitCase, family: Family) -> Any:
    """The unit with the multipliers of its family."""
    return case.make_ecp5() if family == "ecp5" and case.make_ecp5 else case.make()


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("variant", "family"),
    [
        ("primitives", "xcup"),
        ("portable", "ecp5"),
        pytest.param("portable", "xcup", marks=pytest.mark.slow),
        pytest.param("primitives", "ecp5", marks=pytest.mark.slow),
    ],
)
def test_netlists_equal_golden(variant: str, family: Family, tmp_path: Path) -> None:
    cases = [
        Case(name=f"{case.name} {family}", unit=NetlistUnit(made(case, family), family, f"netlist{k}"), op=case.model, inputs=case.frames())
        for k, case in enumerate(arithmetic(variant))
    ]
    if (variant, family) == ("portable", "ecp5"):  # registers moved into multipliers are among what is simulated
        assert any('REG_OUTPUT_CLK("CLK0")' in netlist(made(case, family), family) for case in arithmetic(variant))
    run_cases(cases, tmp_path / "bench", runs=((False, False), (True, True)))


@pytest.mark.rtl
def test_block_ram_with_registers_moved_into_it_equals_golden(tmp_path: Path) -> None:
    """On ECP5: rings of 16 bits and of 8 bits, and a queue that has no register to be moved."""
    i = Lanes(lanes=2, bits=8, signed=False)
    made = [
        chain("window", kind(3, 200, 6), (depthwise("w", 6, SMALL), 2, 2)),
        chain("lines", kind(3, 700, 2), (depthwise("l", 2, SMALL), 1, 1)),
        moved("queue", partial(Fifo, i, 600, "block"), Copies(), kind(1, 700, 2), 700),
    ]
    units = [NetlistUnit(case.make(), "ecp5", f"block{k}") for k, case in enumerate(made)]
    texts = [netlist(case.make(), "ecp5") for case in made]
    assert [("OUTREG" in text, "DP16KD" in text) for text in texts] == [(True, True), (True, True), (False, True)]
    cases = [Case(name=c.name, unit=u, op=c.model, inputs=c.frames(), interval=c.interval) for c, u in zip(made, units, strict=True)]
    run_cases(cases, tmp_path / "bench", runs=((False, False), (True, True)))


@pytest.mark.rtl
def test_a_changed_netlist_is_noticed(tmp_path: Path) -> None:
    case = arithmetic("portable")[0]
    unit = NetlistUnit(case.make(), "ecp5", "netlist0")
    end = unit.text.index(";", unit.text.index("assign o__payload ="))
    unit.text = f"{unit.text[:end]} ^ 1{unit.text[end:]}"
    with pytest.raises(AssertionError, match="lane 0: got"):
        run_cases([Case(name="spoilt", unit=unit, op=case.model, inputs=case.frames())], tmp_path, runs=((False, False),))


def test_slices_used_otherwise_are_refused() -> None:
    text = 'module unit(input clk, output [47:0] p); DSP48E2 #(.USE_SIMD("TWO24")) d (.CLK(clk), .P(p)); endmodule'
    with pytest.raises(ToolError, match="not_modelled"):
        behaviour(text, "xcup")
