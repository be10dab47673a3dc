"""The benches measure what they say; no speed is asserted on a shared machine."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from models import bench
from models.detectors.codenet import PRESETS


def test_deform_bench_compares_with_the_plain_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MAPS", ((1, 4, 6, 6),))
    record = bench.bench_deform(rounds=1, device="cpu")
    found = {(row["operator"], row["pass"]) for row in record["rows"]}
    operators = ("plain", "deform-square", "torch-square", "deform-free", "torch-free")
    assert {(o, p) for o in operators for p in ("forward", "forward+backward")} <= found
    assert all(row["times_plain"] == 1 for row in record["rows"] if row["operator"] == "plain")
    assert all(row["seconds"] > 0 for row in record["rows"])
    assert any("no GPU" in line for line in record["absent"])


def test_ratios_are_taken_round_by_round_against_the_faster_base() -> None:
    found = {name: bench.Times(wall, wall) for name, wall in (("a", [1.0, 4.0, 2.0]), ("b", [2.0, 8.0, 4.0]), ("slow", [9.0, 9.0, 9.0]))}
    assert bench.times_faster(found, "wall", ("b", "slow")) == {"a": 2.0, "b": 1.0, "slow": 4 / 9}
    noisy = {"x": bench.Times([9.0, 1.0, 2.0], []), "y": bench.Times([10.0, 1.5, 1.9], [])}
    assert bench.times_faster(noisy, "wall", ("x", "y")) == {"x": 1.0, "y": 0.9}, "the same rounds are compared"
    assert bench.times_faster_at_best(noisy | {"z": bench.Times([0.5, 7.0, 7.0], [])}, ("x", "y")) == {"x": 1.0, "y": 1 / 1.5, "z": 2.0}


def test_golden_bench_compares_with_float_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "small", dataclasses.replace(PRESETS["tiny"], width=0.25, size=(32, 32), classes=("a",)))
    record = bench.bench_golden(preset="small", batch=2, rounds=1, folder=tmp_path)
    speeds = {row["backend"]: row["images_per_second"] for row in record["backends"]}
    assert set(speeds) == {"golden", "torch-float", "torch-float-channels-last"} and min(speeds.values()) > 0
    for clock in ("times_torch", "best_times_torch", "cpu_times_torch"):
        assert 1 in [row[clock] for row in record["backends"] if row["backend"] != "golden"]
    with pytest.raises(ValueError, match="preset must be one of"):
        bench.bench_golden(preset="z")
