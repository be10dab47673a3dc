# amaranth: UnusedElaboratable=no
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hw.lib.gather import GatherStage
from hw.params import DeformRing, Lanes
from hw.testing import run_streams
from sw.ops.base import Array
from sw.ops.deform import Deform


def stage(height: int, width: int, channels: int, frac_bits: int, reach: int, upsample: int = 1) -> GatherStage:
    low, high = -(reach + 1) << frac_bits, reach - 1 << frac_bits
    i, offset = Lanes(lanes=2, bits=6, signed=True), Lanes(lanes=1, bits=9, signed=True)
    return GatherStage(
        height=height, width=width, channels=channels, size=3, frac_bits=frac_bits, low=low, high=high, i=i, offset=offset,
        upsample=upsample,
    )  # fmt: skip


def words(dut: GatherStage, x: Array, offset: Array) -> list[list[int]]:
    """Golden words: one-hot weights make :class:`sw.ops.deform.Deform` return the value of a single tap."""
    taps = []
    for tap in range(9):
        weights = np.zeros((9, x.shape[3]), np.int64)
        weights[tap] = 1
        bias = np.zeros(x.shape[3], np.int64)
        op = Deform(weights=weights.reshape(3, 3, -1), bias=bias, frac_bits=dut.frac_bits, low=dut.offsets.low, high=dut.offsets.high)
        large = x.repeat(dut.upsample, axis=1).repeat(dut.upsample, axis=2)
        taps.append(op.golden(large, offset)[0])
    found: list[list[int]] = np.stack(taps, axis=3).reshape(*offset.shape[:3], 9, -1, 2).swapaxes(3, 4).reshape(-1, 2).tolist()
    return found


def cycles(dut: GatherStage, channels: int, frames: int, p: float) -> int:
    rng = np.random.default_rng(2)
    x = rng.integers(-32, 32, (frames, dut.height, dut.width, channels))
    offset = rng.integers(dut.offsets.low - 3, dut.offsets.high + 4, (frames, dut.out_height, dut.out_width, 1))
    inputs = {"i": x.reshape(-1, 2).tolist(), "offset_i": offset.reshape(-1, 1).tolist()}
    return run_streams(dut, inputs, {"o": words(dut, x, offset)}, p_in=p, p_out=p, max_cycles=6000)


@pytest.mark.parametrize(
    ("height", "width", "channels", "frac_bits", "reach", "upsample"),
    [(6, 3, 2, 0, 1, 1), (5, 4, 4, 2, 2, 1), (2, 5, 2, 1, 3, 1), (4, 2, 2, 1, 2, 2), (3, 1, 2, 2, 1, 4), (5, 2, 4, 0, 3, 2)],
)
def test_gathers_every_tap(height: int, width: int, channels: int, frac_bits: int, reach: int, upsample: int) -> None:
    cycles(stage(height, width, channels, frac_bits, reach, upsample), channels, 3, 0.7)


def test_interval_is_frame_cycles() -> None:
    dut = [stage(6, 4, 2, 1, 1) for _ in range(2)]
    assert cycles(dut[1], 2, 4, 1) - cycles(dut[0], 2, 3, 1) == dut[0].frame_cycles == 6 * 4 * 9


def shorten(monkeypatch: pytest.MonkeyPatch, less: int) -> None:
    rows = DeformRing.rows
    monkeypatch.setattr(DeformRing, "rows", lambda ring, banks: rows(ring, banks) - less)


@pytest.mark.parametrize(("height", "reach", "upsample"), [(8, 2, 1), (2, 3, 1), (4, 1, 2), (3, 2, 2)])
def test_one_row_less_is_slower(monkeypatch: pytest.MonkeyPatch, height: int, reach: int, upsample: int) -> None:
    """The least capacity is the least, also of a map so low that two frames lie in the ring: nine cycles a beat hide no row."""
    def taken() -> int:
        return cycles(stage(height, 4, 2, 0, reach, upsample), 2, 3, 1)

    enough = taken()
    shorten(monkeypatch, 1)
    assert taken() > enough


def test_two_rows_less_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, 2)
    with pytest.raises(TimeoutError):
        cycles(stage(8, 4, 2, 1, 2), 2, 2, 1)


def test_odd_ring_breaks_the_banks(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, 1)
    with pytest.raises((AssertionError, TimeoutError)):
        cycles(stage(8, 4, 2, 1, 2), 2, 3, 1)


def test_refuses() -> None:
    arguments: dict[str, Any] = {
        "height": 4, "width": 4, "channels": 2, "size": 3, "frac_bits": 1, "low": -2, "high": 2,
        "i": Lanes(lanes=1, bits=8, signed=False), "offset": Lanes(lanes=1, bits=8, signed=True),
    }  # fmt: skip
    with pytest.raises(ValueError, match="height, width and channels must be positive"):
        GatherStage(**(arguments | {"width": 0}))
