# amaranth: UnusedElaboratable=no
"""The bench finds what is wrong with a stream, and says where."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hw.lib.fifo import Fifo
from hw.params import Lanes
from sim.beats import pack
from sim.bench_unit import Sink
from sim.run import Case, run_cases
from sw.ops import Split

LANES = Lanes(lanes=2, bits=8, signed=True)
#: Two frames of 1x2 pixels, 2 channels: four beats.
FRAMES = np.array([[[[1, -2], [3, 4]]], [[[-128, 127], [0, 5]]]])


def sink(frame_cycles: int = 2, frames: Any = FRAMES, varies: bool = False) -> Sink:
    spec = {
        "case": "c", "unit": "U", "port": "o", "lanes": {"lanes": 2, "bits": 8, "signed": True},
        "shape": (1, 2, 2), "frame_beats": 2, "frame_cycles": frame_cycles, "varies": varies,
    }  # fmt: skip
    return Sink(spec, pack(frames, LANES), SimpleNamespace(value=0))


def play(target: Sink, events: list[tuple[int | None, bool]], full_rate: bool = False) -> list[str]:
    """Feed (payload or None for not valid, ready) cycle by cycle."""
    for cycle, (payload, ready) in enumerate(events):
        target.handle.value = payload
        target.sample(payload is not None, ready, cycle)
    return target.finish(full_rate)


GOOD = [0xFE01, 0x0403, 0x7F80, 0x0500]


def test_accepts_the_right_beats_with_stalls() -> None:
    assert play(sink(), [(GOOD[0], False), (GOOD[0], True), (None, True), *((w, True) for w in GOOD[1:])]) == []


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (
            [(GOOD[0], True), (0x0503, True), (GOOD[2], True), (GOOD[3], True)],
            "c (U) o beat 1: frame 0 row 0 column 1 channel group 0: lane 1: got 5, expected 4",
        ),
        ([(GOOD[0], True), (GOOD[2], True), (GOOD[3], True)], "lane 0: got -128, expected 3"),
        ([(w, True) for w in GOOD[:3]], "frame 1 row 0 column 1 channel group 0: timeout: 3 of 4 beats came"),
        ([(w, True) for w in [*GOOD, 7]], "a beat too many, 0x7"),
        ([(GOOD[0], False), (None, True), *((w, True) for w in GOOD)], "valid was withdrawn"),
        ([(9, False), *((w, True) for w in GOOD)], "payload changed from 0x9 to 0xfe01"),
    ],
)  # fmt: skip
def test_names_what_is_wrong(events: list[tuple[int | None, bool]], message: str) -> None:
    errors = play(sink(), events)
    assert errors and message in errors[0]


@pytest.mark.parametrize(
    ("claim", "varies", "right"), [(2, False, True), (3, False, False), (1, False, False), (3, True, True), (1, True, False)]
)
def test_checks_the_interval_of_frames(claim: int, varies: bool, right: bool) -> None:
    """Exactly what the unit says, or at most that if it depends on the values."""
    three = np.concatenate([FRAMES, FRAMES[:1]])
    errors = play(sink(claim, three, varies), [(w, True) for w in [*GOOD, *GOOD[:2]]], full_rate=True)
    assert (errors == []) == right
    assert right or f"took 2 cycles, frame_cycles says {claim}" in errors[0]


@pytest.mark.rtl
def test_a_wrong_unit_is_reported_by_case_and_beat(tmp_path: Path) -> None:
    class Increment(Split):
        def golden(self, *inputs: Any) -> tuple[Any, ...]:
            return (inputs[0] + (np.arange(inputs[0].size).reshape(inputs[0].shape) == 5),)

    frames = np.clip(FRAMES, -128, 126)
    case = Case(name="off_by_one", unit=Fifo(LANES, 2), op=Increment(sizes=(1, 1)), inputs=(frames,))
    with pytest.raises(AssertionError) as failure:
        run_cases([case], tmp_path)
    assert "off_by_one (Fifo) o beat 2: frame 1 row 0 column 0 channel group 0: lane 1: got 126, expected 127" in str(failure.value)
