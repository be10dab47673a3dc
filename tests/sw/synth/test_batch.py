# amaranth: UnusedElaboratable=no
"""Areas of several modules at once are those of each by itself, in the order that was asked for."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw.lib.fifo import Fifo
from hw.lib.fork import Fork
from hw.params import Lanes
from sw.bench.unit_case import chain, conv, depthwise, kind
from sw.modules import modules_of
from sw.synth import batch
from sw.synth.batch import BATCH, areas
from sw.synth.measure import area
from sw.synth.workers import each


def lanes(bits: int) -> Lanes:
    return Lanes(lanes=1, bits=bits, signed=False)


def measured(units: dict[str, Any]) -> list[Any]:
    modules = modules_of(units, primitives=True).of
    return areas([modules[name] for name in units], "xcup")


def test_more_than_one_batch_keeps_order() -> None:
    bits = [int(b) for b in np.random.default_rng(0).permutation(BATCH + 2) + 1]
    found = measured({f"fifo{b}": Fifo(lanes(b), 2) for b in bits} | {"again": Fifo(lanes(bits[0]), 2), "fork": Fork(lanes(3), 2)})
    assert [a.ff for a in found] == [2 * b + 2 for b in [*bits, bits[0]]] + [2]


def test_a_module_beside_others_is_what_it_is_alone() -> None:
    """With tables in LUTs, which are modules of their own that must be flattened, multipliers and memories."""
    x = kind(8, 8, 16)
    makes: dict[str, Callable[[], Any]] = {
        "conv": chain("conv", x, (conv("conv", 16, 16), 2, 4), variant="primitives").make,
        "depthwise": chain("depthwise", x, (depthwise("depthwise", 16), 4, 4), variant="inferred").make,
        "block": lambda: Fifo(lanes(36), 513, "block"), "lut": lambda: Fifo(lanes(14), 33, "lut"),
    }  # fmt: skip
    found = dict(zip(makes, measured({name: make() for name, make in makes.items()}), strict=True))
    for name, make in makes.items():
        alone = area(make())
        assert (found[name].ff, found[name].dsp, found[name].bram36) == (alone.ff, alone.dsp, alone.bram36), name
        assert found[name].lut == pytest.approx(alone.lut, rel=0.03, abs=2), name


def test_only_what_is_not_known_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One module more is one run of that module alone; the others keep their areas."""
    monkeypatch.setenv("WARPLOOM_CACHE", str(tmp_path))
    runs: list[int] = []

    def noted(function: Any, tasks: Any, told: Any) -> Any:
        runs.extend(len(modules) for modules, _ in tasks)
        return each(function, tasks, told)

    monkeypatch.setattr(batch, "each", noted)
    first = measured({f"fifo{b}": Fifo(lanes(b), 2) for b in (3, 4)})
    assert measured({f"fifo{b}": Fifo(lanes(b), 2) for b in (4, 5, 3)})[::2] == first[::-1]
    assert measured({f"fifo{b}": Fifo(lanes(b), 2) for b in (4, 5, 3)})[::2] == first[::-1]
    assert runs == [2, 1]
