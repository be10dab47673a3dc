"""The frozen network: integers only in its weights, exact in its evaluation.

``freeze`` reads the torch.fx graph of a quantized detector and writes down a list of ``Step``s. Evaluation is in float64 on integer codes:
every product and sum stays far below 2^53, so each tensor is exact; value = code * 2^-exponent. Golden and hardware give the same codes.
"""
from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from models import checkpoint
from models.detectors.codenet import Codenet, CodenetConfig, images_to_input, trace
from models.layers import WIRING
from models.ops.deform import square_deform_exact
from models.ops.wiring import Add, Concat, Shuffle, Split, Upsample
from models.qat import settle_heads
from models.quant_layers import QuantConv, QuantDeform, quantizer_of
from models.quantizers import PowerOfTwo, snap

#: Names of the network's outputs, in order.
OUTPUTS = ("hm", "wh", "reg")
INPUT = "input"


@dataclass(frozen=True)
class Range:
    """Integers of a tensor: ``bits`` and ``signed``, clamped to low..high, value = integer * 2^-exponent."""

    bits: int
    signed: bool
    low: int
    high: int
    exponent: int

    @classmethod
    def of(cls, quantizer: PowerOfTwo) -> Range:
        return cls(quantizer.bits, quantizer.signed, quantizer.low, quantizer.high, int(quantizer.exponent))

    @property
    def largest(self) -> int:
        """The greatest magnitude."""
        return max(-self.low, self.high)


@dataclass(frozen=True)
class Step:
    """One operator. ``name`` is its PyTorch module path; inputs and outputs are names of tensors.

    op: input, conv, deform, add, maxpool, upsample, split, concat or shuffle. slot: path of the activation or quantizer behind a
    convolution or sum; activation: relu, clip or none; attributes: stride, pad, groups, dilation, weight_bits / kernel, stride, pad /
    factor / groups.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    slot: str = ""
    activation: str = "none"
    attributes: dict[str, int] = field(default_factory=dict)


def exact_conv(x: Tensor, weight: Tensor, *, stride: int, pad: int, groups: int, dilation: int = 1) -> Tensor:
    """Convolution of integer-valued float64 as plain products and sums, so that nothing but the size of the sums decides exactness."""
    outputs, _, kernel, _ = weight.shape
    x = F.pad(x, (pad, pad, pad, pad))
    reach = (kernel - 1) * dilation + 1
    windows = x.unfold(2, reach, stride).unfold(3, reach, stride)[..., ::dilation, ::dilation]  # (N, C, H, W, K, K)
    if groups == 1:
        return torch.einsum("nchwij,ocij->nohw", windows, weight)
    if groups != outputs or groups != x.shape[1]:
        raise ValueError(f"groups must be 1 or the number of channels, not {groups!r}")
    return (windows * weight.view(1, groups, 1, 1, kernel, kernel)).sum((4, 5))


@dataclass(frozen=True)
class FrozenNetwork:
    """Steps in order, ranges by tensor name, and integers by step name: .weight (OC, IC / groups, K, K), .bias, .m, .k (OC,).

    A weight's value is integer * m * 2^-k, a bias' integer * m * 2^-k * 2^-(exponent of the input).
    """

    config: CodenetConfig
    steps: tuple[Step, ...]
    ranges: dict[str, Range]
    integers: dict[str, Tensor]

    def codes(self, images: npt.NDArray[np.uint8], sums: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Every quantized activation tensor (N, C, H, W) as integers in float64, for raw images (N, H, W, 3).

        ``sums``, if given, is filled with what every convolution or addition adds up, bias included, by the name of its step.
        """
        found: dict[str, Tensor] = {}
        for step in self.steps:
            if step.op == "input":
                found[step.outputs[0]] = (images_to_input(images) * 256).double()
            else:
                results = self._run(step, [found[name] for name in step.inputs], sums)
                found.update(zip(step.outputs, results, strict=True))
        return found

    def tensors(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float64]]:
        """Every activation tensor's values (N, C, H, W), exact, by the names that the exported file uses.

        Beside the quantized tensors these are each convolution's and addition's sum (``.acc``) and, where an activation stands
        between it and the quantizer, that activation's result (``.relu``, ``.bounded``).
        """
        sums: dict[str, Tensor] = {}
        values = {name: codes.numpy() * 2.0 ** -self.ranges[name].exponent for name, codes in self.codes(images, sums).items()}
        for step in self.steps:
            if step.name in sums:
                acc = (sums[step.name] * self.sum_scale(step)).numpy()
                values[f"{step.name}.acc"] = acc
                if step.activation == "relu":
                    values[f"{step.name}.relu"] = np.maximum(acc, 0.0)
                elif step.activation == "clip":
                    values[f"{step.name}.bounded"] = np.clip(acc, *self.config.bounds)
        return values

    def sum_scale(self, step: Step) -> Tensor:
        """Value of one unit of a step's sum, (1, OC, 1, 1) or, of an addition, (1, 1, 1, 1); float64, exact."""
        if step.op == "add":
            return torch.full((1, 1, 1, 1), 2.0 ** -self.ranges[step.inputs[0]].exponent, dtype=torch.float64)
        k = self.integers[f"{step.name}.k"] + self.ranges[step.inputs[0]].exponent
        return torch.ldexp(self.integers[f"{step.name}.m"].double(), -k).view(1, -1, 1, 1)

    def maps(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], ...]:
        """hm, wh and reg as (N, H/4, W/4, channels), exact values."""
        found = self.codes(images)
        return tuple(found[name].permute(0, 2, 3, 1).numpy() * 2.0 ** -self.ranges[name].exponent for name in OUTPUTS)

    def _run(self, step: Step, inputs: list[Tensor], sums: dict[str, Tensor] | None) -> tuple[Tensor, ...]:
        x, at = inputs[0], step.attributes
        if step.op in ("conv", "deform", "add"):
            acc = self._sum(step, inputs)
            if sums is not None:
                sums[step.name] = acc
            return (self._requantize(step, acc),)
        if step.op == "maxpool":
            return (F.max_pool2d(x, at["kernel"], at["stride"], at["pad"]),)
        if step.op == "upsample":
            return (Upsample(at["factor"])(x),)
        if step.op == "shuffle":
            return (Shuffle(at["groups"])(x),)
        if step.op == "split":
            return x.chunk(2, 1)
        if step.op == "concat":
            return (torch.cat(inputs, 1),)
        raise ValueError(f"step {step.name} has an unknown operator: {step.op!r}")

    def _sum(self, step: Step, inputs: list[Tensor]) -> Tensor:
        """What a step adds up, in units of input and weight."""
        if step.op == "add":
            return inputs[0] + inputs[1]
        at, weight = step.attributes, self.integers[f"{step.name}.weight"].double()
        if step.op == "deform":
            acc = square_deform_exact(inputs[0], inputs[1] * 2.0 ** -self.ranges[step.inputs[1]].exponent, weight)
        else:
            acc = exact_conv(inputs[0], weight, stride=at["stride"], pad=at["pad"], groups=at["groups"], dilation=at.get("dilation", 1))
        bias = self.integers.get(f"{step.name}.bias")
        return acc if bias is None else acc + bias.double().view(1, -1, 1, 1)

    def _requantize(self, step: Step, acc: Tensor) -> Tensor:
        target = self.ranges[step.outputs[0]]
        if step.op == "add":  # both scales are powers of two; a tie goes to the even neighbour, here and in the file (ROUND)
            return torch.round(acc * 2.0 ** (target.exponent - self.ranges[step.inputs[0]].exponent)).clamp(target.low, target.high)
        scaled = acc * self.integers[f"{step.name}.m"].double().view(1, -1, 1, 1)
        shift = shifts(self, step).double().view(1, -1, 1, 1)
        return torch.round(scaled * torch.exp2(-shift)).clamp(target.low, target.high)

    def save(self, path: Path) -> None:
        """Write everything to ``path``: tensors and one JSON string."""
        described = {
            "config": json.loads(self.config.to_json()),
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "ranges": {name: dataclasses.asdict(each) for name, each in self.ranges.items()},
        }
        checkpoint.save(path, {"frozen": json.dumps(described), "integers": self.integers})

    @classmethod
    def load(cls, path: Path) -> FrozenNetwork:
        """Read what ``save`` wrote (weights only); ValueError if it is something else."""
        content = checkpoint.load(path)
        try:
            described = json.loads(content["frozen"])
            steps = tuple(_step(each) for each in described["steps"])
            ranges = {name: Range(**each) for name, each in described["ranges"].items()}
            network = cls(CodenetConfig.from_json(json.dumps(described["config"])), steps, ranges, dict(content["integers"]))
            check(network)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} must be a frozen network: {error}") from error
        return network


