# amaranth: UnusedElaboratable=no
"""Every unit over parameters drawn at random: golden equality with stalls and at full rate, throughput and latency.

Hypothesis draws from fixed seeds, the same cases in every run; one Verilator build carries them all, the smallest of each unit also run in
the Amaranth simulator. A few of each in `make test`, many under the slow mark, where what must be covered is asserted. Either
run writes the table of what was covered to build/coverage/units.md.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from sim.run import Case
from sw.cache import ROOT
from tests.ops.drawing import Draw, Drawn
from tests.ops.drawn_units import UNITS

#: What the slow run must cover, of every unit that has the parameter.
WANTED: dict[str, set[Any]] = {
    "kernel": {3, 5, 7, 9}, "stride": {1, 2}, "dilation": {1, 2}, "signed": {True, False}, "taps": {"1", "K", "K·K"},
    "frac_bits": {0, 1, 2, 3, 4}, "free": {True, False}, "upsample": {1, 2, 4},
    "whole beats": {True, False}, "groups": {"1", "2-3", "4 or more"}, "lines": {"ring", "paged"},
}  # fmt: skip
#: What a unit does not have: sums are signed, lanes divide the channels, the sizes drawn for the deformable unit.
EXCEPT: dict[tuple[str, str], set[Any]] = {
    ("requant", "signed"): {False}, ("split", "whole beats"): {False}, ("concat", "whole beats"): {False},
    ("decode", "whole beats"): {False}, ("deform", "kernel"): {7, 9},
    ("split", "groups"): {"1"}, ("concat", "groups"): {"4 or more"}, ("image", "groups"): {"4 or more"},
}  # fmt: skip


def some(make: Callable[[Draw], Drawn], count: int) -> list[Drawn]:
    """``count`` cases of one unit, the same in every run; the first is the simplest that there is."""
    return [_one(make, turn) for turn in range(count)]


def _one(make: Callable[[Draw], Drawn], turn: int) -> Drawn:
    found: list[Drawn] = []

    @seed(turn)
    @settings(max_examples=2, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.data())
    def collect(data: Any) -> None:
        found.append(make(Draw(data, turn)))

    collect()  # Hypothesis begins with the simplest example
    return found[-1 if turn else 0]


def examples(count: int, more: dict[str, int]) -> Iterator[Drawn]:
    """``count`` of each unit, other numbers of those named."""
    for make in UNITS:
        yield from some(make, more.get(make.__name__, count))


def covered(found: list[Drawn]) -> dict[str, dict[str, Counter[Any]]]:
    """How often each value of each parameter of each unit occurred."""
    result: dict[str, dict[str, Counter[Any]]] = {}
    for one in found:
        for name, value in one.parameters.items():
            result.setdefault(one.unit, {}).setdefault(name, Counter())[value] += 1
    return result


def report(found: list[Drawn], name: str) -> None:
    """Write the table."""
    lines = [f"# Parameters covered by {len(found)} drawn units ({name})", "", "| unit | parameter | value: cases |", "| --- | --- | --- |"]
    for unit, parameters in sorted(covered(found).items()):
        for parameter, values in sorted(parameters.items()):
            counts = ", ".join(f"{value}: {count}" for value, count in sorted(values.items(), key=lambda item: str(item[0])))
            lines.append(f"| {unit} | {parameter} | {counts} |")
    path = ROOT / "build" / "coverage" / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def check(found: list[Drawn], check_units: Any) -> None:
    """The smallest case of each unit also in the Amaranth simulator (but a join, which has no clock)."""
    smallest: dict[str, Drawn] = {}
    for one in found:
        if one.unit == "join":
            continue
        best = smallest.get(one.unit)
        if best is None or one.case.frame_cycles < best.case.frame_cycles:
            smallest[one.unit] = one
    chosen = {id(one) for one in smallest.values()}
    check_units([replace_pysim(one.case) if id(one) in chosen else one.case for one in found])


def replace_pysim(case: Case) -> Case:
    return Case(
        name=case.name, unit=case.unit, op=case.op, inputs=case.inputs, pysim=True, interval=case.interval, latency=case.latency
    )


@pytest.mark.rtl
def test_units_drawn_at_random(check_units: Any) -> None:
    found = list(examples(2, {"depthwise": 4, "part": 4}))
    report(found, "units")
    check(found, check_units)


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_units_drawn_at_random(part: int, check_units: Any) -> None:
    """Four builds share them; all must together cover what is wanted."""
    found = list(examples(16, {"depthwise": 40, "deform": 24, "pool": 24}))
    report(found, "units_slow")
    seen = covered(found)
    for unit, parameters in seen.items():
        for name, values in parameters.items():
            missing = WANTED.get(name, set()) - set(values) - EXCEPT.get((unit, name), set())
            assert not missing, f"{unit}: no case has {name} in {missing}"
    check(found[part::4], check_units)
