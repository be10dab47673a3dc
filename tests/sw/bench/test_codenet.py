"""``bench codenet`` on a network of seconds: a record is complete and true, nothing is made twice, and what cannot be is refused."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sw import steps
from sw.bench import codenet
from sw.bench.codenet import CONFIGS, KEYS, Config, bench_codenet
from sw.errors import WarploomError
from sw.testing import micro_network


def test_the_bars_are_those_of_the_issue() -> None:
    assert {n: c.cycles for n, c in CONFIGS.items()} == {"a": 400_000, "b": 400_000, "c": 1_600_000, "d": 7_500_000, "e": 7_500_000}
    assert all(c.frames >= 3 for n, c in CONFIGS.items() if n in "abc")


def test_an_unknown_configuration_is_refused() -> None:
    with pytest.raises(WarploomError, match=r"--config must be one of a, b, c, d, e, not 'f'"):
        bench_codenet("f")


@pytest.fixture
def micro(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A configuration that is the micro network; returns what was made, in order."""
    made: list[str] = []

    def untrained(preset: str, folder: Path, frames: int) -> None:
        made.append("model")
        micro_network(folder / "model.onnx")
        np.save(folder / "images.npy", np.random.default_rng(1).integers(0, 256, (frames, 32, 32, 3), np.uint8))

    def area(design: Any, family: str, progress: Any) -> dict[str, Any]:
        part = {"lut": 1, "ff": 2, "dsp": 3, "bram36": 0.5}
        return {"total": {"measured": part, "estimate": part}, "kinds": []}

    real = steps.upward
    monkeypatch.setattr(steps, "upward", lambda name: untrained if name == "untrained" else real(name))
    monkeypatch.setitem(CONFIGS, "micro", Config(preset="micro", cycles=8_000, target=8_000, frames=4, published_fps=1.0))
    monkeypatch.setattr(codenet, "synthesize", area)
    return made


@pytest.mark.rtl
def test_a_record_is_complete_true_and_made_once(micro: list[str], tmp_path: Path) -> None:
    said: list[str] = []
    (record,) = bench_codenet("micro", folder=tmp_path, step=said.append)
    assert list(record) == list(KEYS)
    design = json.loads((tmp_path / "micro" / "compiled" / "design.json").read_text())
    assert record["frames_checked"] == 4 and record["mismatches"] == 0 and record["values_compared"] > 50_000
    assert abs(record["cycles_per_frame"] / record["estimated"]["cycles_per_frame"] - 1) <= 0.01
    assert record["multiplier_utilization"] == design["multiplications"] / (design["lanes"] * record["cycles_per_frame"])
    assert any("simulating" in text for text in said) and micro == ["model"]
    again: list[str] = []
    assert bench_codenet("micro", folder=tmp_path, step=again.append) == [record]
    assert not any("simulating" in text or "weights" in text for text in again) and micro == ["model"]
