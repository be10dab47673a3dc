# amaranth: UnusedElaboratable=no
"""Requantization: hardware against golden."""
from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from hw.lib.fifo import Fifo
from hw.lib.fixed import Rounding
from hw.params import Lanes
from hw.testing import run_streams
from hw.units.requant import RequantUnit
from hw.verilog import convert
from sim.run import Case
from sw.ops import Requant

RNG = np.random.default_rng(5)


def case(
    name: str, channels: int, lanes: int, acc_bits: int, *, size: tuple[int, int] = (2, 3), shared: bool = False, slices: bool = False,
    split: int | None = None, spread: int = 20, top: int = 16, latency: int | None = None, **over: Any,
) -> Case:  # fmt: skip
    """Corner accumulators and ties first, then random ones; a multiplier and shift a channel unless ``shared``."""
    multiplier = RNG.integers(-(2**top) + 1, 2**top, channels)
    multiplier[:2] = 2**top - 1, -(2**top) + 1
    shift = RNG.integers(1, spread, channels)
    shift[:2] = 1, over.pop("longest", 30)
    if shared:
        multiplier, shift = np.full(channels, 4099), np.full(channels, 14)
    fields: dict[str, Any] = {"low": -128, "high": 127, "bits": 8, "signed": True, "rounding": "half_up", **over}
    op = Requant(multiplier=multiplier, shift=shift, **fields)
    lowest, highest = -(1 << acc_bits - 1), (1 << acc_bits - 1) - 1
    x = RNG.integers(lowest, highest + 1, (3, *size, channels))
    near = 64 * (1 << shift) // np.maximum(np.abs(multiplier), 1)  # results inside the clamp
    x[1] = np.clip(RNG.integers(-near - 2, near + 3, x[1].shape), lowest, highest)
    corners = np.resize([lowest, highest, -1, 0, 1, 2, -2, 3], channels * 2)
    x[0].reshape(-1)[: len(corners)] = corners[: x[0].size]
    fields_hw = {k: fields[k] for k in ("low", "high", "rounding")}
    unit = RequantUnit(
        height=size[0], width=size[1], channels=channels, multiplier=multiplier.tolist(), shift=shift.tolist(),
        i=Lanes(lanes=lanes, bits=acc_bits, signed=True), o=Lanes(lanes=lanes, bits=fields["bits"], signed=fields["signed"]), slices=slices,
        multiplier_bits=split, **fields_hw,
    )  # fmt: skip
    assert (unit.sliced, unit.instances) == (slices and split is None, slices and split is not None), name
    return Case(name=name, unit=unit, op=op, inputs=(x,), pysim=over.get("rounding") == "half_even", latency=latency)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case("half_up", 8, 4, 20),
        case("half_even", 7, 3, 18, rounding="half_even"),
        case("floor", 5, 8, 16, rounding="floor", size=(1, 1)),
        case("relu", 6, 1, 24, low=0, high=255, signed=False),
        case("wide_out", 4, 2, 32, bits=16, low=-32768, high=32767, longest=47),
        case("shared", 9, 4, 22, shared=True, low=0, high=15, bits=4, signed=False),
        case("shared_even", 4, 2, 22, shared=True, rounding="half_even"),
        case("clamp_without_zero", 5, 4, 20, low=3, high=100),
        case("lane_a_channel", 4, 4, 12),
        case("split", 7, 3, 24, split=18, latency=6),
        case("split_even", 5, 2, 32, split=18, rounding="half_even", longest=44),
        case("split_shared", 4, 4, 20, split=18, shared=True),
        case("not_split", 4, 2, 18, split=18, latency=5),
        case("ecp5", 7, 3, 24, split=18, slices=True, latency=7),
        case("ecp5_even", 5, 2, 32, split=18, slices=True, rounding="half_even", longest=44),
        case("ecp5_narrow", 5, 2, 17, split=18, slices=True, low=0, high=255, signed=False, latency=6),
        case("ecp5_shared", 4, 4, 20, split=18, slices=True, shared=True),
        case("slices", 7, 3, 18, slices=True),  # room for 10 bits of shifts: three sorts are left
        case("slices_wide", 7, 2, 27, slices=True, spread=8, longest=8),  # and for one: four are left
        case("slices_far", 4, 2, 18, slices=True, longest=44),
        case("slices_floor", 6, 3, 16, slices=True, rounding="floor", low=0, high=255, signed=False),
        case("slices_one_shift", 5, 2, 14, slices=True, spread=9, longest=10, top=8),
        case("slices_shared", 5, 2, 22, slices=True, shared=True, low=0, high=15, bits=4, signed=False),
    ])  # fmt: skip


