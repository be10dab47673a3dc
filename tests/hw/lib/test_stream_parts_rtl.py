# amaranth: UnusedElaboratable=no
"""FIFO, fork and gearbox in Verilator, under the same bench as the units: random stalls on both sides, and full rate."""
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw.lib.fifo import Fifo
from hw.lib.fork import Fork
from hw.lib.regroup import Regroup
from hw.params import Lanes
from sim.run import Case, run_cases
from sw.ops import Array

LANES = Lanes(lanes=3, bits=5, signed=True)


class Copies:
    """Every output is the input."""

    name = "copies"

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        return (inputs[0],) * self.outputs


def frames(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).integers(LANES.lowest, LANES.highest + 1, shape)


def case(name: str, unit: Any, outputs: int, shape: tuple[int, ...]) -> Case:
    return Case(name=name, unit=unit, op=Copies(outputs), inputs=(frames(shape),))  # type: ignore[arg-type]


@pytest.mark.rtl
def test_stream_parts(tmp_path: Path) -> None:
    # A queue and a fork know no frames: a frame of one beat has the interval that they state.
    cases = [case(f"fifo {depth}", Fifo(LANES, depth), 1, (90, 1, 1, 3)) for depth in (1, 2, 3, 8, 37)]
    cases += [case(f"fork {n}", Fork(LANES, n), n, (60, 1, 1, 3)) for n in (2, 3)]
    for channels, o_lanes in ((6, 1), (6, 2), (7, 2), (7, 7), (4, 4), (8, 5)):
        unit = Regroup(channels=channels, i=LANES, o_lanes=o_lanes, pixels=6)
        cases.append(case(f"{channels} channels to {o_lanes}", unit, 1, (4, 2, 3, channels)))
    run_cases(cases, tmp_path)
