"""``bench presets``: what fits a device, the largest of it, made once."""
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sw import steps
from sw.bench import presets
from sw.bench.presets import AS_IT_IS, CODESIGNS, bench_presets, largest
from sw.compiler import compile, load_graph
from sw.errors import WarploomError
from sw.folding.search import RESOURCES
from sw.ops import Deform
from sw.targets import DEVICES
from sw.testing import micro_network


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every preset is the micro detector; returns those that were made."""
    found: list[str] = []

    def untrained(preset: str, folder: Path, frames: int, *, network: dict[str, Any]) -> None:
        found.append(", ".join([preset, *(f"{k}={v}" for k, v in network.items())]))
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
    rows = (("tiny", AS_IT_IS, True), ("small", AS_IT_IS, True), ("small", "offsets -4..3", True), ("a", AS_IT_IS, False))
    records: list[dict[str, Any]] = [{"preset": p, "network": n, "fits": f} for p, n, f in rows]
    assert largest(records) == records[1]


def test_codesigned_relatives_stand_beside_the_network_as_it_is(made: list[str], tmp_path: Path) -> None:
    records = bench_presets("lfe5u-85f", "tiny", codesign=True, folder=tmp_path)
    assert [r["network"] for r in records] == [AS_IT_IS, *CODESIGNS]
    assert made == ["tiny", "tiny, bounds=(-4, 3)", "tiny, order=mix-first", "tiny, order=mix-first, bounds=(-4, 3)"]
    assert len({str(p.parent) for p in tmp_path.rglob("model.onnx")}) == 4


def test_a_relative_is_another_network_with_its_own_offsets(tmp_path: Path) -> None:
    """The fields arrive in the file: fewer multiplications with the pointwise layers first, offsets within -4..3 of 8 steps each."""
    graphs = []
    for name, fields in {AS_IT_IS: {}, **CODESIGNS}.items():
        (tmp_path / name).mkdir()
        steps.upward("untrained")("tiny", tmp_path / name, 1, network=fields)
        graphs.append(load_graph(tmp_path / name / "model.onnx"))
    exact, near, first, both = graphs
    assert exact.multiplications() == near.multiplications() > first.multiplications() == both.multiplications()
    found = [[(n.op.low, n.op.high) for n in g.nodes if isinstance(n.op, Deform)] for g in graphs]
    assert found == [[(-64, 56)] * 3, [(-32, 24)] * 3] * 2


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(WarploomError, match="--preset must be one of tiny, small, a, b, c, d, e, not 'f'"):
        bench_presets("lfe5u-85f", "f")
