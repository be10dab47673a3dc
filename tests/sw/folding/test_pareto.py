"""Area against frame rate: every point is a real choice, slower ones are smaller, and the command leaves a table and a plot."""
import json
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sw.cli import app
from sw.compiler import load_graph
from sw.folding.fold import floor_cycles
from sw.folding.pareto import SPAN, pareto_points
from sw.targets import target_of
from sw.testing import micro_network


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pareto")
    micro_network(run / "model.onnx")
    return run


def test_slower_points_are_smaller(run: Path) -> None:
    points = pareto_points(run / "model.onnx", target_of("xczu3eg"), clock_hz=250e6)
    floor = floor_cycles(load_graph(run / "model.onnx"))
    assert len(points) >= 4 and floor <= points[0]["cycles"] <= points[-1]["cycles"] <= SPAN * floor
    for fast, slow in pairwise(points):
        assert fast["cycles"] < slow["cycles"] and fast["share"] > slow["share"] and fast["fps"] > slow["fps"]
    assert all(p["fits"] == (p["share"] <= 1) for p in points)


def test_the_command_writes_table_and_plot(run: Path) -> None:
    done = CliRunner().invoke(app, ["compile", "--run", str(run), "--device", "xczu3eg", "--pareto", "--json"])
    assert done.exit_code == 0, done.output
    written = json.loads((run / "pareto-xczu3eg.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == written["points"]
    assert (run / "pareto-xczu3eg.png").read_bytes().startswith(b"\x89PNG")
