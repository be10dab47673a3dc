"""Packing of maps into beats: both ways, every kind of width."""
from __future__ import annotations

import numpy as np
import pytest

from hw.params import Lanes
from sim.beats import beat_bytes, locate, pack, unpack, words


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [1, 3, 4, 8, 13, 16, 25, 32, 48])
@pytest.mark.parametrize(("channels", "lanes"), [(1, 1), (5, 2), (6, 3), (3, 8), (40, 20)])
def test_packs_lane_by_lane(bits: int, signed: bool, channels: int, lanes: int) -> None:
    kind = Lanes(lanes=lanes, bits=bits, signed=signed)
    rng = np.random.default_rng(bits)
    x = rng.integers(kind.lowest, kind.highest + 1, (2, 3, 2, channels))
    x.reshape(-1)[:2] = kind.lowest, kind.highest
    beats = pack(x, kind)
    assert beats.shape == (12 * kind.beats(channels), beat_bytes(kind))
    expected = []
    for pixel in x.reshape(-1, channels).tolist():
        for k in range(0, channels, lanes):
            expected.append(sum((v & (1 << bits) - 1) << n * bits for n, v in enumerate(pixel[k : k + lanes])))
    assert words(beats) == expected
    assert np.array_equal(unpack(beats, kind, channels), x.reshape(-1, channels))


def test_garbage_is_only_in_unused_lanes() -> None:
    kind = Lanes(lanes=4, bits=5, signed=True)
    x = np.arange(-9, 9).reshape(3, 6)
    beats = pack(x, kind, garbage=np.random.default_rng(0))
    assert np.array_equal(unpack(beats, kind, 6), x)
    assert unpack(beats, kind, 8)[:, 6:].any()


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values must lie in -8..7, not 0..8"):
        pack(np.array([[0, 8]]), Lanes(lanes=1, bits=4, signed=True))


def test_locates_a_beat() -> None:
    # Frames of 2x3 pixels, 5 channels in beats of 2: 18 beats a frame.
    assert locate(18 + 9 + 3 + 2, (2, 3, 5), Lanes(lanes=2, bits=8, signed=True)) == "frame 1 row 1 column 1 channel group 2"
