"""The exported file, run by onnx.reference with a Quant of its own, gives the frozen network's values."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from models.detectors.codenet import Codenet, CodenetConfig
from models.exercise import exercise_offsets
from models.export import export_qonnx
from models.freeze import freeze
from models.frozen import OUTPUTS, FrozenNetwork
from models.qat import calibrate, prepare

# DeformConv of onnx.reference loops in Python: small maps and few channels.
SMALL = CodenetConfig(size=(64, 64), classes=("a", "b", "c"), decoder=(16, 8, 8), head_channels=8, stem="stride4", frac_bits=2)


class Quant(OpRun):
    """Written from QONNX's definition: scale * (clip(round(x / scale + zero), min, max) - zero)."""

    op_domain = "qonnx.custom_op.general"

    def _run(self, x: Any, scale: Any, zero: Any, bits: Any, signed: int = 1, narrow: int = 0, rounding_mode: str = "ROUND") -> Any:
        assert rounding_mode == "ROUND"
        low = -(2.0 ** (bits - 1)) + narrow if signed else 0.0
        high = 2.0 ** (bits - 1) - 1 if signed else 2.0**bits - 1 - narrow
        return ((scale * (np.clip(np.rint(x / scale + zero), low, high) - zero)).astype(x.dtype),)


def in_float64(model: Any) -> Any:
    """The same model with every float32 constant widened."""
    for each in model.graph.initializer:
        if each.data_type == onnx.TensorProto.FLOAT:
            each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each).astype(np.float64), each.name))
    return model


def images(count: int, config: CodenetConfig) -> Any:
    return np.random.default_rng(1).integers(0, 256, (count, *config.size, 3), dtype=np.uint8)


def random_network(config: CodenetConfig) -> FrozenNetwork:
    """Frozen, with random weights and batch norms whose statistics fit the data."""
    torch.manual_seed(0)
    model = Codenet(config).train()
    x = torch.rand(8, 3, *config.size)
    with torch.no_grad():
        for _ in range(20):
            model(x)
    model.eval()
    prepared = prepare(model)
    calibrate(prepared, [x])
    return freeze(prepared)


@pytest.fixture(scope="module")
def network() -> FrozenNetwork:
    return exercise_offsets(random_network(SMALL), images(16, SMALL))


@pytest.fixture(scope="module")
def exported(network: FrozenNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_qonnx(network, path)
    return path


def test_every_tensor_is_the_frozen_networks_exactly(network: FrozenNetwork, exported: Path) -> None:
    image = images(1, SMALL)
    expected = network.tensors(image)
    model = in_float64(onnx.load(exported))
    for info in list(model.graph.value_info):
        model.graph.output.append(info)
    listed = {output.name for output in model.graph.output}
    inside = [name for name in expected if name not in listed]  # sums and activations before their quantizer
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in inside)
    evaluator = ReferenceEvaluator(model, new_ops=[Quant])
    names = [output.name for output in model.graph.output]
    got = dict(zip(names, evaluator.run(None, {"image": image.transpose(0, 3, 1, 2).astype(np.float64) / 256}), strict=True))
    assert set(names) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    offsets = [np.unique(expected[step.inputs[1]]) for step in network.steps if step.op == "deform"]
    assert all(len(each) > 1 for each in offsets), "offsets that are all alike would prove little"


def test_float32_runtime_is_within_one_step(network: FrozenNetwork, exported: Path) -> None:
    image = images(1, SMALL)
    evaluator = ReferenceEvaluator(onnx.load(exported), new_ops=[Quant])
    got = evaluator.run(None, {"image": image.transpose(0, 3, 1, 2).astype(np.float32) / 256})
    expected = network.tensors(image)
    for name, value in zip(OUTPUTS, got, strict=True):
        steps = np.abs(value - expected[name]) * 2.0 ** network.ranges[name].exponent
        assert (steps > 0.5).mean() < 0.01, name


def test_bytes_are_the_same_twice(network: FrozenNetwork, exported: Path, tmp_path: Path) -> None:
    export_qonnx(network, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_names_and_metadata(network: FrozenNetwork, exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model)
    nodes = {node.name: node for node in model.graph.node}
    assert len(nodes) == len(model.graph.node), "node names are unique"
    assert nodes["decoder.0.deform"].op_type == "DeformConv" and nodes["decoder.0.offset"].op_type == "Conv"
    assert nodes["stage2.1.shuffle"].op_type == "Transpose"
    assert [output.name for output in model.graph.output] == ["hm", "wh", "reg"]
    properties = {each.key: each.value for each in model.metadata_props}
    assert json.loads(properties["classes"]) == list(SMALL.classes) and properties["stride"] == "4"
    assert CodenetConfig.from_json(properties["warploom"]) == SMALL


def test_quantized_constants_are_where_quant_leaves_them(network: FrozenNetwork, exported: Path) -> None:
    """Weights and biases in the file are integer * scale, so that any reader recovers the very integers."""
    constants = {each.name: numpy_helper.to_array(each).astype(np.float64) for each in onnx.load(exported).graph.initializer}
    for name, integers in network.integers.items():
        layer, kind = name.rsplit(".", 1)
        if kind in ("weight", "bias"):
            scale = constants[f"{layer}.{kind}_quant.scale"]
            np.testing.assert_array_equal(np.rint(constants[name] / scale), integers.numpy(), err_msg=name)


def test_failure_leaves_the_earlier_file_whole(network: FrozenNetwork, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = exported.read_bytes()
    monkeypatch.setattr("models.export.build_qonnx", lambda network: onnx.ModelProto())
    with pytest.raises(onnx.checker.ValidationError):
        export_qonnx(network, exported)
    assert exported.read_bytes() == before
