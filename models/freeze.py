"""From a quantized detector to the frozen network: its torch.fx graph, read node by node."""
from __future__ import annotations

import dataclasses

import brevitas.nn as qnn
import torch
from torch import Tensor, fx, nn

from models.detectors.codenet import Codenet, trace
from models.frozen import OUTPUTS, FrozenNetwork, Range, Step, check
from models.layers import WIRING
from models.ops.wiring import Add, Concat, Shuffle, Split, Upsample
from models.qat import settle_heads
from models.quant_layers import QuantConv, QuantDeform, quantizer_of
from models.quantizers import snap

#: Path of the place where the image is quantized, and name of that tensor.
INPUT = "input"


@torch.no_grad()
def freeze(model: Codenet) -> FrozenNetwork:
    """The integers of a prepared and calibrated detector."""
    model.eval()
    settle_heads(model)
    graph = trace(model)
    results = next(node for node in graph.nodes if node.op == "output").all_input_nodes
    freezer = _Freezer(model, dict(zip(results, OUTPUTS, strict=True)))
    for node in graph.nodes:
        freezer.visit(node)
    network = FrozenNetwork(model.config, tuple(freezer.steps), freezer.ranges, freezer.integers)
    check(network)
    return network


class _Freezer:
    """Walks the graph; ``names`` are the tensors' names by node (a tuple for a split)."""

    def __init__(self, model: nn.Module, results: dict[fx.Node, str]) -> None:
        self.model, self.results = model, results
        self.names: dict[fx.Node, tuple[str, ...]] = {}
        self.pending: dict[fx.Node, Step] = {}
        self.steps: list[Step] = []
        self.ranges: dict[str, Range] = {}
        self.integers: dict[str, Tensor] = {}

    def visit(self, node: fx.Node) -> None:
        if node.op == "call_function":  # getitem of a split
            self.names[node] = (self.names[node.args[0]][node.args[1]],)  # type: ignore[index]
        if node.op != "call_module":
            return
        module, name = self.model.get_submodule(str(node.target)), str(node.target)
        inputs = tuple(self.names[each][0] for each in node.all_input_nodes if each in self.names)
        if isinstance(module, (QuantConv, QuantDeform)):
            self.pending[node] = self._convolution(module, name, inputs)
        elif isinstance(module, Add):
            self._agree(name, inputs)
            self.pending[node] = Step("add", name, inputs, ())
        elif isinstance(module, nn.Identity):
            self.pending[node] = self.pending[node.all_input_nodes[0]]
        elif isinstance(module, WIRING):
            self._wiring(node, module, name, inputs)
        elif name == INPUT:
            self._add(node, Step("input", name, (), (name,), name), Range.of(quantizer_of(module)))
        else:
            self._quantize(node, module, name)

    def _add(self, node: fx.Node, step: Step, values: Range) -> None:
        self.steps.append(step)
        self.names[node] = step.outputs
        self.ranges.update(dict.fromkeys(step.outputs, values))

    def _convolution(self, layer: QuantConv | QuantDeform, name: str, inputs: tuple[str, ...]) -> Step:
        attributes = {"stride": layer.stride[0], "pad": layer.padding[0], "groups": layer.groups, "dilation": layer.dilation[0]}
        attributes["weight_bits"] = layer.weight_bits
        if layer.bias is not None:
            weight, bias = layer.parameters_quantized(torch.zeros(1, layer.in_channels, 1, 1))
            # Not bias.int(): Brevitas doubts float32 integers near 2^22. Their relative error of 2^-24 is less than half a step.
            self.integers[f"{name}.bias"] = (bias.value.double() / bias.scale.double()).round().to(torch.int32)
        else:
            layer.raise_floor()
            weight = layer.weight_quant(layer.weight)
        m, k = snap(weight.scale.flatten())
        assert torch.equal(torch.ldexp(m, -k), weight.scale.flatten()), "snapping must be idempotent"
        self.integers |= {f"{name}.weight": weight.int().to(torch.int8), f"{name}.m": m.int(), f"{name}.k": k.int()}
        return Step("deform" if isinstance(layer, QuantDeform) else "conv", name, inputs, (), attributes=attributes)

    def _quantize(self, node: fx.Node, module: nn.Module, name: str) -> None:
        step = self.pending[node.all_input_nodes[0]]
        kind = "relu" if isinstance(module, qnn.QuantReLU) else "clip" if isinstance(module, qnn.QuantHardTanh) else "none"
        output = self.results.get(node, step.name)
        self._add(node, dataclasses.replace(step, outputs=(output,), slot=name, activation=kind), Range.of(quantizer_of(module)))

    def _wiring(self, node: fx.Node, module: nn.Module, name: str, inputs: tuple[str, ...]) -> None:
        outputs: tuple[str, ...] = (name,)
        attributes: dict[str, int] = {}
        if isinstance(module, nn.MaxPool2d):
            op, attributes = "maxpool", {"kernel": int(module.kernel_size), "stride": int(module.stride), "pad": int(module.padding)}  # type: ignore[arg-type]
        elif isinstance(module, Upsample):
            op, attributes = "upsample", {"factor": module.factor}
        elif isinstance(module, Shuffle):
            op, attributes = "shuffle", {"groups": module.groups}
        elif isinstance(module, Split):
            op, outputs = "split", (f"{name}.0", f"{name}.1")
        else:
            assert isinstance(module, Concat)
            op = "concat"
        self._add(node, Step(op, name, inputs, outputs, attributes=attributes), self._agree(name, inputs))

    def _agree(self, name: str, inputs: tuple[str, ...]) -> Range:
        """The range that all inputs have."""
        ranges = {self.ranges[each] for each in inputs}
        if len(ranges) != 1:
            raise ValueError(f"{name}: the inputs must share one quantizer, not {ranges}")
        return ranges.pop()
