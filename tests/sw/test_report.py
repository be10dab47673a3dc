"""The page: every figure with its command, from records as the steps write them."""
import json
from pathlib import Path

import pytest

from sw.compiler import compile
from sw.errors import WarploomError
from sw.report import write_report
from sw.testing import nano_network


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("report") / "myrun"
    run.mkdir()
    compile(nano_network(run / "model.onnx"), run / "compiled")
    for backend, ap in (("torch-float", 0.81), ("torch-quantized", 0.8), ("golden", 0.8), ("rtl", 0.75)):
        record = {"backend": backend, "ap50": ap, "ap50_11": ap - 0.01, "images": 10, "split": "test", "metric": "area"}
        (run / f"evaluate-{backend}.json").write_text(json.dumps(record))
    (run / "simulate.json").write_text(json.dumps({"interval_cycles": 1000.0, "latency_cycles": 2500}))
    return run


def test_page_holds_every_figure_and_its_command(run: Path) -> None:
    record = write_report(run)
    assert record["summary"]["quantization_loss"] == pytest.approx(0.01)
    assert record["summary"]["ap50"]["rtl"] == 0.75 and record["summary"]["interval_cycles"] == 1000.0
    assert json.loads((run / "report.json").read_text())["summary"] == record["summary"]
    for text in ((run / "report.md").read_text(), (run / "report.html").read_text()):
        for part in ("0.8100", "0.7500", "1,000 cycles", "2,500 cycles", "xczu3eg", "lfe5u-85f", "warploom simulate --run", "bytes"):
            assert part in text, part
    html = (run / "report.html").read_text()
    assert html.startswith("<!doctype html>") and html.count("<table>") == html.count("</table>") >= 4


def test_names_are_escaped(run: Path) -> None:
    design = json.loads((run / "compiled" / "design.json").read_text())
    design["nodes"][0]["name"] = "<script>alert(1)</script>"
    (run / "compiled" / "design.json").write_text(json.dumps(design))
    write_report(run)
    assert "<script>" not in (run / "report.html").read_text()


def test_a_run_without_a_design_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WarploomError, match="warploom compile"):
        write_report(tmp_path)
