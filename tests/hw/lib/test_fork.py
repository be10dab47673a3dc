# amaranth: UnusedElaboratable=no
"""Every output of a fork gets every beat once."""
from __future__ import annotations

import pytest

from hw.lib.fork import Fork
from hw.params import Lanes
from hw.testing import run_streams

LANES = Lanes(lanes=1, bits=7, signed=False)
BEATS = [[k] for k in range(100)]


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("p", [0.4, 1])
def test_copies_every_beat_once(outputs: int, p: float) -> None:
    cycles = run_streams(Fork(LANES, outputs), {"i": BEATS}, {f"o{k}": BEATS for k in range(outputs)}, p_in=p, p_out=p)
    if p == 1:
        assert cycles <= len(BEATS) + 1


def test_needs_outputs() -> None:
    with pytest.raises(ValueError, match="outputs must be a positive integer, not 0"):
        Fork(LANES, 0)
