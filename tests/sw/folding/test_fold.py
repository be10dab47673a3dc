import json
from pathlib import Path

import pytest

from sw.compiler import load_graph
from sw.errors import CompileError
from sw.folding.fold import Fold, choose, cycles, floor_cycles, read_pins
from sw.folding.search import search
from sw.graph import Graph
from sw.ops import Conv
from sw.targets import target_of
from sw.testing import micro_network


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return load_graph(micro_network(tmp_path_factory.mktemp("fold") / "m.onnx"))


@pytest.mark.parametrize("factor", [1, 2, 10])
def test_no_node_exceeds_the_target_and_none_is_wider_than_needed(graph: Graph, factor: int) -> None:
    target = floor_cycles(graph) * factor
    folds = choose(graph, target)
    for node in graph.nodes:
        types = graph.types(node.inputs)
        assert cycles(node, types, folds[node.name]) <= target
        fold = folds[node.name]
        if isinstance(node.op, Conv) and fold.lanes_in * fold.lanes_out > 1:
            for less_in, less_out in ((1, 0), (0, 1)):
                lanes_in, lanes_out = fold.lanes_in - less_in, fold.lanes_out - less_out
                if min(lanes_in, lanes_out) > 0:
                    assert cycles(node, types, Fold(lanes_in=lanes_in, lanes_out=lanes_out)) > target


def test_a_target_below_the_floor_is_refused(graph: Graph) -> None:
    with pytest.raises(CompileError, match=r"at most 10 cycles.*needs"):
        choose(graph, 10)


def test_pins_override_and_are_checked(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "pins.json"
    path.write_text(json.dumps({"conv5.conv_node": {"lanes_in": 3, "lanes_out": 5}}))
    assert choose(graph, None, read_pins(path))["conv5.conv_node"] == Fold(lanes_in=3, lanes_out=5)
    for table, message in (
        ({"conv5.conv_node": {"lanes_in": 99, "lanes_out": 5}}, r"conv5.conv_node.*does not fit.*accepted: 1..8 and 1..12"),
        ({"left_node": {"lanes_in": 3, "lanes_out": 3}}, "left_node.*must divide 4"),
        ({"dw.conv_node": {"lanes_in": 1, "lanes_out": 2}}, "dw.conv_node.*must be equal"),
        ({"conv5.conv_node": {"lanes_in": 1, "lanes_out": 1, "lines": "tight"}}, "conv5.conv_node.*a tight or paged line buffer is for"),
        ({"dw.conv_node": {"lanes_in": 1, "lanes_out": 1, "lines": "tight", "taps": 3}}, "dw.conv_node.*at one tap a cycle"),
        ({"conv5.conv_node": {"lanes_in": 1, "lanes_out": 1, "lines": "paged"}}, "conv5.conv_node.*a tight or paged line buffer is for"),
        ({"nobody": {"lanes_in": 1, "lanes_out": 2}}, "pins nobody"),
    ):
        path.write_text(json.dumps(table))
        with pytest.raises(CompileError, match=message):
            choose(graph, None, read_pins(path))
        with pytest.raises(CompileError, match=message):
            search(graph, target_of("xczu3eg"), pins=read_pins(path))
    path.write_text("{")
    with pytest.raises(CompileError, match="not a folding file"):
        read_pins(path)
