"""Fixtures that every operator's test uses."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hw.testing import lanes_of, run_streams, stream_ports
from sim.beats import pack, unpack
from sim.run import Case, run_cases
from sw.ops.base import Array


def lane_beats(array: Array, unit: object, port: str) -> list[list[int]]:
    """A map as the beats of one port, each a list of lanes."""
    lanes = lanes_of(getattr(unit, port))
    values: list[list[int]] = unpack(pack(array, lanes), lanes, lanes.lanes).tolist()
    return values


def check_pysim(case: Case) -> None:
    """Run one case in the Amaranth simulator with random gaps."""
    inputs, outputs = stream_ports(case.unit)
    run_streams(
        case.unit,
        {port: lane_beats(x, case.unit, port) for port, x in zip(inputs, case.inputs, strict=True)},
        {port: lane_beats(y, case.unit, port) for port, y in zip(outputs, case.outputs, strict=True)},
    )


@pytest.fixture
def check_units(tmp_path: Path) -> Callable[[Sequence[Case]], None]:
    """Check cases against golden: in the Amaranth simulator those that ask for it, all together in Verilator."""

    def check(cases: Sequence[Case]) -> None:
        for case in cases:
            if case.pysim:
                check_pysim(case)
        run_cases(cases, tmp_path / "bench")

    return check
