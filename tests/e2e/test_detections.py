"""A whole detector, from pixels to boxes in Verilog: records equal golden's, boxes equal the host's, and the threshold is a port."""
from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from sim.accelerator import Stalls, VerilatorAccelerator
from sim.axi import Scenario, Step, packet, run_scenarios
from sim.run import Case, run_cases
from sw import golden
from sw.axi import wrap
from sw.compiler import compile, load_built, load_design, load_graph
from sw.decode import decode
from sw.detections import Boxes, boxes_of, heads, with_decoder
from sw.errors import CompileError
from sw.graph import Graph
from sw.ops import Array, Decode
from sw.ops.decode import FIELDS
from sw.testing import micro_network
from sw.verify import verify

pytestmark = pytest.mark.rtl
#: In some frames the number is what ends the list, in others the threshold.
BOXES = Boxes(top_k=17, threshold=0.6)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    compile(micro_network(folder / "micro.onnx", detector=True), folder / "compiled", boxes=BOXES)
    return folder / "compiled"


def images(graph: Graph, count: int, seed: int = 0) -> Array:
    (name,) = graph.inputs
    return np.random.default_rng(seed).integers(0, 256, (count, *graph.tensors[name].type.shape))


@pytest.mark.parametrize("stalls", [Stalls(), Stalls(seed=5, p_valid=0.5, p_ready=0.3)])
def test_every_tensor_the_heads_and_the_boxes_are_right(compiled: Path, stalls: Stalls) -> None:
    accelerator = VerilatorAccelerator(compiled, stalls)
    graph = accelerator.graph
    assert graph.outputs == ("detections",) and heads(graph) == ("hm", "wh", "reg")
    record = verify(graph, images(graph, 8), None, accelerator).record()
    assert record["mismatches"] == 0, record["first_mismatch"]
    rows = {(r["tensor"], r["left"], r["right"]): r["values"] for r in record["tensors"]}
    assert {("hm", "golden", "rtl"), ("wh", "golden", "rtl"), ("reg", "golden", "rtl")} <= set(rows)
    assert rows["detections", "golden", "rtl"] == 8 * 17 * len(FIELDS) and rows["detections", "host", "rtl"] == 8 * 17 * 7


def test_boxes_are_those_of_the_decoder_on_the_host(compiled: Path) -> None:
    accelerator = VerilatorAccelerator(compiled)
    graph, pictures = accelerator.graph, images(accelerator.graph, 3)
    found = boxes_of(graph, accelerator.run(pictures).outputs["detections"])
    plain = load_graph(compiled / "model.onnx")
    maps = golden.run(plain, pictures)
    scales = [float(plain.tensors[t].scale[0]) for t in ("hm", "wh", "reg")]
    wanted = decode(maps["hm"], maps["wh"], maps["reg"], top_k=17, stride=2, threshold=0.6, scales=(scales[0], scales[1], scales[2]))
    assert [len(d.labels) for d in wanted] == [len(d.labels) for d in found] == [17, 17, 16]
    for got, want in zip(found, wanted, strict=True):
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


def test_the_threshold_is_a_port_of_the_accelerator(compiled: Path) -> None:
    """Another value at the port, no other hardware: the records of golden with that threshold."""
    accelerator = VerilatorAccelerator(compiled)
    graph, pictures = accelerator.graph, images(accelerator.graph, 2)
    node = graph.node("decode")
    assert isinstance(node.op, Decode)
    (control,) = load_design(compiled)["controls"]
    assert (control["port"], control["value"], control["bits"]) == ("threshold", node.op.least, 16)
    values = golden.run(graph, pictures)
    scores = values["detections"][0, :, 0, 2]
    least = int(scores[len(scores) // 2])  # half of them are left
    accelerator.controls["threshold"] = least & 0xFFFF
    (wanted,) = dataclasses.replace(node.op, least=least).golden(*(values[t] for t in node.inputs))
    got = accelerator.run(pictures).outputs["detections"]
    np.testing.assert_array_equal(got, wanted)
    assert 0 < wanted[0, :, 0, 0].sum() < values["detections"][0, :, 0, 0].sum()


class Whole:
    """The graph as one operator, for the unit bench."""

    name = "network"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        return (golden.run(self.graph, inputs[0])["detections"],)


def test_in_cocotb_with_random_stalls(compiled: Path, tmp_path: Path) -> None:
    design = load_built(compiled)
    case = Case(name="micro", unit=design.accelerator(), op=Whole(design.graph), inputs=(images(design.graph, 2),))  # type: ignore[arg-type]
    run_cases([case], tmp_path, runs=[(True, True)])


def test_the_threshold_is_a_register_behind_axi(compiled: Path, tmp_path: Path) -> None:
    design = load_built(compiled)
    dut, graph = wrap(design), design.graph
    op, frame = graph.node("decode").op, images(graph, 1, seed=2)
    assert isinstance(op, Decode)
    values = golden.run(graph, frame)
    high = int(values["detections"][0, 3, 0, 2])
    (fewer,) = dataclasses.replace(op, least=high).golden(*(values[t] for t in ("hm", "wh", "reg")))
    send: Step = ("send", packet(frame[0], dut.lanes["image"]))
    place = dut.addresses["threshold"]

    def take(records: Array) -> Step:
        return ("receive", "detections", packet(records[0], dut.lanes["detections"]))

    steps: list[Step] = [("read", place, op.least & 0xFFFFFFFF), ("write", 8, 1), send, take(values["detections"]), ("poll", 12, 0)]
    steps += [("write", place, high & 0xFFFFFFFF), send, take(fewer), ("poll", 12, 0)]
    run_scenarios(dut, [Scenario(name="threshold", steps=steps, stalls=False)], tmp_path / "axi")


def test_maps_can_be_kept_and_other_networks_keep_theirs(tmp_path: Path) -> None:
    model = micro_network(tmp_path / "m.onnx", detector=True)
    kept = compile(model, tmp_path / "maps", maps=True)
    assert [o["tensor"] for o in kept["outputs"]] == ["hm", "wh", "reg"] and kept["controls"] == [] and kept["boxes"] is None
    default = compile(model, tmp_path / "boxes")
    assert [o["tensor"] for o in default["outputs"]] == ["detections"] and default["boxes"] == {"top_k": 100, "threshold": 0.01}
    assert "threshold" in (tmp_path / "boxes" / "accelerator.v").read_text()
    two = compile(micro_network(tmp_path / "two.onnx"), tmp_path / "two")
    assert [o["tensor"] for o in two["outputs"]] == ["hm", "wh"]
    assert json.loads((tmp_path / "boxes" / "folding.json").read_text())["decode"]["cells"] >= 4


@pytest.mark.parametrize(
    ("detector", "boxes", "message"),
    [
        (False, Boxes(), r"detections need the outputs hm, wh and reg .* this network has hm \(.*\), wh"),
        (True, Boxes(threshold=1.0), "threshold must be at least 0 and less than 1, not 1.0"),
        (True, Boxes(top_k=0), "top_k must be at least 1, not 0"),
        (True, Boxes(threshold=1 - 1e-16), "no value of hm reaches a score of"),
    ],
)
def test_refuses(tmp_path: Path, detector: bool, boxes: Boxes, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        with_decoder(load_graph(micro_network(tmp_path / "m.onnx", detector=detector)), boxes)
