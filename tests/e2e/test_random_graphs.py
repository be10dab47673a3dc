# amaranth: UnusedElaboratable=no
"""No deadlock: random graphs with stalls at every edge, and a network that was made to jam, whose report must name the edge."""
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hw.engine import EngineUnit
from hw.verilog import convert
from sim.accelerator import MemoryModel, Stalls, VerilatorAccelerator
from sim.memory import InMemory
from sim.run import Case, run_cases
from sw import golden
from sw.compiler import compile, load_design, load_graph
from sw.engine import ENGINE, EnginePlan, Place, requant_of
from sw.errors import DeviceError
from sw.folding.fold import choose
from sw.folding.schedule import size_fifos
from sw.graph import Graph
from sw.lower import Design, identifier, lower
from sw.ops import Array
from sw.testing import nano_network, random_network
from sw.verify import verify

pytestmark = pytest.mark.rtl


class Whole:
    """The graph as one operator, for the unit bench."""

    name = "network"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        values = golden.run(self.graph, inputs[0])
        return tuple(values[t] for t in self.graph.outputs)


def with_memory(design: Design) -> InMemory:
    """An accelerator with what its engine reads beside it."""
    unit = design.units[ENGINE]
    assert isinstance(unit, EngineUnit)
    return InMemory(design.accelerator(), latency=20, stalls=6, image=unit.image())


def case(folder: Path, seed: int, *, shared: bool = False) -> Case:
    """A random graph, every third of them folded to be slow, and random frames; ``shared``: its pointwise layers share an engine."""
    graph = load_graph(random_network(folder / f"{seed}.onnx", seed=seed))
    (image,) = graph.inputs
    engine = None
    if shared:
        layers = [n for n in graph.nodes if requant_of(graph, n) is not None]
        places = {n.name: Place(tile=(3, 9)[k % 2], in_slots=1 + k % 3, out_slots=1 + k % 2) for k, n in enumerate(layers)}
        engine = EnginePlan(pe=3, simd=2, data_bits=64, places=places)
    design = lower(graph, choose(graph, 2000 if seed % 3 == 2 else None, engine=engine), engine)
    design.links = size_fifos(design)
    # Intervals are checked where three frames are run; an engine's depend on the order of its jobs.
    frames = np.random.default_rng(seed).integers(0, 256, (2 if shared else 3, *graph.tensors[image].type.shape))
    unit = with_memory(design) if shared else design.accelerator()
    return Case(name=f"graph_{seed}{'_shared' * shared}", unit=unit, op=Whole(graph), inputs=(frames,))  # type: ignore[arg-type]


def joins(cases: Sequence[Case]) -> int:
    return sum(n.op.name == "concat" for c in cases for n in c.op.graph.nodes)  # type: ignore[attr-defined]


def test_random_graphs_neither_lock_nor_lose(tmp_path: Path) -> None:
    cases = [case(tmp_path, seed, shared=shared) for seed, shared in ((0, False), (1, False), (2, False), (3, False), (4, True), (5, True))]
    assert joins(cases) >= 4
    run_cases(cases, tmp_path / "bench")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(4, 44, 8))
def test_more_random_graphs_neither_lock_nor_lose(first: int, tmp_path: Path) -> None:
    run_cases([case(tmp_path, seed, shared=seed % 2 == 0) for seed in range(first, first + 8)], tmp_path / "bench")


@pytest.mark.parametrize("seed", [6, *(pytest.param(k, marks=pytest.mark.slow) for k in range(7, 15))])
def test_random_graphs_with_tiles_and_queues_in_memory(seed: int, tmp_path: Path) -> None:
    """Every layer that can on an engine whose tiles wait in memory, and every long way around a branch; slow memory, stalls."""
    graph = load_graph(random_network(tmp_path / "model.onnx", seed=seed, size=8))
    layers = [n for n in graph.nodes if requant_of(graph, n) is not None]
    places = {n.name: Place(tile=8 * (1 + k % 2), in_blocks=32 << k % 2, out_blocks=32) for k, n in enumerate(layers)}
    queues = {f"{identifier(n.name)}.i{k % 2}": 32 for k, n in enumerate(n for n in graph.nodes if n.op.name == "concat")}
    plan = EnginePlan(pe=2, simd=8, data_bits=64, places=places, store="memory", operands=64, results=64, queues=queues)
    (tmp_path / "folding.json").write_text(json.dumps({"engine": plan.record()}))
    compile(tmp_path / "model.onnx", tmp_path / "compiled", folding=tmp_path / "folding.json", target_cycles=20_000)
    memory = MemoryModel(latency=20 + 40 * (seed % 3), words_a_cycle=0.8, p_valid=0.6)
    accelerator = VerilatorAccelerator(tmp_path / "compiled", Stalls(seed=seed, p_valid=0.7, p_ready=0.6), watchdog=50_000, memory=memory)
    frames = np.random.default_rng(seed).integers(0, 256, (4, *accelerator.graph.tensors[accelerator.graph.inputs[0]].type.shape))
    record = verify(accelerator.graph, frames, None, accelerator).record()
    assert record["mismatches"] == 0 and record["images"] == 4
    assert len(load_design(tmp_path / "compiled")["memories"]) == 3 and queues


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
