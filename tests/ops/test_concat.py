# amaranth: UnusedElaboratable=no
"""Concat: hardware against golden."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hw.params import Lanes
from hw.units.concat import ConcatUnit
from sim.run import Case
from sw.ops import Concat


def case(
    name: str, sizes: tuple[int, ...], lanes: Lanes, *, interleave: bool = False, size: tuple[int, int] = (2, 3), pysim: bool = False
) -> Case:
    """Random frames over the whole range."""
    rng = np.random.default_rng(len(name))
    inputs = tuple(rng.integers(lanes.lowest, lanes.highest + 1, (3, *size, c)) for c in sizes)
    unit = ConcatUnit(height=size[0], width=size[1], sizes=sizes, interleave=interleave, i=lanes)
    return Case(name=name, unit=unit, op=Concat(interleave=interleave), inputs=inputs, pysim=pysim)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case("halves", (4, 4), Lanes(lanes=2, bits=8, signed=True)),
        case("uneven", (2, 6, 4), Lanes(lanes=2, bits=4, signed=False), pysim=True),
        case("one_pixel", (3, 1), Lanes(lanes=1, bits=1, signed=False), size=(1, 1)),
        case("woven", (4, 4), Lanes(lanes=2, bits=8, signed=True), interleave=True, pysim=True),
        case("woven_three", (3, 3, 3), Lanes(lanes=3, bits=5, signed=False), interleave=True),
        case("woven_single", (2, 2), Lanes(lanes=1, bits=16, signed=True), interleave=True, size=(1, 1)),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "interleave", "message"),
    [((4,), False, "at least two"), ((4, 3), False, "multiples of the 2 lanes, not 3"), ((4, 2), True, "must be equal")],
)
def test_wrong_sizes_are_refused(sizes: tuple[int, ...], interleave: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConcatUnit(sizes=sizes, interleave=interleave, i=Lanes(lanes=2, bits=8, signed=True))
