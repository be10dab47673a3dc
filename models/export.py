"""A frozen network as one QONNX file, written node by node with onnx.helper: no tracing, the same network gives the same bytes.

Quantization is Quant of ``qonnx.custom_op.general`` (https://github.com/fastmachinelearning/qonnx), the deformable operator ONNX's
DeformConv 19. Nodes are named by PyTorch module paths; a tensor that ``FrozenNetwork.tensors`` returns has the same name here, tensors
inside one operator have a suffix (.acc: a convolution's sum; .relu; .bounded; .taps: the offsets of all taps).
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from models.detectors.codenet import STRIDE
from models.frozen import OUTPUTS, FrozenNetwork, Range, Step
from sw.files import whole_file

QONNX = "qonnx.custom_op.general"
OPSET, IR_VERSION = 19, 9
#: What the offset o of a pixel is multiplied by: y before x, taps row by row.
TAP_PATTERN = np.array([step for i in (-1, 0, 1) for j in (-1, 0, 1) for step in (i, j)], np.float32).reshape(1, 18, 1, 1)


def export_qonnx(network: FrozenNetwork, path: Path) -> None:
    """Write ``network`` to ``path``, whole or not at all. Input ``image``: float32 [1, 3, H, W], raw / 256; outputs hm, wh and reg."""
    model = build_qonnx(network)
    onnx.checker.check_model(model)
    with whole_file(Path(path)) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def build_qonnx(network: FrozenNetwork) -> Any:
    """The ModelProto of ``export_qonnx``."""
    height, width = network.config.size
    shapes = {name: list(x.shape) for name, x in network.codes(np.zeros((1, height, width, 3), np.uint8)).items()}
    writer = _Writer(network, shapes)
    for step in network.steps:
        getattr(writer, step.op)(step)
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        writer.nodes, "codenet", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, height, width])],
        [infos[name] for name in OUTPUTS], writer.initializers, value_info=[info for name, info in infos.items() if name not in OUTPUTS],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(QONNX, 1)]
    model = helper.make_model(graph, producer_name="warploom", opset_imports=opsets, ir_version=IR_VERSION)
    facts = {"classes": json.dumps(network.config.classes), "stride": str(STRIDE), "warploom": network.config.to_json()}
    helper.set_model_props(model, facts)
    return model


class _Writer:
    """Nodes and initializers, one method per operator."""

    def __init__(self, network: FrozenNetwork, shapes: dict[str, list[int]]) -> None:
        self.network, self.shapes = network, shapes
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._known: set[str] = set()

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        if name not in self._known:
            self._known.add(name)
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _node(self, kind: str, name: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, name, **attributes))

    def _quant(self, name: str, x: str, y: str, scale: npt.NDArray[np.float32] | float, bits: int, *, signed: bool, narrow: bool) -> None:
        scale_name = self._constant(f"{name}.scale", np.asarray(scale, np.float32))
        zero, width = self._constant("zero", np.zeros((), np.float32)), self._constant(f"bits.{bits}", np.array(bits, np.float32))
        inputs = [x, scale_name, zero, width]
        self._node("Quant", name, inputs, [y], domain=QONNX, signed=int(signed), narrow=int(narrow), rounding_mode="ROUND")

    def _activation_quant(self, name: str, x: str, y: str, values: Range) -> None:
        self._quant(name, x, y, 2.0**-values.exponent, values.bits, signed=values.signed, narrow=False)

    def _parameters(self, step: Step) -> tuple[str, str]:
        """Names of the quantized weight and bias (empty: none), after their initializers and Quant nodes are written."""
        integers, name = self.network.integers, step.name
        scale = torch.ldexp(integers[f"{name}.m"].double(), -integers[f"{name}.k"]).numpy()
        broad = scale.reshape(-1, 1, 1, 1)
        weight = self._constant(f"{name}.weight", (integers[f"{name}.weight"].numpy() * broad).astype(np.float32))
        bits = step.attributes["weight_bits"]
        self._quant(f"{name}.weight_quant", weight, f"{name}.weight_q", broad.astype(np.float32), bits, signed=True, narrow=True)
        if f"{name}.bias" not in integers:
            return f"{name}.weight_q", ""
        scale = scale * 2.0 ** -self.network.ranges[step.inputs[0]].exponent
        bias = self._constant(f"{name}.bias", (integers[f"{name}.bias"].numpy() * scale).astype(np.float32))
        self._quant(f"{name}.bias_quant", bias, f"{name}.bias_q", scale.astype(np.float32), 24, signed=True, narrow=False)
        return f"{name}.weight_q", f"{name}.bias_q"

    def _finish(self, step: Step) -> None:
        """Activation and quantizer behind a step whose sum is ``<name>.acc``."""
        output, x = step.outputs[0], f"{step.name}.acc"
        quant = step.slot if step.activation == "none" else f"{step.slot}.act_quant"
        if step.activation == "relu":
            self._node("Relu", step.slot, [x], [f"{step.name}.relu"])
            x = f"{step.name}.relu"
        elif step.activation == "clip":
            ends = dict(zip(("min", "max"), self.network.config.bounds, strict=True))
            bounds = [self._constant(f"{step.slot}.{side}", np.array(end, np.float32)) for side, end in ends.items()]
            self._node("Clip", step.slot, [x, *bounds], [f"{step.name}.bounded"])
            x = f"{step.name}.bounded"
        self._activation_quant(quant, x, output, self.network.ranges[output])

    def input(self, step: Step) -> None:
        self._activation_quant(step.name, "image", step.outputs[0], self.network.ranges[step.outputs[0]])

    def conv(self, step: Step) -> None:
        at, kernel = step.attributes, list(self.network.integers[f"{step.name}.weight"].shape[2:])
        weight, bias = self._parameters(step)
        self._node(
            "Conv", step.name, [step.inputs[0], weight, bias], [f"{step.name}.acc"], kernel_shape=kernel, group=at["groups"],
            strides=[at["stride"]] * 2, pads=[at["pad"]] * 4, dilations=[at.get("dilation", 1)] * 2,
        )  # fmt: skip
        self._finish(step)

    def deform(self, step: Step) -> None:
        x, offset = step.inputs
        weight, bias = self._parameters(step)
        self._node("Mul", f"{step.name}.tap_offsets", [offset, self._constant("tap_pattern", TAP_PATTERN)], [f"{step.name}.taps"])
        inputs = [x, weight, f"{step.name}.taps", *([bias] if bias else [])]
        self._node(
            "DeformConv", step.name, inputs, [f"{step.name}.acc"], kernel_shape=[3, 3], strides=[1, 1],
            pads=[1, 1, 1, 1], dilations=[1, 1], group=step.attributes["groups"], offset_group=1,
        )  # fmt: skip
        self._finish(step)

    def add(self, step: Step) -> None:
        self._node("Add", step.name, list(step.inputs), [f"{step.name}.acc"])
        self._finish(step)

    def maxpool(self, step: Step) -> None:
        at = step.attributes
        self._node(
            "MaxPool", step.name, [step.inputs[0]], [step.outputs[0]],
            kernel_shape=[at["kernel"]] * 2, strides=[at["stride"]] * 2, pads=[at["pad"]] * 4,
        )  # fmt: skip

    def upsample(self, step: Step) -> None:
        factor = step.attributes["factor"]
        scales = self._constant(f"scales.{factor}", np.array([1, 1, factor, factor], np.float32))
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        self._node("Resize", step.name, [step.inputs[0], "", scales], [step.outputs[0]], **how)

    def split(self, step: Step) -> None:
        sizes = self._constant(f"{step.name}.sizes", np.array([self.shapes[name][1] for name in step.outputs], np.int64))
        self._node("Split", step.name, [step.inputs[0], sizes], list(step.outputs), axis=1)

    def concat(self, step: Step) -> None:
        self._node("Concat", step.name, list(step.inputs), list(step.outputs), axis=1)

    def shuffle(self, step: Step) -> None:
        n, c, h, w = self.shapes[step.inputs[0]]
        groups, name = step.attributes["groups"], step.name
        grouped = self._constant(f"{name}.grouped", np.array([n, groups, c // groups, h, w], np.int64))
        flat = self._constant(f"{name}.flat", np.array([n, c, h, w], np.int64))
        self._node("Reshape", f"{name}.group", [step.inputs[0], grouped], [f"{name}.groups"])
        self._node("Transpose", name, [f"{name}.groups"], [f"{name}.transposed"], perm=[0, 2, 1, 3, 4])
        self._node("Reshape", f"{name}.flatten", [f"{name}.transposed", flat], [step.outputs[0]])
