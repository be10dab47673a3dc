"""Area against frame rate: every point is a real choice, slower ones are smaller, and the command leaves a table and a plot."""
import json
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sw import estimate
from sw.cli import app
from sw.compiler import load_graph, searched
from sw.estimate import Area
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
    graph = load_graph(run / "model.onnx")
    points, floor = pareto_points(graph, target_of("xczu3eg"), clock_hz=250e6), floor_cycles(graph)
    assert len(points) >= 4 and floor <= points[0]["cycles"] <= points[-1]["cycles"] <= SPAN * floor
    for fast, slow in pairwise(points):
        assert fast["cycles"] < slow["cycles"] and fast["share"] > slow["share"] and fast["fps"] > slow["fps"]
    assert all(p["fits"] == (p["share"] <= 1) for p in points)


@pytest.mark.parametrize("device", ["xczu3eg", "lfe5u-85f"])
def test_a_point_is_what_compile_makes_at_its_interval(run: Path, device: str) -> None:
    graph, target = load_graph(run / "model.onnx"), target_of(device)
    for point in pareto_points(graph, target, clock_hz=100e6)[::3]:
        design, choice = searched(graph, target, point["cycles"], None, None, None, lambda _: None)
        area = sum(estimate.design(design, target.family).values(), Area())
        assert choice.interval == point["cycles"] and area.record() == {k: point[k] for k in area.record()}


def test_the_command_writes_table_and_plot(run: Path) -> None:
    done = CliRunner().invoke(app, ["compile", "--run", str(run), "--device", "xczu3eg", "--pareto", "--json"])
    assert done.exit_code == 0, done.output
    written = json.loads((run / "pareto-xczu3eg.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == written["points"]
    assert (run / "pareto-xczu3eg.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", [["--folding", "f.json"], ["--fps", "3"], ["--cycles", "9"], ["--max"], ["--axi"], ["--prove", "1"]])
def test_what_it_would_ignore_is_refused(run: Path, option: list[str]) -> None:
    done = CliRunner().invoke(app, ["compile", "--run", str(run), "--device", "xczu3eg", "--pareto", *option])
    assert done.exit_code != 0 and "leave out" in done.output + str(done.exception)
