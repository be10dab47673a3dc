# amaranth: UnusedElaboratable=no
"""FIFO, fork, join and gearbox in Verilator, under the same bench as the units: random stalls on both sides, and full rate."""
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw.lib.fifo import Fifo, Kind
from hw.lib.fork import Fork
from hw.lib.join import Join
from hw.lib.regroup import Regroup
from hw.params import Lanes
from sim.run import Case, run_cases
from sw.ops import Array

LANES = Lanes(lanes=3, bits=5, signed=True)
KINDS: list[tuple[Kind, int]] = [("registers", 3), ("registers", 7), ("lut", 3), ("block", 9)]


class Copies:
    """Every output is the input."""

    name = "copies"

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        return (inputs[0],) * self.outputs


class Sides:
    """The inputs side by side."""

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        return (np.concatenate(inputs, axis=-1),)


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
    for n in (1, 3):
        parts = tuple(np.roll(frames((60, 1, 1, 3)), k, axis=0) for k in range(n))
        cases.append(Case(name=f"join {n}", unit=Join(LANES, n), op=Sides(), inputs=parts))  # type: ignore[arg-type]
    cases += [case(f"fifo of {kind} {depth}", Fifo(LANES, depth, kind), 1, (90, 1, 1, 3)) for kind, depth in KINDS]
    run_cases(cases, tmp_path)


def test_a_join_needs_an_input() -> None:
    with pytest.raises(ValueError, match="inputs must be a positive integer, not 0"):
        Join(LANES, 0)
