"""Laterals: the skip connections of the decoder, from PyTorch to golden and Verilog."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from models.detectors.codenet import Codenet, CodenetConfig, images_to_input
from models.exercise import exercise_offsets
from models.export import export_qonnx
from models.freeze import freeze
from models.frozen import FrozenNetwork, check
from models.layers import find_layers
from models.qat import calibrate, prepare
from sim.accelerator import VerilatorAccelerator
from sw.compiler import compile, load_graph
from sw.ops import Add
from sw.verify import verify

CONFIG = CodenetConfig(size=(32, 64), classes=("a", "b"), decoder=(16, 8, 8), head_channels=8, stem="stride4", laterals=True)
IMAGES = np.random.default_rng(1).integers(0, 256, (8, *CONFIG.size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def frozen() -> FrozenNetwork:
    torch.manual_seed(0)
    model, x = Codenet(CONFIG).train(), images_to_input(IMAGES)
    with torch.no_grad():
        for _ in range(20):
            model(x)
    prepared = prepare(model.eval())
    calibrate(prepared, [x])
    return exercise_offsets(freeze(prepared), IMAGES)


@pytest.fixture(scope="module")
def exported(frozen: FrozenNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("laterals") / "model.onnx"
    export_qonnx(frozen, path)
    return path


def test_both_inputs_of_a_sum_share_one_quantizer() -> None:
    _, groups = find_layers(Codenet(CONFIG))
    assert groups[-2:] == [[f"decoder.{k}.lateral.1", f"decoder.{k}.mix.1"] for k in (0, 1)]


def test_a_lateral_reaches_the_maps() -> None:
    torch.manual_seed(0)
    model, x = Codenet(CONFIG).eval(), torch.rand(1, 3, *CONFIG.size)
    before = model(x)[0]
    with torch.no_grad():
        model.get_submodule("decoder.1.lateral.0").weight.mul_(2)  # type: ignore[operator]
    assert not torch.equal(model(x)[0], before)


def test_golden_equals_pytorch_at_every_tensor(frozen: FrozenNetwork, exported: Path) -> None:
    graph = load_graph(exported)
    assert sum(isinstance(node.op, Add) for node in graph.nodes) == 2
    record = verify(graph, IMAGES.astype(np.int64), frozen.tensors(IMAGES), None).record()
    assert record["mismatches"] == 0, record["first_mismatch"]


def test_ties_of_coarser_sums_go_to_the_even_neighbour_on_both_sides(frozen: FrozenNetwork, tmp_path: Path) -> None:
    """Scales of sums are powers of two, so a quantizer coarser than its inputs meets halves."""
    steps = [step for step in frozen.steps if step.op == "add"]
    coarse = {}
    for step in steps:
        (output,) = step.outputs
        coarse[output] = dataclasses.replace(frozen.ranges[output], exponent=frozen.ranges[step.inputs[0]].exponent - 2)
    other = dataclasses.replace(frozen, ranges=frozen.ranges | coarse)
    check(other)
    sums: dict[str, torch.Tensor] = {}
    other.codes(IMAGES, sums)
    assert all(int(((sums[step.name] / 4).remainder(1) == 0.5).sum()) > 100 for step in steps)
    export_qonnx(other, tmp_path / "model.onnx")
    record = verify(load_graph(tmp_path / "model.onnx"), IMAGES.astype(np.int64), other.tensors(IMAGES), None).record()
    assert record["mismatches"] == 0, record["first_mismatch"]


@pytest.mark.rtl
@pytest.mark.slow
def test_verilog_equals_pytorch_at_every_tensor(frozen: FrozenNetwork, exported: Path, tmp_path: Path) -> None:
    compile(exported, tmp_path / "compiled")
    accelerator = VerilatorAccelerator(tmp_path / "compiled")
    record = verify(accelerator.graph, IMAGES[:3].astype(np.int64), frozen.tensors(IMAGES[:3]), accelerator).record()
    assert record["mismatches"] == 0 and record["offsets_prove"]
