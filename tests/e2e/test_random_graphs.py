"""No deadlock: random graphs with stalls at every edge, and a network that was made to jam, whose report must name the edge."""
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hw.verilog import convert
from sim.accelerator import VerilatorAccelerator
from sim.run import Case, run_cases
from sw import golden
from sw.compiler import compile, load_graph
from sw.errors import DeviceError
from sw.folding.fold import choose
from sw.folding.schedule import size_fifos
from sw.graph import Graph
from sw.lower import lower
from sw.ops import Array
from sw.testing import nano_network, random_network

pytestmark = pytest.mark.rtl


class Whole:
    """The graph as one operator, for the unit bench."""

    name = "network"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        values = golden.run(self.graph, inputs[0])
        return tuple(values[t] for t in self.graph.outputs)


def case(folder: Path, seed: int) -> Case:
    """A random graph, every third of them folded to be slow, and three random frames."""
    graph = load_graph(random_network(folder / f"{seed}.onnx", seed=seed))
    design = lower(graph, choose(graph, 2000 if seed % 3 == 2 else None))
    design.links = size_fifos(design)
    (image,) = graph.inputs
    frames = np.random.default_rng(seed).integers(0, 256, (3, *graph.tensors[image].type.shape))
    return Case(name=f"graph_{seed}", unit=design.accelerator(), op=Whole(graph), inputs=(frames,))  # type: ignore[arg-type]


def joins(cases: Sequence[Case]) -> int:
    return sum(n.op.name == "concat" for c in cases for n in c.op.graph.nodes)  # type: ignore[attr-defined]


def test_random_graphs_neither_lock_nor_lose(tmp_path: Path) -> None:
    cases = [case(tmp_path, seed) for seed in range(4)]
    assert joins(cases) >= 4
    run_cases(cases, tmp_path / "bench")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(4, 44, 8))
def test_more_random_graphs_neither_lock_nor_lose(first: int, tmp_path: Path) -> None:
    run_cases([case(tmp_path, seed) for seed in range(first, first + 8)], tmp_path / "bench")


def test_a_jammed_edge_is_named(tmp_path: Path) -> None:
    """Without the FIFO of the short branch the long one never gets its rows: the split and the concat wait for each other."""
    model, folder = nano_network(tmp_path / "nano.onnx"), tmp_path / "compiled"
    compile(model, folder)
    graph = load_graph(model)
    design = lower(graph, choose(graph))
    join = next(n for n in graph.nodes if n.op.name == "concat")
    short = [k for k in size_fifos(design) if k.target.unit == join.name and k.depth]
    assert short, json.dumps([str(k) for k in size_fifos(design)])
    design.links = [replace(k, depth=0) if k.target.unit == join.name else k for k in size_fifos(design)]
    (folder / "accelerator_sim.v").write_text(convert(design.accelerator(probes=True), name="accelerator"))
    accelerator = VerilatorAccelerator(folder, watchdog=3000)
    with pytest.raises(DeviceError) as caught:
        accelerator.run(np.full((1, *graph.tensors[graph.inputs[0]].type.shape), 100))
    said = str(caught.value)
    named = rf"stuck edge \S+ -> .*{join.name} \(concat\).*: not taken, while \S+ -> {join.name}\b.* brings nothing"
    assert re.search(named, said), said
    assert f"  {join.outputs[0]}: " in said and "nothing offered" in said
