# amaranth: UnusedElaboratable=no
"""Upsampling: hardware against golden."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hw.params import Lanes
from hw.units.upsample import UpsampleUnit
from sim.run import Case
from sw.ops import Upsample


def case(name: str, shape: tuple[int, int, int], lanes: Lanes, *, factor: int = 2, pysim: bool = False) -> Case:
    """Random frames over the whole range."""
    x = np.random.default_rng(len(name)).integers(lanes.lowest, lanes.highest + 1, (4, *shape))
    height, width, channels = shape
    unit = UpsampleUnit(height=height, width=width, channels=channels, factor=factor, i=lanes)
    return Case(name=name, unit=unit, op=Upsample(factor=factor), inputs=(x,), pysim=pysim)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case("plain", (3, 4, 4), Lanes(lanes=2, bits=8, signed=True)),
        case("partly_filled", (2, 3, 7), Lanes(lanes=4, bits=4, signed=False), pysim=True),
        case("three_times", (2, 5, 3), Lanes(lanes=1, bits=5, signed=True), factor=3),
        case("one_pixel", (1, 1, 1), Lanes(lanes=1, bits=16, signed=True)),
        case("one_column", (5, 1, 6), Lanes(lanes=8, bits=8, signed=True)),
        case("one_row", (1, 6, 4), Lanes(lanes=2, bits=12, signed=False)),
    ])  # fmt: skip


def test_wrong_factor_is_refused() -> None:
    with pytest.raises(ValueError, match="factor must be at least 2, not 1"):
        UpsampleUnit(height=1, width=1, channels=1, factor=1, i=Lanes(lanes=1, bits=8, signed=True))
