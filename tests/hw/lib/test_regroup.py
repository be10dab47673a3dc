# amaranth: UnusedElaboratable=no
"""Gearbox: every pair of lane counts, against slicing."""
from __future__ import annotations

import random

import pytest

from hw.lib.regroup import Regroup
from hw.params import Lanes
from hw.testing import run_streams

PIXELS = 12


def beats(pixels: list[list[int]], lanes: int, fill: int) -> list[list[int]]:
    """Pixels cut into beats; the last beat of each is filled up with ``fill``."""
    return [(pixel[k : k + lanes] + [fill] * lanes)[:lanes] for pixel in pixels for k in range(0, len(pixel), lanes)]


@pytest.mark.parametrize(
    ("channels", "lanes_in", "lanes_out"),
    [
        *[(8, 2, 4), (8, 4, 2), (7, 4, 2), (7, 2, 4), (3, 3, 3), (1, 4, 1), (5, 8, 2), (5, 2, 8)],
        *[(6, 3, 4), (10, 4, 3), (12, 5, 4), (9, 3, 2), (24, 5, 6)],  # neither divides the other
    ],
)
def test_regroups_and_keeps_its_pace(channels: int, lanes_in: int, lanes_out: int) -> None:
    rng = random.Random(channels)
    pixels = [[rng.randrange(-8, 8) for _ in range(channels)] for _ in range(PIXELS)]
    given, expected = beats(pixels, lanes_in, -5), beats(pixels, lanes_out, 0)

    def run(count: int, p: float) -> int:
        dut = Regroup(channels=channels, i=Lanes(lanes=lanes_in, bits=4, signed=True), o_lanes=lanes_out)
        n_in, n_out = len(given) // PIXELS * count, len(expected) // PIXELS * count
        return run_streams(dut, {"i": given[:n_in]}, {"o": expected[:n_out]}, p_in=p, p_out=p)

    run(PIXELS, 0.6)
    unit = Regroup(channels=channels, i=Lanes(lanes=lanes_in, bits=4, signed=True), o_lanes=lanes_out)
    assert (run(PIXELS, 1) - run(2, 1)) == unit.pixel_cycles * (PIXELS - 2)


def test_needs_channels() -> None:
    with pytest.raises(ValueError, match="channels must be a positive integer, not 0"):
        Regroup(channels=0, i=Lanes(lanes=1, bits=1, signed=False), o_lanes=2)
