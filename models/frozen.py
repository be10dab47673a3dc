"""The frozen network: integers only in its weights, exact in its evaluation.

``models.freeze`` makes it: a list of ``Step``s. Evaluation is in float64 on integer codes: every product and sum stays far below 2^53, so
each tensor is exact; value = code * 2^-exponent. Golden and hardware give the same codes.
"""
from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from models import checkpoint
from models.detectors.codenet import CodenetConfig, images_to_input
from models.ops.deform import square_deform_exact
from models.ops.wiring import Shuffle, Upsample
from models.quantizers import PowerOfTwo

#: Names of the network's outputs, in order.
OUTPUTS = ("hm", "wh", "reg")


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
