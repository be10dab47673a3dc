"""Choices of a search, kept in the cache (sw/cache.py): another set of weights for the same shapes asks for no other search."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sw.cache import cached_build, digest
from sw.engine import EnginePlan
from sw.estimate import Area
from sw.folding.fold import Fold
from sw.folding.search import Choice
from sw.graph import Graph
from sw.ops import Op

#: The file of a cache entry.
FILE = "choice.json"


def shape_of(graph: Graph) -> str:
    """All that a search looks at, as text: nodes, types, parameters, and of arrays their sizes, ends, and whether they vary.

    Areas and cycles depend on weights through nothing else (sw/estimate, sw/engine.py): ranges decide widths and packing.
    """
    nodes = [[n.name, n.op.name, _facts(n.op), n.inputs, n.outputs] for n in graph.nodes]
    tensors = {name: dataclasses.asdict(t.type) for name, t in sorted(graph.tensors.items())}
    return json.dumps([graph.inputs, graph.outputs, nodes, tensors], default=str)


def _facts(op: Op) -> dict[str, Any]:
    return {f.name: _fact(getattr(op, f.name)) for f in dataclasses.fields(op)}


def _fact(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return repr(value)
    ends = [int(value.min()), int(value.max())] if value.size else []
    return [list(value.shape), ends, bool(value.size and (value != value.flat[0]).any())]


def kept(key: list[str], make: Callable[[], Choice]) -> Choice:
    """The choice of that key, made at most once."""

    def build(folder: Path) -> None:
        choice = make()
        record = {f.name: getattr(choice, f.name) for f in dataclasses.fields(choice)}
        record |= {"folds": {n: vars(f) for n, f in choice.folds.items()}, "area": choice.area.record()}
        record["engine"] = choice.engine.record() if choice.engine else None
        (folder / FILE).write_text(json.dumps(record))

    record = json.loads((cached_build(["choice", digest(key)], build) / FILE).read_text())
    folds, engine = {n: Fold(**f) for n, f in record["folds"].items()}, record["engine"]
    record |= {"folds": folds, "area": Area(**record["area"]), "engine": EnginePlan.of(engine) if engine else None}
    return Choice(**record)
