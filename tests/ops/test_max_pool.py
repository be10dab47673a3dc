# amaranth: UnusedElaboratable=no
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hw.params import Lanes, Window
from hw.units.max_pool import MaxPoolUnit
from sim.run import Case
from sw.ops.max_pool import MaxPool


def case(height: int, width: int, channels: int, window: Window, i: Lanes, *, pysim: bool = False) -> Case:
    x = np.random.default_rng(5).integers(i.lowest, i.highest + 1, (4, height, width, channels))
    x[0] = i.lowest  # nothing outside the map may win even against the lowest values
    unit = MaxPoolUnit(height=height, width=width, channels=channels, window=window, i=i)
    name = f"{height}x{width}x{channels} by {i.lanes} {window.kernel} stride {window.stride}"
    return Case(name=name, unit=unit, op=MaxPool(window=window), inputs=(x,), pysim=pysim)


@pytest.mark.rtl
def test_units(check_units: Callable[..., None]) -> None:
    resnet = Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1))
    halve = Window(kernel=(2, 2), stride=(2, 2))
    unsigned, signed = Lanes(lanes=4, bits=8, signed=False), Lanes(lanes=2, bits=8, signed=True)
    check_units([
        case(5, 4, 3, resnet, signed, pysim=True),
        case(8, 8, 8, resnet, unsigned),
        case(7, 9, 5, resnet, unsigned),
        case(8, 6, 4, halve, signed),
        case(7, 5, 5, halve, unsigned),
        case(6, 6, 3, Window(kernel=(2, 2), stride=(2, 2), pad=(1, 1, 1, 1)), signed),
        case(5, 6, 3, Window(kernel=(3, 3), pad=(1, 1, 1, 1)), Lanes(lanes=1, bits=4, signed=True)),
        case(6, 7, 2, Window(kernel=(2, 2), pad=(1, 1, 1, 1)), signed),
        case(5, 5, 6, Window(stride=(2, 2)), unsigned),
    ])  # fmt: skip


def test_says_what_it_takes() -> None:
    unit = MaxPoolUnit(height=8, width=8, channels=5, window=Window(kernel=(2, 2), stride=(2, 2)), i=Lanes(lanes=2, bits=8, signed=False))
    assert unit.frame_cycles == 8 * 8 * 3
    assert unit.multipliers == 0


def test_refuses_a_window_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        MaxPoolUnit(height=2, width=2, channels=1, window=Window(kernel=(3, 3)), i=Lanes(lanes=1, bits=8, signed=False))
