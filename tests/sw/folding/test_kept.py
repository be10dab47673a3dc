"""A search is kept for networks of the same shapes, and for no others."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sw.compiler import load_graph, searched
from sw.folding.kept import kept, shape_of
from sw.folding.search import Choice, search
from sw.graph import Graph
from sw.ops import Conv, Requant
from sw.targets import target_of
from sw.testing import micro_network


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return load_graph(micro_network(tmp_path_factory.mktemp("kept") / "m.onnx"))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARPLOOM_CACHE", str(tmp_path / "cache"))


def changed(graph: Graph, kind: type, **fields: object) -> Graph:
    """The graph with fields of its first operator of that kind replaced (functions of the old values)."""
    node = next(n for n in graph.nodes if isinstance(n.op, kind))
    values = {name: make(getattr(node.op, name)) for name, make in fields.items()}  # type: ignore[operator]
    return replace(graph, nodes=tuple(replace(n, op=replace(n.op, **values)) if n is node else n for n in graph.nodes))


def test_weights_of_the_same_ends_are_the_same_shape(graph: Graph) -> None:
    assert shape_of(changed(graph, Conv, weights=lambda w: w[:, :, :, ::-1])) == shape_of(graph)


def test_what_a_search_looks_at_is_in_the_shape(graph: Graph) -> None:
    others = [
        changed(graph, Conv, weights=lambda w: w // 2),
        changed(graph, Conv, bias=lambda b: b + 1),
        changed(graph, Requant, multiplier=lambda m: np.full_like(m, m[0])),
        changed(graph, Requant, shift=lambda s: s + 1),
        replace(graph, nodes=(replace(graph.nodes[0], name="other"), *graph.nodes[1:])),
    ]
    assert len({shape_of(g) for g in (graph, *others)}) == 6


def test_a_choice_comes_back_as_it_was_and_is_made_once(graph: Graph) -> None:
    device, made = target_of("xczu3eg"), []

    def make() -> Choice:
        made.append(1)
        return search(graph, device, target=20_000)

    first, again = (kept(["key"], make) for _ in range(2))
    wanted = search(graph, device, target=20_000)
    assert made == [1] and first == again == wanted
    assert kept(["another key"], make) == wanted and made == [1, 1]


def test_a_compile_searches_once_for_a_shape(graph: Graph) -> None:
    device = target_of("xczu3eg")
    first: list[str] = []
    again: list[str] = []
    one, choice = searched(graph, device, 20_000, None, None, None, first.append)
    other, same = searched(changed(graph, Conv, weights=lambda w: w[:, :, :, ::-1]), device, 20_000, None, None, None, again.append)
    assert sum("choosing" in text for text in first) == 2 and not any("choosing" in text for text in again)
    assert choice == same and [k.depth for k in one.links] == [k.depth for k in other.links]
    third: list[str] = []
    searched(graph, device, 30_000, None, None, None, third.append)
    assert sum("choosing" in text for text in third) == 2
