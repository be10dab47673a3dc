"""Cycles of a unit at full rate, measured in Verilator while its output is compared with golden."""
from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sim.run import Bench, Case, run_cases
from sw.cache import cached_build, digest
from sw.errors import WarploomError
from sw.synth.measure import verilog_of

#: Frames are doubled this often while the interval is not steady.
DOUBLINGS = 3
SOURCES = ("bench_unit.py", "beats.py", "run.py", "measure.py")


@dataclass(frozen=True, kw_only=True)
class Cycles:
    """``interval``: between back-to-back frames, once steady; ``latency``: from the first beat taken to the first beat out."""

    interval: int
    latency: int


def measure(
    name: str, make: Callable[[], Any], model: Any, frames: Callable[[int], tuple[Any, ...]], interval: int | None = None
) -> Cycles:
    """Feed a unit with frames back to back, nobody stalling. AssertionError if a value or the unit's own ``frame_cycles`` is wrong.

    ``make`` builds the unit, ``model.golden`` says what must come, ``frames(n)`` are n frames for each input; ``interval`` replaces
    ``frame_cycles`` for a part that knows no frames. Cached by content.
    """
    code = "".join((Path(__file__).parent / source).read_text() for source in SOURCES)
    text = verilog_of(Bench([make()]))
    count = 4
    for _ in range(DOUBLINGS):
        case = Case(name=name, unit=make(), op=model, inputs=frames(count), interval=interval)
        maps = [x.tobytes() for x in (*case.inputs, *case.outputs)]
        folder = cached_build(["cycles", code, text, str(case.frame_cycles), *maps], partial(_simulate, case))
        times = json.loads((folder / "times.json").read_text())
        found = [_steady(ends) for ends in times["ends"]]
        if all(found):
            return Cycles(interval=max(found), latency=min(times["first_out"]) - min(times["first_in"]))
        count *= 2
    raise WarploomError(f"{name}: back-to-back frames have no steady interval, they ended at {times['ends']}")


def _simulate(case: Case, target: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=f"warploom-{digest([case.name])}-"))
    try:
        run_cases([case], work, runs=((False, False),))
        shutil.copyfile(work / "times.json", target / "times.json")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _steady(ends: list[int]) -> int:
    """The last interval if the one before it was the same, else 0."""
    last, before = ends[-1] - ends[-2], ends[-2] - ends[-3]
    return last if last == before else 0
