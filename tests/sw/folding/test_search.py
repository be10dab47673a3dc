"""The folding search: budgets kept, bounds true, messages that help."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sw.compiler import load_graph
from sw.errors import CompileError
from sw.folding.fold import Fold, cycles, floor_cycles, products
from sw.folding.search import Search, search, shares_of
from sw.graph import Graph
from sw.targets import DEVICES, target_of
from sw.testing import QonnxWriter, micro_network

ZU3EG = DEVICES["xczu3eg"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path: Path = tmp_path_factory.mktemp("net") / "micro.onnx"
    micro_network(path)
    return load_graph(path)


def test_the_fastest_that_fits_is_near_what_provably_does_not(graph: Graph) -> None:
    small = replace(ZU3EG, luts=9_000, multipliers=40, bram36=12)
    found = search(graph, small)
    assert all(shares_of(found.area, small) <= small.fill)
    assert found.interval == max(cycles(n, graph.types(n.inputs), found.folds[n.name]) for n in graph.nodes) >= floor_cycles(graph)
    assert 0 <= found.too_short < found.interval
    assert "the slowest unit is" in found.limit
    assert search(graph, ZU3EG).interval <= found.interval, "more room is never slower"


def test_bound_is_below_every_choice(graph: Graph) -> None:
    state = Search(graph, ZU3EG, "packed27", {})
    target = 4 * floor_cycles(graph)
    _, share, bound = state.best(target)
    assert 0 < bound <= share
    for prices in ((1.0, 0, 0, 0), (0, 0, 1.0, 0), (0.25, 0.25, 0.25, 0.25)):
        folds, least = state.at(target, np.array(prices))
        assert folds is not None and max(shares_of(state.total(folds), ZU3EG)) >= max(bound, least)


def test_a_search_like_another_has_its_areas_but_its_own_shares(graph: Graph) -> None:
    part = replace(ZU3EG, luts=9_000, bram36=12)
    whole = Search(graph, ZU3EG, "packed27", {})
    for index in range(len(graph.nodes)):
        whole.tried(index, 4)
    like, alone = Search(graph, part, "packed27", {}, like=whole), Search(graph, part, "packed27", {})
    for index in range(len(graph.nodes)):
        assert np.array_equal(like.tried(index, 4).shares, alone.tried(index, 4).shares)
        assert like.area(index, Fold(lanes_in=1, lanes_out=1)) is whole.area(index, Fold(lanes_in=1, lanes_out=1))
    assert Search(graph, ZU3EG, "packed27", {}, like=like).tried(0, 4) is whole.tried(0, 4)


def test_of_folds_that_take_about_the_same_the_one_with_fewer_multipliers(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    def lanes() -> int:
        folds = search(graph, ZU3EG, target=3 * floor_cycles(graph)).folds
        return sum(products(n, folds[n.name]) for n in graph.nodes)

    few = lanes()
    monkeypatch.setattr("sw.folding.search.LANE", 0.0)
    assert few < lanes()


def test_a_target_takes_less_area_the_longer_it_is(graph: Graph) -> None:
    floor = floor_cycles(graph)
    areas = [search(graph, ZU3EG, target=k * floor).area for k in (1, 8)]
    assert max(shares_of(areas[1], ZU3EG)) < max(shares_of(areas[0], ZU3EG))


def test_pins_are_kept(graph: Graph) -> None:
    name = next(n.name for n in graph.nodes if n.op.name == "conv")
    pin = Fold(lanes_in=1, lanes_out=1)
    assert search(graph, ZU3EG, pins={name: pin}).folds[name] == pin


def test_what_cannot_be_is_refused_with_the_reason(graph: Graph) -> None:
    with pytest.raises(CompileError, match=r"too small even at .* cycles a frame: multipliers"):
        search(graph, replace(ZU3EG, multipliers=1))
    with pytest.raises(CompileError, match="the network needs"):
        search(graph, ZU3EG, target=10)
    with pytest.raises(CompileError, match="pins nothing, which the network does not have"):
        search(graph, ZU3EG, pins={"nothing": Fold(lanes_in=1, lanes_out=1)})
    with pytest.raises(CompileError, match="device must be one of lfe5u-85f, xczu3eg, not 'z'"):
        target_of("z")


def test_equal_convolutions_share_options_that_are_their_own(tmp_path: Path) -> None:
    """Convolutions that differ only in their weights' values are looked at once; one of another range of weights is not among them."""
    w = QonnxWriter(8, 8, seed=2)
    x = w.image
    for k, bits in enumerate((8, *[4] * 8, 8)):
        x = w.conv(x, f"c{k}", 12, bits=bits)
    graph = load_graph(w.save(tmp_path / "m.onnx", [x]))
    state = Search(graph, ZU3EG, "packed27", {})
    convs = [k for k, n in enumerate(graph.nodes) if n.op.name == "conv"]
    for k in convs:
        shared, own = state.tried(k, 0), state._tried(k, 0)
        assert shared.folds == own.folds and (shared.times == own.times).all() and np.array_equal(shared.shares, own.shares)
    assert len({id(state.tried(k, 0)) for k in convs[1:9]}) < 8, "some are equal"
    assert state.tried(convs[1], 0) is not state.tried(convs[9], 0)
