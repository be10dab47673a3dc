"""``bench presets``: what fits a device, the largest of it, made once."""
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sw import steps
from sw.bench import presets
from sw.bench.presets import bench_presets, largest
from sw.compiler import compile
from sw.errors import WarploomError
from sw.folding.search import RESOURCES
from sw.targets import DEVICES
from sw.testing import micro_network


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every preset is the micro detector; returns those that were made."""
    found: list[str] = []

    def untrained(preset: str, folder: Path, frames: int) -> None:
        found.append(preset)
        micro_network(folder / "model.onnx", detector=True)

    real = steps.upward
    monkeypatch.setattr(steps, "upward", lambda name: untrained if name == "untrained" else real(name))
    monkeypatch.setattr(presets, "PRESETS", ("tiny", "small"))
    return found


def test_a_record_is_that_of_the_compiled_design_and_made_once(made: list[str], tmp_path: Path) -> None:
    records = bench_presets("lfe5u-85f", folder=tmp_path)
    assert [r["preset"] for r in records] == ["tiny", "small"] == made
    design = compile(tmp_path / "tiny" / "model" / "model.onnx", tmp_path / "out", device="lfe5u-85f")
    first = records[0]
    assert first["fits"] and first["cycles_per_frame"] == design["interval_cycles"]
    assert first["multiplications"] == design["multiplications"] and first["fps"] == 100e6 / design["interval_cycles"]
    assert list(first["shares"]) == list(RESOURCES) and first["limit"] == design["choice"]["limit"]
    said: list[str] = []
    assert bench_presets("lfe5u-85f", folder=tmp_path, step=said.append) == records and said == [] and made == ["tiny", "small"]


def test_a_part_that_is_too_small_is_said_so(made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(DEVICES["lfe5u-85f"], name="small-part", luts=900)
    monkeypatch.setitem(DEVICES, "small-part", small)
    (record,) = bench_presets("small-part", "tiny", folder=tmp_path)
    assert not record["fits"] and record["cycles_per_frame"] is None and "small-part is too small" in record["limit"]
    assert largest([record]) is None


def test_the_largest_is_the_last_that_fits() -> None:
    records: list[dict[str, Any]] = [{"preset": p, "fits": f} for p, f in (("tiny", True), ("small", True), ("a", False))]
    assert largest(records) == records[1]


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(WarploomError, match="--preset must be one of tiny, small, a, b, c, d, e, not 'f'"):
        bench_presets("lfe5u-85f", "f")
