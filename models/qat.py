"""A trained float detector made ready for quantization-aware training: batch norm folded, Brevitas layers in place, calibrated."""
from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import floor, log2
from typing import Any

import brevitas.nn as qnn
import torch
from torch import Tensor, nn

from models.detectors.codenet import Codenet, CodenetConfig
from models.layers import find_layers
from models.ops.deform import OFFSET_MAX, OFFSET_MIN, SquareDeform
from models.ops.wiring import Add
from models.quant_layers import LeanIdentity, LeanReLU, QuantConv, QuantDeform, quant_conv, quant_deform, quantizer_of, start_scales
from models.quantizers import Image8, PowerOfTwo, Signed16, activation_quantizer, offset_quantizer

#: A head's values stay below this many steps, so that no value can be a tie (DESIGN.md 3).
HEAD_LIMIT = 2**14


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Bit widths by module path: the last pattern (as of file names) that matches decides. W4A8 with an 8-bit stem unless told otherwise.

    weights: of convolutions' paths. activations: of the paths of the places where an activation is quantized; where a concat or an
    addition joins several, the first of them decides. Images, offsets and head maps have fixed forms.
    """

    weights: dict[str, int] = dataclasses.field(default_factory=lambda: {"*": 4, "conv1.0": 8})
    activations: dict[str, int] = dataclasses.field(default_factory=lambda: {"*": 8})

    def __post_init__(self) -> None:
        for what in ("weights", "activations"):
            for pattern, bits in getattr(self, what).items():
                if not isinstance(bits, int) or not 2 <= bits <= 8:
                    raise ValueError(f"bits of {what} must be in 2..8, not {bits!r} for {pattern!r}")

    @staticmethod
    def _find(table: dict[str, int], path: str) -> int:
        return [bits for pattern, bits in table.items() if fnmatchcase(path, pattern)][-1]

    def weight(self, path: str) -> int:
        return self._find({"*": 4} | self.weights, path)

    def activation(self, path: str) -> int:
        return self._find({"*": 8} | self.activations, path)


@torch.no_grad()
def fold_batch_norm(conv: nn.Conv2d | SquareDeform, norm: nn.BatchNorm2d) -> nn.Conv2d | SquareDeform:
    """One layer that computes ``norm(conv(x))`` in eval mode. A channel of variance 0 becomes its constant."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = norm.bias.double() - norm.running_mean.double() * factor
    if conv.bias is not None:
        bias += conv.bias.double() * factor
    folded = copy.deepcopy(conv)
    folded.weight.copy_(conv.weight.double() * factor.view(-1, 1, 1, 1))
    folded.bias = nn.Parameter(bias.float())
    return folded


def _slot(module: nn.Module, *, head: bool, frac_bits: int, bits: int) -> nn.Module:
    """The Brevitas layer for the place of a quantizer."""
    slot: nn.Module = LeanIdentity(act_quant=Signed16 if head else activation_quantizer(bits, signed=True))
    if isinstance(module, nn.ReLU):
        slot = LeanReLU(activation_quantizer(bits, signed=False))
    elif isinstance(module, nn.Hardtanh):
        slot = qnn.QuantHardTanh(act_quant=offset_quantizer(frac_bits, int(module.min_val), int(module.max_val)))
    return slot


def prepare(model: Codenet, bits: Bits | None = None) -> Codenet:
    """A copy of ``model`` with folded batch norms and quantizers everywhere, scales of weights set, activations not calibrated yet."""
    low, high = model.config.bounds
    if low < OFFSET_MIN or high > OFFSET_MAX:
        raise ValueError(f"quantized offsets must lie within {OFFSET_MIN}..{OFFSET_MAX}, not {low}..{high}: train with such bounds")
    model, bits = copy.deepcopy(model), bits or Bits()
    layers, shared = find_layers(model)
    model.set_submodule("input", LeanIdentity(act_quant=Image8))
    for layer in layers:
        conv = model.get_submodule(layer.conv)
        is_head, wide = layer.output is not None, bits.activation(layer.slot)
        slot = _slot(model.get_submodule(layer.slot), head=is_head, frac_bits=model.config.frac_bits, bits=wide)
        if layer.norm is not None:
            norm = model.get_submodule(layer.norm)
            assert isinstance(conv, (nn.Conv2d, SquareDeform)) and isinstance(norm, nn.BatchNorm2d)
            conv = fold_batch_norm(conv, norm)
            model.set_submodule(layer.norm, nn.Identity())
        model.set_submodule(layer.slot, slot)
        if isinstance(conv, Add):
            continue
        model.set_submodule(layer.conv, _quantized(conv, bits.weight(layer.conv)))
    for group in shared:
        for path in group[1:]:
            model.get_submodule(path).act_quant = model.get_submodule(group[0]).act_quant
    for layer in layers:
        placed = model.get_submodule(layer.conv)
        if isinstance(placed, Add):
            continue
        assert isinstance(placed, (QuantConv, QuantDeform))
        placed.place(model.get_submodule(layer.source), model.get_submodule(layer.slot))
        start_scales(placed)
    model.bits = bits  # type: ignore[assignment]
    return model


def _quantized(conv: nn.Module, bits: int) -> QuantConv | QuantDeform:
    if isinstance(conv, nn.Conv2d):
        return quant_conv(conv, bits)
    assert isinstance(conv, SquareDeform)
    return quant_deform(conv, bits)


