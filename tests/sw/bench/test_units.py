# amaranth: UnusedElaboratable=no
"""What `warploom bench units` measures is measured."""
from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hw.lib.fifo import Fifo
from hw.params import Lanes
from sim.measure import measure
from sw.bench.cases import cases
from sw.bench.unit_case import PATTERNS, Copies
from sw.bench.units import KEYS, chosen
from sw.cli import app
from sw.errors import WarploomError

CASES = cases()


def test_cases_of_the_issue_are_there_and_their_plain_ones_too() -> None:
    assert {"pointwise/pe32_simd2_primitives", "core/48x16_portable", *(f"deform/{p}" for p in PATTERNS)} <= set(CASES)
    assert all(case.plain is None or case.plain in CASES for case in CASES.values())
    point = CASES["pointwise/pe32_simd2_primitives"]
    assert (point.multipliers, point.multiplications) == (64, 16 * 16 * 64 * 64)
    assert point.unit == "ConvUnit + RequantUnit", "the requantizer's multipliers are not counted"
    both = CASES["depthwise_pointwise/9_64"]
    assert (both.multipliers, both.multiplications) == (64 + 9, 16 * 16 * 32 * (64 + 9))


def test_deformable_and_plain_have_the_same_lanes() -> None:
    for case in CASES.values():
        if case.plain:
            assert case.multipliers == CASES[case.plain].multipliers and case.types[0] == CASES[case.plain].types[0]


def test_names_choose_a_case_or_a_group() -> None:
    assert chosen(["a/x", "a/y", "ab"], "a") == ["a/x", "a/y"]
    assert chosen(["a/x", "a/y", "ab"], "a/y") == ["a/y"]
    assert chosen(["a", "b"], None) == ["a", "b"]
    with pytest.raises(WarploomError, match="--case must be one of a, b"):
        chosen(["a", "b"], "c")


@pytest.mark.rtl
def test_records_are_complete_and_come_from_the_cache_the_second_time() -> None:
    first = CliRunner().invoke(app, ["bench", "units", "--json", "--case", "fifo/2"], catch_exceptions=False)
    (record,) = json.loads(first.stdout)
    assert tuple(record) == KEYS
    assert (record["case"], record["unit"], record["interval_cycles"], record["latency_cycles"]) == ("fifo/2", "Fifo", 1024, 1)
    assert record["ff"] == 2 * 64 + 2 and record["lut_levels"] >= 1 and record["fmax_mhz_ecp5"] > 100
    again = CliRunner().invoke(app, ["bench", "units", "--json", "--case", "fifo/2"], catch_exceptions=False)
    assert again.stdout == first.stdout


@pytest.mark.rtl
@pytest.mark.parametrize("flaw", ["value", "rate"])
def test_a_wrong_value_or_rate_is_not_measured_but_refused(flaw: str) -> None:
    class Wrong(Copies):
        def golden(self, x: Any) -> tuple[Any, ...]:
            return (x ^ (np.arange(x.size).reshape(x.shape) == 5) if flaw == "value" else x,)

    lanes = Lanes(lanes=1, bits=4, signed=False)
    with pytest.raises(AssertionError, match="lane 0: got" if flaw == "value" else "took 2 cycles, frame_cycles says 3"):
        measure("wrong", lambda: Fifo(lanes, 2), Wrong(), lambda n: (np.ones((n, 1, 2, 1), np.int64),), 3 if flaw == "rate" else 2)


def test_bench_keeps_its_own_options() -> None:
    shown = CliRunner().invoke(app, ["bench", "--help"]).stdout
    assert "--run" in shown and "--images" in shown and "units" in shown