def test_shared_parameters_need_no_rom() -> None:
    lanes = Lanes(lanes=2, bits=8, signed=True)
    common: dict[str, Any] = {"channels": 5, "low": -128, "high": 127, "i": lanes, "o": lanes}
    assert "parameters" not in convert(RequantUnit(multiplier=[3] * 5, shift=[2] * 5, **common), "unit")
    text = convert(RequantUnit(multiplier=[3, 1, 3, 1, 5], shift=[2, 1, 2, 1, 2], **common), "unit")
    assert re.search(r"reg \[2:0\] parameters_row ", text), "of the bits of two multipliers three differ: 111, 110 and 001 row by row"
    text = convert(RequantUnit(multiplier=[3, 1, 3, 1, 5], shift=[2, 1, 4, 1, 2], **common), "unit")
    assert re.search(r"reg \[3:0\] parameters_row ", text), "and what the shifts have beyond the least of them"


def test_latency_is_five_cycles() -> None:
    lanes = Lanes(lanes=1, bits=8, signed=True)
    unit = RequantUnit(channels=1, multiplier=[3], shift=[1], low=-128, high=127, i=lanes, o=lanes)
    register = run_streams(Fifo(lanes, 1), {"i": [[5]]}, {"o": [[5]]}, p_in=1, p_out=1)  # latency 1
    assert run_streams(unit, {"i": [[5]]}, {"o": [[8]]}, p_in=1, p_out=1) == register + 4


def test_slices_only_where_they_suffice() -> None:
    o = Lanes(lanes=1, bits=8, signed=True)
    common: dict[str, Any] = {"channels": 2, "multiplier": [3, 65535], "low": -128, "high": 127, "o": o, "slices": True}
    wanted: list[tuple[int, Rounding, bool]]
    wanted = [(18, "half_up", True), (27, "floor", True), (28, "half_up", False), (18, "half_even", False)]
    for bits, rounding, sliced in wanted:
        unit = RequantUnit(i=Lanes(lanes=1, bits=bits, signed=True), shift=[9, 12], rounding=rounding, **common)
        assert unit.sliced == sliced, (bits, rounding)
    assert not RequantUnit(i=Lanes(lanes=1, bits=20, signed=True), shift=[9, 20], **common).sliced, "six shifts are left"
    narrow = RequantUnit(i=Lanes(lanes=1, bits=18, signed=True), shift=[9, 12], **common)
    assert (narrow.multiplier, narrow.shift) == ([3 << 3, 65535], [12, 12])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift": [0, 1]}, "shift must be in 1..47"),
        ({"multiplier": [1]}, "must have 2 entries"),
        ({"high": 200}, "low and high must lie in"),
        ({"rounding": "up"}, "rounding must be"),
        ({"o": Lanes(lanes=1, bits=8, signed=True)}, "equal lanes"),
    ],
)
def test_wrong_parameters_are_refused(change: dict[str, Any], message: str) -> None:
    lanes = Lanes(lanes=2, bits=8, signed=True)
    good: dict[str, Any] = {"channels": 2, "multiplier": [1, 1], "shift": [1, 1], "low": -1, "high": 1, "i": lanes, "o": lanes}
    with pytest.raises(ValueError, match=message):
        RequantUnit(**{**good, **change})
