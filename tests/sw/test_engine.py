"""Which layers may share the engine, what plans cost, and what is refused."""
from pathlib import Path

import pytest

from hw.engine import EngineUnit
from sw.compiler import load_graph
from sw.engine import EnginePlan, Place, build, columns, cycles, members, requant_of, weights_of, words
from sw.errors import CompileError
from sw.folding.fold import read_engine
from sw.folding.share import LOAD, SHARE, plans, worthy
from sw.graph import Graph
from sw.targets import target_of
from sw.testing import QonnxWriter, micro_network

DEVICE = target_of("xczu3eg")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return load_graph(micro_network(tmp_path_factory.mktemp("engine") / "micro.onnx"))


def plan_of(graph: Graph, names: list[str], **changes: object) -> EnginePlan:
    fields: dict[str, object] = {"pe": 6, "simd": 4, "lanes": 2, "multiplier": "dsp48e2"} | changes
    return EnginePlan(**fields, places={n: Place(tile=4) for n in names})  # type: ignore[arg-type]


def test_only_pointwise_layers_of_few_bits_may_share(graph: Graph) -> None:
    able = {n.name.split(".")[0] for n in graph.nodes if requant_of(graph, n) is not None}
    assert able == {"pw1", "pw2", "conv5", "offset1", "dec1pw", "offset2", "dec2pw", "hm1", "wh1"}


def test_cycles_and_words_are_those_of_the_unit(graph: Graph) -> None:
    names = [n.name for n in graph.nodes if requant_of(graph, n) is not None]
    for changes in ({}, {"lanes": 1}, {"pe": 3, "lanes": 1, "data_bits": 64}, {"multiplier": "inferred"}):
        plan = plan_of(graph, names, **changes)
        unit = build(graph, plan)
        assert isinstance(unit, EngineUnit) and unit.frame_cycles == cycles(graph, plan)
        assert len(unit.image()) == unit.region_bytes
        row = columns(plan, weights_of(graph.node(n) for n in names))
        job_words = [words(plan, len(k.weights[0]), len(k.weights), row) * k.jobs for k in unit.layers]
        assert sum(job_words) == unit.frame_words


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("multiplier", ["dsp48e2", "packed27", "mult18x18d", "inferred"])
def test_cycles_and_words_follow_the_weights_that_there_are(tmp_path: Path, bits: int, multiplier: str) -> None:
    """Wider weights share a multiplier less, or not at all, and take more of the bus."""
    w = QonnxWriter(8, 8, seed=bits)
    x = w.conv(w.conv(w.conv(w.image, "stem", 12, kernel=3, bits=8), "wide", 20, bits=bits), "head", 4, relu=False, out_bits=16)
    graph = load_graph(w.save(tmp_path / "wide.onnx", [x]))
    plan = plan_of(graph, [n.name for n in graph.nodes if n.name.startswith("wide") and n.op.name == "conv"], multiplier=multiplier)
    unit = build(graph, plan)
    assert unit.frame_cycles == cycles(graph, plan)
    row = columns(plan, weights_of(graph.node(n) for n in plan.places))
    assert sum(words(plan, 12, 20, row) * k.jobs for k in unit.layers) == unit.frame_words


def test_a_pinned_requantization_keeps_its_convolution_off_the_engine(deep: Graph) -> None:
    pinned = requant_of(deep, worthy(deep)[0])
    assert pinned is not None
    for plan in plans(deep, DEVICE, 4000, "dsp48e2", pins=[pinned.name]):
        assert worthy(deep)[0].name not in plan.places


def test_plans_keep_their_promises(deep: Graph) -> None:
    graph = deep
    found = list(plans(graph, DEVICE, 4000, "dsp48e2"))
    assert max(len(p.places) for p in found) >= 2 and [len(p.places) for p in found] == sorted({len(p.places) for p in found})
    for plan in found:
        assert set(plan.places) <= {n.name for n in worthy(graph)}
        assert cycles(graph, plan) <= LOAD * 4000
        assert build(graph, plan).frame_words * plan.data_bits / 8 <= SHARE * DEVICE.memory_bytes * 4000


def test_what_cannot_be_there_is_refused_by_name(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="names nothing, which the network does not have"):
        members(graph, plan_of(graph, ["nothing"]))
    with pytest.raises(CompileError, match=r"stem\.conv_node cannot share the engine: it takes pointwise"):
        members(graph, plan_of(graph, ["stem.conv_node"]))
    with pytest.raises(CompileError, match=r"the engine cannot be built: layer 0 of the engine: tile must divide 16 pixels"):
        build(graph, EnginePlan(pe=4, simd=4, places={"conv5.conv_node": Place(tile=5)}))
    (tmp_path / "folding.json").write_text('{"engine": {"pe": 4}}')
    with pytest.raises(CompileError, match="the engine's plan cannot be read"):
        read_engine(tmp_path / "folding.json")
