"""``warploom synth``: every part of a design once, sums that are sums, what the report shows of it."""
import json
from pathlib import Path

import pytest

from hw.lib.fifo import Fifo
from hw.lib.fork import Fork
from hw.params import Lanes
from sw import estimate, steps
from sw.compiler import load_built, load_design
from sw.errors import CompileError
from sw.estimate import Area
from sw.report import write_report
from sw.synth.network import Part, compare, errors, measured, parts, shares
from sw.targets import DEVICES
from sw.testing import nano_network


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    nano_network(folder / "model.onnx")
    steps.compile(folder, device="xczu3eg", target_cycles=2000)
    return folder


def test_a_design_is_built_again_as_it_was_compiled(run: Path) -> None:
    record, design = load_design(run / "compiled"), load_built(run / "compiled")
    assert {k.name: k.depth for k in design.links if k.depth} == {k["link"]: k["depth"] for k in record["fifos"]}
    assert [n["cycles"] for n in record["nodes"]] == [design.units[name].frame_cycles for name in design.nodes]
    assert record["area"] == sum(estimate.design(design).values(), Area()).record()


def test_every_unit_and_fifo_is_a_part(run: Path) -> None:
    design = load_built(run / "compiled")
    found = parts(design, "xcup")
    assert [p.name for p in found] == [*design.units, *(k.name for k in design.links if k.depth)]
    assert {"conv", "depthwise", "requant", "split", "concat", "fifo", "regroup"} <= {p.kind for p in found}


def test_sums_and_errors_are_of_what_was_measured() -> None:
    i = Lanes(lanes=1, bits=8, signed=False)
    guess = Area(lut=10, ff=10)
    found = [Part(name=f"p{k}", kind=kind, estimate=guess, unit=u) for k, (kind, u) in enumerate(
        [("fork", Fork(i, 2)), ("fifo", Fifo(i, 2)), ("fork", Fork(i, 2))])]  # fmt: skip
    done: list[tuple[int, int]] = []
    areas = measured(found, "xcup", lambda n, total: done.append((n, total)))
    assert done == [(2, 2)] and areas[0] == areas[2] == Area(lut=5, ff=2) and areas[1].ff == 18
    record = compare(found, areas)
    assert [row["kind"] for row in record["kinds"]] == ["fifo", "fork"] and record["kinds"][1]["measured"]["lut"] == 10
    assert record["kinds"][1]["error"] == {"lut": 1.0, "ff": 4.0, "dsp": None, "bram36": None}
    assert record["total"]["measured"] == sum(areas, Area()).record() and record["total"]["parts"] == 3
    assert errors(Area(lut=9), Area(lut=10, dsp=2)) == {"lut": -0.1, "ff": None, "dsp": -1.0, "bram36": None}
    assert shares(Area(lut=7056, dsp=36).record(), DEVICES["xczu3eg"]) == {"lut": 0.1, "ff": 0.0, "dsp": 0.1, "bram36": 0.0}


def test_the_report_shows_what_was_measured(run: Path) -> None:
    design = load_design(run / "compiled")
    row = {"measured": {"lut": 1000, "ff": 2, "dsp": 3, "bram36": 0.5}, "error": {"lut": 0.05, "ff": None, "dsp": 0.0, "bram36": -0.5}}
    record = {"device": "xczu3eg", "key": design["key"], "kinds": [{"kind": "conv", "parts": 2, **row}], "total": {"parts": 2, **row}}
    steps.save(run, "synth-xczu3eg", record)
    write_report(run)
    text = (run / "report.md").read_text()
    assert "Synthesis for xczu3eg" in text and "| conv | 2 | 1,000 (+5 %) | 2 | 3 (+0 %) | 0.5 (-50 %) |" in text
    assert "earlier design" not in text
    (run / "synth-xczu3eg.json").unlink()


def test_needs_a_device_that_exists_and_a_design(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="device must be one of"):
        steps.synth(run, device="xc7")
    with pytest.raises(CompileError, match="holds no compiled design"):
        steps.synth(tmp_path)


@pytest.mark.slow
def test_a_network_on_both_devices(run: Path, tmp_path: Path) -> None:
    record = steps.synth(run)
    assert json.loads((run / "synth-xczu3eg.json").read_text()) == record
    assert record["total"]["measured"]["lut"] == sum(row["measured"]["lut"] for row in record["units"]) > 500
    steps.compile(tmp_path, model=run / "model.onnx", device="lfe5u-85f", target_cycles=4000)
    placed = steps.synth(tmp_path, device="lfe5u-85f")
    assert placed["mhz"] > 20 and placed["bitstream_bytes"] > 100_000
    assert (tmp_path / "synth-lfe5u-85f" / "accelerator.bit").stat().st_size == placed["bitstream_bytes"]
