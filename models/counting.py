"""What a detector costs: parameters, true multiply-accumulates, and what the CoDeNet authors' counter (thop) reports.

Source of the rules: CoDeNet's released counts. True MACs: every convolution, the deformable ones included. "thop": deformable convolutions
left out, 2 operations for every output element of a batch norm, 1 for every output element of a convolution with a bias.
"""
from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.detectors.codenet import Codenet, CodenetConfig
from models.ops.deform import SquareDeform


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer with weights: shapes are (H, W, C)."""

    name: str
    op: str
    input: tuple[int, int, int]
    output: tuple[int, int, int]
    params: int
    macs: int
    thop_macs: int


def count_layers(config: CodenetConfig) -> list[Layer]:
    """Every layer with weights of a detector, in order, counted on the meta device (no arithmetic is done)."""
    with torch.device("meta"):
        model = Codenet(config).eval()
    names = {module: name for name, module in model.named_modules()}
    layers: list[Layer] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        layers.append(_layer(names[module], module, inputs[0], output))

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, SquareDeform))]
    model(torch.empty(1, 3, *config.size, device="meta"))
    for handle in handles:
        handle.remove()
    return layers


def _layer(name: str, module: nn.Module, x: Tensor, y: Tensor) -> Layer:
    elements = y.numel()
    params = sum(p.numel() for p in module.parameters())
    if isinstance(module, nn.Conv2d):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        macs = elements * kernel * module.in_channels // module.groups
        depthwise = module.groups == module.in_channels > 1
        op = f"{'dw' if depthwise else 'conv'}{module.kernel_size[0]}x{module.kernel_size[1]}"
        thop = macs + (elements if module.bias is not None else 0)
    elif isinstance(module, SquareDeform):
        op, macs, thop = "dwdeform3x3", elements * 9, 0
    else:
        op, macs, thop = "batchnorm", 0, 2 * elements
    return Layer(name=name, op=op, input=_shape(x), output=_shape(y), params=params, macs=macs, thop_macs=thop)


def _shape(x: Tensor) -> tuple[int, int, int]:
    return int(x.shape[2]), int(x.shape[3]), int(x.shape[1])


def describe(name: str, config: CodenetConfig) -> dict[str, Any]:
    """One row of ``warploom models``: totals and layers of a configuration."""
    layers = count_layers(config)
    return {
        "name": name,
        "input": [*config.size, 3],
        "width": config.width,
        "stem": config.stem,
        "classes": len(config.classes),
        "params": sum(layer.params for layer in layers),
        "macs": sum(layer.macs for layer in layers),
        "thop_macs": sum(layer.thop_macs for layer in layers),
        "w4_bytes": sum(layer.params for layer in layers) // 2,
        "layers": [vars(copy.copy(layer)) for layer in layers],
    }
