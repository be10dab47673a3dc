"""Networks whose pointwise layers share the engine: every tensor is golden's, whatever the pace of the memory with its weights."""
import json
from pathlib import Path

import numpy as np
import pytest

from sim.accelerator import MemoryModel, Stalls, VerilatorAccelerator
from sw.compiler import compile, load_design, load_graph
from sw.engine import requant_of
from sw.graph import Graph
from sw.lower import identifier
from sw.ops import Array
from sw.testing import micro_network
from sw.verify import verify

pytestmark = pytest.mark.rtl

TARGET = 8000


def images(graph: Graph, count: int, seed: int = 0) -> Array:
    (name,) = graph.inputs
    return np.random.default_rng(seed).integers(0, 256, (count, *graph.tensors[name].type.shape))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro network with all its pointwise layers on an engine of 4 × 4."""
    folder = tmp_path_factory.mktemp("engine")
    graph = load_graph(micro_network(folder / "micro.onnx"))
    layers = [n for n in graph.nodes if requant_of(graph, n) is not None]
    places = {n.name: {"tile": 4, "in_slots": 1 + k % 2} for k, n in enumerate(layers)}
    plan = {"pe": 4, "simd": 4, "data_bits": 64, "places": places}
    (folder / "folding.json").write_text(json.dumps({"engine": plan}))
    compile(folder / "micro.onnx", folder / "compiled", folding=folder / "folding.json", target_cycles=TARGET)
    return folder / "compiled"


def test_every_tensor_equals_golden_sums_in_the_engine_included(compiled: Path) -> None:
    accelerator = VerilatorAccelerator(compiled)
    record = verify(accelerator.graph, images(accelerator.graph, 6), None, accelerator).record()
    assert record["mismatches"] == 0 and record["first_mismatch"] is None
    assert record["tensors_compared"] == len({t for n in accelerator.graph.nodes for t in n.outputs})


def test_the_interval_is_that_of_the_slowest_unit(compiled: Path) -> None:
    accelerator = VerilatorAccelerator(compiled)
    ends = [end for _, end in accelerator.run(images(accelerator.graph, 8)).cycles]
    design = load_design(compiled)
    assert design["engine"]["cycles"] < design["interval_cycles"]
    assert design["interval_cycles"] <= ends[-1] - ends[-2] <= 1.01 * design["interval_cycles"]


@pytest.mark.parametrize(("stalls", "memory"), [
    (Stalls(seed=3, p_valid=0.4, p_ready=0.4), MemoryModel(latency=300, p_valid=0.3)),
    (Stalls(), MemoryModel(latency=1, words_a_cycle=0.05)),
])  # fmt: skip
def test_slow_memory_and_stalls_lose_nothing(compiled: Path, stalls: Stalls, memory: MemoryModel) -> None:
    accelerator = VerilatorAccelerator(compiled, stalls, memory=memory)
    record = verify(accelerator.graph, images(accelerator.graph, 2, seed=1), None, accelerator).record()
    assert record["mismatches"] == 0


def test_a_deformable_map_in_memory_beside_the_engine(tmp_path: Path) -> None:
    """Both kinds of traffic, reads and writes, share one memory of little bandwidth."""
    graph = load_graph(micro_network(tmp_path / "micro.onnx"))
    deform = next(n for n in graph.nodes if n.op.name == "deform")
    conv5 = next(n for n in graph.nodes if n.name.startswith("conv5"))
    folding = {
        deform.name: {"lanes_in": 2, "lanes_out": 2, "place": "memory", "data_bits": 16},
        "engine": {"pe": 4, "simd": 4, "data_bits": 64, "places": {conv5.name: {"tile": 8}}},
    }
    (tmp_path / "folding.json").write_text(json.dumps(folding))
    compile(tmp_path / "micro.onnx", tmp_path / "compiled", folding=tmp_path / "folding.json", target_cycles=TARGET)
    kinds = {(m["kind"], m["data_bits"]) for m in load_design(tmp_path / "compiled")["memories"]}
    assert kinds == {("read", 64), ("read", 16), ("write", 16)}
    memory = MemoryModel(latency=40, words_a_cycle=0.7)
    accelerator = VerilatorAccelerator(tmp_path / "compiled", Stalls(seed=5, p_valid=0.7), memory=memory)
    record = verify(accelerator.graph, images(accelerator.graph, 4, seed=2), None, accelerator).record()
    assert record["mismatches"] == 0 and record["offsets_prove"]


@pytest.fixture(scope="module")
def spilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro network with an engine whose tiles wait in memory, and two links that do so, too."""
    folder = tmp_path_factory.mktemp("spilled")
    graph = load_graph(micro_network(folder / "micro.onnx"))
    layers = [n for n in graph.nodes if requant_of(graph, n) is not None]
    places = {n.name: {"tile": 8 * (1 + k % 2), "in_blocks": 64, "out_blocks": 64} for k, n in enumerate(layers)}
    concat = next(n for n in graph.nodes if n.op.name == "concat")
    plan = {"pe": 4, "simd": 8, "data_bits": 64, "places": places, "store": "memory", "operands": 128, "results": 128}
    (folder / "folding.json").write_text(json.dumps({"engine": plan | {"queues": {f"{identifier(concat.name)}.i0": 64}}}))
    compile(folder / "micro.onnx", folder / "compiled", folding=folder / "folding.json", target_cycles=TARGET)
    return folder / "compiled"


@pytest.mark.parametrize(("stalls", "memory"), [
    (Stalls(), MemoryModel()),
    (Stalls(seed=7, p_valid=0.5, p_ready=0.4), MemoryModel(latency=200, p_valid=0.5)),
])  # fmt: skip
def test_tiles_and_queues_in_memory_lose_nothing(spilled: Path, stalls: Stalls, memory: MemoryModel) -> None:
    accelerator = VerilatorAccelerator(spilled, stalls, memory=memory)
    record = verify(accelerator.graph, images(accelerator.graph, 5, seed=3), None, accelerator).record()
    assert record["mismatches"] == 0
    assert record["tensors_compared"] == len({t for n in accelerator.graph.nodes for t in n.outputs})
    assert {(m["port"], m["kind"]) for m in load_design(spilled)["memories"]} == {
        ("engine_weights", "read"), ("engine_read", "read"), ("engine_write", "write"),
    }  # fmt: skip


def test_a_flipped_bit_in_memory_is_caught_at_its_layer(compiled: Path, tmp_path: Path) -> None:
    accelerator = VerilatorAccelerator(compiled)
    whole = (compiled / "memory.bin").read_bytes()
    try:
        broken = bytearray(whole)
        broken[0] ^= 4
        (compiled / "memory.bin").write_bytes(broken)
        record = verify(accelerator.graph, images(accelerator.graph, 1), None, accelerator).record()
    finally:
        (compiled / "memory.bin").write_bytes(whole)
    first = next(iter(load_design(compiled)["engine"]["places"]))
    assert record["mismatches"] > 0 and record["first_mismatch"]["node"] == first


def test_the_plan_is_written_back_and_read_again(compiled: Path, tmp_path: Path) -> None:
    again = compile(compiled / "model.onnx", tmp_path / "again", folding=compiled / "folding.json")
    design = load_design(compiled)
    assert again["engine"] == design["engine"]
    assert [n["lanes_out"] for n in again["nodes"]] == [n["lanes_out"] for n in design["nodes"]]
