# amaranth: UnusedElaboratable=no
"""Channel shuffle: hardware against golden."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hw.params import Lanes
from hw.units.shuffle import ShuffleUnit
from sim.run import Case
from sw.ops import Shuffle


def case(name: str, channels: int, groups: int, lanes: Lanes, *, size: tuple[int, int] = (2, 3), pysim: bool = False) -> Case:
    """Random frames over the whole range."""
    x = np.random.default_rng(channels).integers(lanes.lowest, lanes.highest + 1, (3, *size, channels))
    unit = ShuffleUnit(height=size[0], width=size[1], channels=channels, groups=groups, i=lanes)
    return Case(name=name, unit=unit, op=Shuffle(groups=groups), inputs=(x,), pysim=pysim)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case("even", 8, 2, Lanes(lanes=2, bits=8, signed=True)),
        case("three_groups", 12, 3, Lanes(lanes=4, bits=4, signed=False)),
        case("partly_filled", 6, 2, Lanes(lanes=4, bits=5, signed=True), pysim=True),
        case("one_beat", 6, 3, Lanes(lanes=8, bits=8, signed=True)),
        case("one_lane", 4, 2, Lanes(lanes=1, bits=16, signed=True), size=(1, 1)),
    ])  # fmt: skip


@pytest.mark.parametrize("groups", [1, 3])
def test_wrong_groups_are_refused(groups: int) -> None:
    with pytest.raises(ValueError, match="groups must be at least 2 and divide the 8 channels"):
        ShuffleUnit(channels=8, groups=groups, i=Lanes(lanes=2, bits=8, signed=True))
