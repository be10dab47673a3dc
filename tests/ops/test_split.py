# amaranth: UnusedElaboratable=no
"""Split: hardware against golden."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hw.params import Lanes
from hw.units.split import SplitUnit
from sim.run import Case
from sw.ops import Split


def case(name: str, sizes: tuple[int, ...], lanes: Lanes, height: int = 2, width: int = 3, pysim: bool = False) -> Case:
    """Random frames over the whole range."""
    x = np.random.default_rng(len(name)).integers(lanes.lowest, lanes.highest + 1, (3, height, width, sum(sizes)))
    unit = SplitUnit(height=height, width=width, sizes=sizes, i=lanes)
    return Case(name=name, unit=unit, op=Split(sizes=sizes), inputs=(x,), pysim=pysim)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case("halves", (4, 4), Lanes(lanes=2, bits=8, signed=True)),
        case("uneven", (2, 6, 4), Lanes(lanes=2, bits=4, signed=False), pysim=True),
        case("one_beat_each", (4, 4), Lanes(lanes=4, bits=16, signed=True)),
        case("one_pixel", (3, 1), Lanes(lanes=1, bits=1, signed=False), 1, 1),
    ])  # fmt: skip


@pytest.mark.parametrize(("sizes", "message"), [((4,), "at least two"), ((4, 3), "multiples of the 2 lanes, not 3"), ((4, 0), "not 0")])
def test_wrong_sizes_are_refused(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitUnit(sizes=sizes, i=Lanes(lanes=2, bits=8, signed=True))