def quant_layers(model: nn.Module) -> list[QuantConv | QuantDeform]:
    """All layers with weights, in order of their paths' definition."""
    return [module for module in model.modules() if isinstance(module, (QuantConv, QuantDeform))]


@torch.no_grad()
def calibrate(model: Codenet, batches: Iterable[Tensor]) -> None:
    """Choose every activation's scale from ``batches`` of network inputs (N, 3, H, W); those fixed by the contract stay."""
    fixed = {id(quantizer_of(m)) for name, m in model.named_modules() if name == "input" or isinstance(m, qnn.QuantHardTanh)}
    slots = [m for m in model.modules() if isinstance(m, (qnn.QuantReLU, qnn.QuantIdentity))]
    quantizers = list({id(q): q for q in map(quantizer_of, slots) if id(q) not in fixed}.values())
    for quantizer in quantizers:
        quantizer.observed = []
    model.eval()
    for batch in batches:
        model(batch)
    for quantizer in quantizers:
        quantizer.calibrate()
    settle_heads(model)


def activation_quantizers(model: nn.Module) -> dict[str, PowerOfTwo]:
    """Every quantizer of activations once, by the first path of the place it serves; image and offsets included."""
    found: dict[int, tuple[str, PowerOfTwo]] = {}
    for path, module in model.named_modules():
        if isinstance(module, (qnn.QuantReLU, qnn.QuantIdentity, qnn.QuantHardTanh)):
            found.setdefault(id(quantizer_of(module)), (path, quantizer_of(module)))
    return dict(found.values())


class FreeRanges:
    """Activation scales that are learned as any positive numbers, until ``snap`` makes each the nearest power of two.

    The image's, the offsets' and the heads' stay fixed: the contract sets them.
    """

    def __init__(self, model: nn.Module) -> None:
        kinds = {path: type(module).__name__ for path, module in model.named_modules()}
        free = {p: q for p, q in activation_quantizers(model).items() if p != "input" and kinds[p] != "QuantHardTanh" and q.bits <= 8}
        self.quantizers = list(free.values())
        self.log2 = [nn.Parameter(torch.tensor([-float(q.exponent)])) for q in self.quantizers]
        for quantizer, learned in zip(self.quantizers, self.log2, strict=True):
            quantizer.free = [learned]

    @torch.no_grad()
    def snap(self) -> None:
        """Fix every scale; it is learned no more."""
        for quantizer in self.quantizers:
            if quantizer.free:
                quantizer.exponent.fill_(-round(float(quantizer.free[0])))
                quantizer.free = []


def snapped(model: Codenet, state: dict[str, Tensor] | None = None) -> Codenet:
    """What would be exported now: a copy in eval mode, with the tensors of ``state`` if given, in which free ranges are powers of two and
    the heads' scales fit."""
    model = copy.deepcopy(model).eval()
    if state is not None:
        model.load_state_dict(state)
    for quantizer in activation_quantizers(model).values():
        if quantizer.free:
            quantizer.exponent.fill_(-round(float(quantizer.free[0].detach())))
            quantizer.free = []
    settle_heads(model)
    return model


@torch.no_grad()
def reestimate_batch_norm(model: Codenet, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every batch norm by those of ``batches`` of network inputs (N, 3, H, W), all weighted alike
    ("precise batch norm"): the averages that training leaves lag behind the weights.

    The batches should be the views that training saw: plain images have other statistics, which the weights were not taught
    with (on bccd_320 they cost 0.04 of AP50, training's views 0.01).
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    model.train()
    for batch in batches:
        model(batch)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def settle_heads(model: nn.Module) -> None:
    """Choose the heads' scales from their present weights: the finest at which no input can reach HEAD_LIMIT steps."""
    for layer in quant_layers(model):
        quantizer = layer.output_quantizer
        if quantizer.bits != 16 or not isinstance(layer, QuantConv):
            continue
        weight, bias = layer.parameters_quantized(torch.zeros(1, layer.in_channels, 1, 1))
        largest = layer.input_quantizer.scale * max(-layer.input_quantizer.low, layer.input_quantizer.high)
        worst = float((weight.value.abs().flatten(1).sum(1) * largest + bias.value.abs()).max())
        quantizer.exponent.fill_(floor(log2((HEAD_LIMIT - 1) / max(worst, 2.0**-20))))


def pack(model: Codenet) -> dict[str, Any]:
    """What a checkpoint needs to rebuild a prepared model."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return {"config": model.config.to_json(), "bits": json.dumps(dataclasses.asdict(bits_of(model))), "state": state}


def bits_of(model: nn.Module) -> Bits:
    """The bit widths that ``prepare`` gave a model."""
    bits = model.bits
    assert isinstance(bits, Bits)
    return bits


def unpack(content: dict[str, Any]) -> Codenet:
    """The prepared model in eval mode that ``pack`` described; ValueError if it is none."""
    try:
        bits = Bits(**json.loads(content["bits"]))
        model = prepare(Codenet(CodenetConfig.from_json(content["config"])).eval(), bits)
        model.load_state_dict(content["state"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"not a quantized checkpoint: {str(error)[:200]}") from error
    return model.eval()
