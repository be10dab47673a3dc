"""A search beside the queues of what it built: it goes on until the whole fits, slower if need be."""
from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sw import estimate
from sw.compiler import load_graph
from sw.errors import CompileError
from sw.estimate import Area, Family
from sw.folding import fit as fitting
from sw.folding.fit import LOOKS, Fitting, built, fit
from sw.folding.search import search
from sw.graph import Graph, Node
from sw.lower import Design
from sw.targets import DEVICES
from sw.testing import micro_network

DEVICE = DEVICES["xczu3eg"]


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return load_graph(micro_network(tmp_path / "micro.onnx"))


def quiet(_: str) -> None:
    pass


def interval(design: Design) -> int:
    cycles: int = max(u.frame_cycles for u in design.units.values())
    return cycles


def with_queues(monkeypatch: pytest.MonkeyPatch, queues: Any, kind: str = "bram36") -> list[str]:
    """Designs have other queues beside them, of ``queues(interval)``; returns for which families estimates were asked."""
    families: list[str] = []

    def around(design: Design, family: Family = "xcup") -> Area:
        families.append(family)
        return Area(**{kind: queues(interval(design))})

    def whole(design: Design, family: Family = "xcup") -> dict[str, Area]:
        return estimate.design(design, family) | {"queues": around(design, family)}

    monkeypatch.setattr(fitting, "estimate", SimpleNamespace(around=around, design=whole))
    return families


def test_a_fast_design_whose_queues_fill_the_part_becomes_slower(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    first = search(graph, DEVICE)
    with_queues(monkeypatch, lambda cycles: 1000 if cycles < 1.3 * first.interval else 0)
    choice = fit(graph, DEVICE, None, None, None, None, quiet)
    assert 1.3 * first.interval <= choice.interval <= 1.8 * first.interval and interval(built(graph, choice)) == choice.interval
    assert choice.too_short == first.too_short


def test_the_queues_of_the_fastest_do_not_make_it_slower_than_need_be(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside them only a design three times as slow fits; one a little slower has none of them."""
    first = search(graph, DEVICE)
    small = dataclasses.replace(DEVICE, luts=round(1.2 * first.area.lut), fill=(1.0, 1.0, 1.0, 1.0))
    queues = round(0.4 * small.luts)
    assert search(graph, small, around=Area(lut=queues)).interval >= 3 * first.interval
    with_queues(monkeypatch, lambda cycles: queues if cycles < 1.05 * first.interval else 0, "lut")
    assert first.interval < fit(graph, small, None, None, None, None, quiet).interval <= 1.4 * first.interval


def test_where_no_pace_leaves_room_the_resource_is_named(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    with_queues(monkeypatch, lambda _: 1000)
    with pytest.raises(CompileError, match=r"xczu3eg is too small even at .* block RAM at 4..%"):
        fit(graph, DEVICE, None, None, None, None, quiet)


def test_a_choice_that_comes_again_ends_the_search(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    with_queues(monkeypatch, lambda _: 500)
    fit(graph, DEVICE, 4 * search(graph, DEVICE).interval, None, None, None, looked.append)
    assert len([s for s in looked if s.startswith("choosing")]) == 3 < LOOKS


def test_queues_are_priced_as_the_device_prices_them(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    families = with_queues(monkeypatch, lambda _: 0)
    fit(graph, DEVICES["lfe5u-85f"], None, None, None, None, quiet)
    assert set(families) == {"ecp5"}


def test_searches_of_one_fit_make_equal_units_and_areas_once(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    area = estimate.area

    def counted(node: Node, *rest: Any) -> Area:
        asked.append(node.name)
        return area(node, *rest)

    monkeypatch.setattr(estimate, "area", counted)
    work = Fitting(graph, DEVICE, None, quiet)
    fast, slow = work.first(None, None, None), work.at(4 * search(graph, DEVICE).interval)
    one, other = work.built(fast), work.built(slow)
    assert work.built(fast) is one and fast.folds != slow.folds
    for name, node in one.nodes.items():
        assert (one.units[name] is other.units[name]) == (fast.folds[node.name] == slow.folds[node.name])
    assert built(graph, fast).units["dec1_deform_node"] is not one.units["dec1_deform_node"]  # hardware is never shared
    assert asked and slow == fit(graph, DEVICE, 4 * search(graph, DEVICE).interval, None, None, None, quiet)
    asked.clear()
    assert work.at(slow.interval) == work.at(slow.interval) and not asked
