"""1x1 convolutions whose backward pass on a CPU is two plain matrix products.

oneDNN's backward pass of a small 1x1 convolution costs several times its arithmetic; MKL's products of the same maps, channels last, do
not. Large ones, half precision, GPUs and compiled graphs keep PyTorch's own.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: Multiply-accumulates of a batch from which oneDNN is as fast, and outputs below which it is slow whatever the map (measured).
LARGE, FEW = 2**24, 8


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return F.conv2d(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        kernel, (n, _, height, width) = weight.flatten(1), x.shape
        grad = gradients[0].permute(0, 2, 3, 1).reshape(-1, len(kernel))
        into = (grad @ kernel).view(n, height, width, -1).permute(0, 3, 1, 2) if ctx.needs_input_grad[0] else None
        seen = x.permute(0, 2, 3, 1).reshape(-1, kernel.shape[1])
        return into, (grad.t() @ seen).view_as(weight), grad.sum(0) if ctx.biased else None


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether matrix products are the cheaper backward pass of ``weight`` (OC, C, 1, 1) on x (N, C, H, W)."""
    if not torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    outputs = weight.shape[0]
    return not torch.is_autocast_enabled("cpu") and (outputs < FEW or outputs * x.numel() < LARGE)


def by_products(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """What ``conv`` makes of x with these weights, if it is a plain 1x1 convolution whose backward pass gets cheaper; else None."""
    plain = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
    found: Tensor | None = _Pointwise.apply(x, weight, bias) if plain and pays(x, weight) else None  # type: ignore[no-untyped-call]
    return found


class Pointwise(nn.Conv2d):
    """nn.Conv2d that takes the cheaper backward pass where it is a plain 1x1 convolution; values and gradients are nn.Conv2d's."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cheap = by_products(self, input, weight, bias)
        return super()._conv_forward(input, weight, bias) if cheap is None else cheap
