"""Plans whose tiles wait in external memory: whole blocks, rings that hold them, within the memory's rate; and what is refused."""
import json
from dataclasses import replace
from pathlib import Path

import pytest

from hw.engine import EngineUnit
from hw.lib.spool import BLOCK
from sw.compiler import compile, load_graph
from sw.engine import EnginePlan, Place, build, cycles, requant_of
from sw.errors import CompileError
from sw.folding import spill
from sw.folding.fold import choose
from sw.folding.schedule import size_fifos
from sw.folding.share import worthy
from sw.graph import Graph
from sw.lower import identifier, lower
from sw.targets import target_of
from sw.testing import QonnxWriter, micro_network

DEVICE = target_of("xczu3eg")
TARGET = 9000


def test_plans_keep_their_promises(deep: Graph) -> None:
    layers = [n for n in worthy(deep) if deep.tensors[n.inputs[0]].type.pixels >= 16]
    assert len(layers) >= 2
    plan = spill.plan(deep, DEVICE, layers, TARGET, "dsp48e2", 0.0)
    assert plan is not None and plan.store == "memory" and set(plan.places) == {n.name for n in layers}
    assert cycles(deep, plan) <= spill.LOAD * TARGET
    unit = build(deep, plan)
    assert isinstance(unit, EngineUnit) and unit.frame_cycles == cycles(deep, plan)
    for layer in unit.layers:
        for words, ring in ((unit.rows(layer), plan.operands), (unit.words(layer), plan.results)):
            assert layer.tile * words % BLOCK == 0 and layer.tile * words <= ring
    moved = sum(2 * k.pixels * (unit.rows(k) + unit.words(k)) for k in unit.layers)
    assert (unit.frame_words + moved) * 16 / TARGET <= spill.RATE * DEVICE.memory_bytes
    assert spill.plan(deep, DEVICE, layers, TARGET, "dsp48e2", DEVICE.memory_bytes) is None, "nothing is left of the memory's rate"


def test_long_queues_of_bytes_go_to_memory(tmp_path: Path) -> None:
    graph = load_graph(micro_network(tmp_path / "micro.onnx"))
    layers = [n for n in graph.nodes if requant_of(graph, n) is not None][:2]
    places = {n.name: Place(tile=8, in_blocks=64, out_blocks=64) for n in layers}
    plan = EnginePlan(pe=4, simd=8, data_bits=64, places=places, store="memory", operands=64, results=64)
    design = lower(graph, choose(graph, TARGET, engine=plan), plan)
    links = size_fifos(design)
    longest = max(
        (k for k in links if k.target.unit in design.nodes and k.source.lanes.bits <= 8), key=lambda k: k.depth * k.source.lanes.width
    )
    name = f"{longest.target.unit}.{longest.target.port}"
    assert spill.queues(design, [replace(k, depth=k.depth + 100_000 * (k == longest)) for k in links]).keys() == {name}
    assert not spill.queues(design, [replace(k, depth=0) for k in links])


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    graph = load_graph(micro_network(tmp_path / "micro.onnx"))
    layer = next(n.name for n in graph.nodes if requant_of(graph, n) is not None)
    plan = {"pe": 4, "simd": 8, "data_bits": 64, "store": "memory", "operands": 64, "results": 64}
    good = {layer: {"tile": 8, "in_blocks": 64, "out_blocks": 64}}
    for changes, message in (
        ({"places": {layer: {"tile": 1, "in_blocks": 64, "out_blocks": 64}}}, "a tile must be whole blocks of 8 words, not 1 words"),
        ({"places": {layer: good[layer] | {"in_blocks": 60}}}, "capacity must be a power of two of at least 24 blocks, not 60"),
        ({"places": good, "operands": 4}, "operands must be at least the 8 words"),
        ({"places": good, "simd": 4}, "simd must be 8, not 4"),
        ({"places": good, "queues": {"nothing.i0": 64}}, "queues before nothing.i0"),
    ):
        (tmp_path / "folding.json").write_text(json.dumps({"engine": plan | changes}))
        with pytest.raises(CompileError, match=message):
            compile(tmp_path / "micro.onnx", tmp_path / "out", folding=tmp_path / "folding.json", target_cycles=TARGET)
    concat = next(n for n in graph.nodes if n.op.name == "concat")
    chip = {"pe": 4, "simd": 4, "places": {layer: {"tile": 4}}, "queues": {f"{identifier(concat.name)}.i0": 64}}
    (tmp_path / "folding.json").write_text(json.dumps({"engine": chip}))
    with pytest.raises(CompileError, match="so its store must be memory"):
        compile(tmp_path / "micro.onnx", tmp_path / "out", folding=tmp_path / "folding.json", target_cycles=TARGET)


def test_a_queue_whose_frames_are_no_whole_blocks_is_refused(tmp_path: Path) -> None:
    """Its last beats would wait for the next frame."""
    w = QonnxWriter(6, 6, seed=1)
    x = w.conv(w.conv(w.image, "stem", 12, kernel=3, bits=8), "wide", 12)
    graph = load_graph(w.save(tmp_path / "odd.onnx", [w.conv(x, "head", 4, relu=False, out_bits=16)]))
    layer = next(n for n in graph.nodes if requant_of(graph, n) is not None)
    place = Place(tile=36, in_blocks=64, out_blocks=64)
    after = requant_of(graph, layer)
    assert after is not None
    (reader,) = graph.consumers(after.outputs[0])
    queue = {f"{identifier(reader.name)}.i": 64}
    plan = EnginePlan(pe=4, simd=8, data_bits=64, places={layer.name: place}, store="memory", operands=72, results=72, queues=queue)
    with pytest.raises(CompileError, match=r"a frame's 108 beats are no whole blocks of 16"):
        lower(graph, choose(graph, TARGET, engine=plan), plan)


def test_tiles_outgrow_the_usual_only_when_no_other_can_grow(tmp_path: Path) -> None:
    """A layer of many channels would save more a word of the rings, but its large tiles are in the way of all others."""
    w = QonnxWriter(32, 32, seed=1)
    x = w.conv(w.conv(w.image, "stem", 192, kernel=3, bits=8), "narrow", 192)
    graph = load_graph(w.save(tmp_path / "wide.onnx", [w.conv(w.conv(x, "wide", 480), "head", 4, relu=False, out_bits=16)]))
    nodes = [graph.node(name) for name in ("narrow.conv_node", "wide.conv_node")]
    made = EnginePlan(pe=26, simd=16, lanes=2, multiplier="dsp48e2", data_bits=128, store="memory")
    plans = [spill.with_tiles(graph, DEVICE, made, nodes, 600_000, spent / 10) for spent in range(105)]
    words = {"narrow.conv_node": 12, "wide.conv_node": 30}  # of a pixel, on the side that has more
    tiles = [[p.places[n].tile * each for n, each in words.items()] for p in plans if p]
    assert any(wide > spill.USUAL for _, wide in tiles), "the traffic asks for it in the end"
    assert all(wide <= spill.USUAL or 2 * narrow > spill.USUAL for narrow, wide in tiles), tiles
