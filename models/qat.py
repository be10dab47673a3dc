"""A trained float detector made ready for quantization-aware training: batch norm folded, Brevitas layers in place, calibrated."""
from __future__ import annotations

import copy
from collections.abc import Iterable
from math import floor, log2
from typing import Any

import brevitas.nn as qnn
import torch
from torch import Tensor, nn

from models.detectors.codenet import Codenet, CodenetConfig
from models.layers import find_layers
from models.ops.deform import SquareDeform
from models.ops.wiring import Add
from models.quantizers import (
    Image8,
    QuantConv,
    QuantDeform,
    Signed8,
    Signed16,
    Unsigned8,
    offset_quantizer,
    quant_conv,
    quantizer_of,
    start_scales,
)

#: A head's values stay below this many steps, so that no value can be a tie (DESIGN.md 3).
HEAD_LIMIT = 2**14


@torch.no_grad()
def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that computes ``norm(conv(x))`` in eval mode. A channel of variance 0 becomes its constant."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = norm.bias.double() - norm.running_mean.double() * factor
    if conv.bias is not None:
        bias += conv.bias.double() * factor
    folded = copy.deepcopy(conv)
    folded.weight.copy_(conv.weight.double() * factor.view(-1, 1, 1, 1))
    folded.bias = nn.Parameter(bias.float())
    return folded


def _slot(module: nn.Module, *, head: bool, frac_bits: int) -> nn.Module:
    """The Brevitas layer for the place of a quantizer."""
    slot: nn.Module = qnn.QuantIdentity(act_quant=Signed16 if head else Signed8)
    if isinstance(module, nn.ReLU):
        slot = qnn.QuantReLU(act_quant=Unsigned8)
    elif isinstance(module, nn.Hardtanh):
        slot = qnn.QuantHardTanh(act_quant=offset_quantizer(frac_bits))
    return slot


def prepare(model: Codenet) -> Codenet:
    """A copy of ``model`` with folded batch norms and quantizers everywhere, scales of weights set, activations not calibrated yet."""
    model = copy.deepcopy(model)
    layers, shared = find_layers(model)
    model.set_submodule("input", qnn.QuantIdentity(act_quant=Image8))
    for layer in layers:
        conv = model.get_submodule(layer.conv)
        slot = _slot(model.get_submodule(layer.slot), head=layer.output is not None, frac_bits=model.config.frac_bits)
        if layer.norm is not None:
            norm = model.get_submodule(layer.norm)
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            conv = fold_batch_norm(conv, norm)
            model.set_submodule(layer.norm, nn.Identity())
        model.set_submodule(layer.slot, slot)
        if isinstance(conv, Add):
            continue
        model.set_submodule(layer.conv, _quantized(conv, stem=layer.source == "input"))
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
    return model


def _quantized(conv: nn.Module, *, stem: bool) -> QuantConv | QuantDeform:
    if isinstance(conv, nn.Conv2d):
        return quant_conv(conv, 8 if stem else 4)
    assert isinstance(conv, SquareDeform)
    deform = QuantDeform(conv.channels)
    with torch.no_grad():
        deform.weight.copy_(conv.weight)
    return deform


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
    return {"config": model.config.to_json(), "state": {name: value.detach().clone() for name, value in model.state_dict().items()}}


def unpack(content: dict[str, Any]) -> Codenet:
    """The prepared model in eval mode that ``pack`` described; ValueError if it is none."""
    try:
        model = prepare(Codenet(CodenetConfig.from_json(content["config"])).eval())
        model.load_state_dict(content["state"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"not a quantized checkpoint: {str(error)[:200]}") from error
    return model.eval()
