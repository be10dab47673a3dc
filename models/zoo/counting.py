"""Parameters and multiply-accumulates of any module, on the meta device where it is large."""
from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .base import System


def parameters(model: nn.Module) -> int:
    """Elements of all parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, *inputs: Any) -> int:
    """Multiply-accumulates of convolutions and matrix products in one forward pass, whatever calls them.

    Counted as PyTorch dispatches them, so functional calls are seen; element-wise work is not counted.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return int(counter.get_total_flops()) // 2


def variant_sizes(system: System) -> list[dict[str, Any]]:
    """Parameters of every variant, built on the meta device; of an operator that needs sizes, the names of its arguments instead."""
    rows: list[dict[str, Any]] = []
    for name, build in system.variants.items():
        arguments = inspect.signature(build).parameters.values()
        needed = [p.name for p in arguments if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if needed:
            rows.append({"variant": name, "parameters": None, "needs": needed})
            continue
        with torch.device("meta"):
            rows.append({"variant": name, "parameters": parameters(build()), "needs": []})
    return rows