def _step(fields: dict[str, Any]) -> Step:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Step(**values)


def shifts(network: FrozenNetwork, step: Step) -> Tensor:
    """s per output channel of a convolution: code of the output = (acc + bias) * m >> s, rounded."""
    return network.integers[f"{step.name}.k"] + network.ranges[step.inputs[0]].exponent - network.ranges[step.outputs[0]].exponent


def largest_accumulator(network: FrozenNetwork, step: Step) -> Tensor:
    """The greatest |acc + bias| per output channel that the actual weights allow, for any input; int64."""
    weight = network.integers[f"{step.name}.weight"].long().flatten(1).abs().sum(1)
    bias = network.integers.get(f"{step.name}.bias", torch.zeros(1)).long().abs()
    return weight * network.ranges[step.inputs[0]].largest + bias


def check(network: FrozenNetwork) -> None:
    """Raise ValueError where the contract is broken: ranges of weights, biases and shifts, and no value that is a tie and matters.

    A tie needs |acc + bias| to be an odd multiple of 2^(s-1); its result is then at least m / 2 > 2^14 steps. So either the accumulator
    cannot get there, or the output saturates well before.
    """
    for step in network.steps:
        if step.op not in ("conv", "deform"):
            continue
        m, s = network.integers[f"{step.name}.m"].long(), shifts(network, step).long()
        target, high = network.ranges[step.outputs[0]], 2 ** (step.attributes["weight_bits"] - 1) - 1
        tie = largest_accumulator(network, step).double() >= torch.exp2(s.double() - 1)
        for wrong, what in (
            ((m % 2 == 0) | (m <= 2**15) | (m >= 2**16), "m must be odd and between 2^15 and 2^16"),
            (s < 1, "the shift must be at least 1"),
            (tie & (target.largest >= 2**14), "a value could be a tie"),
            (network.integers[f"{step.name}.weight"].flatten(1).abs().amax(1) > high, f"weights must be within +-{high}"),
            (network.integers.get(f"{step.name}.bias", torch.zeros(1)).abs() >= 2**22, "|bias| must be below 2^22"),
        ):
            if bool(wrong.any()):
                raise ValueError(f"{step.name}: {what}; channel {int(wrong.nonzero()[0])} breaks it")


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
