"""Fake quantization for training: activations with PyTorch's values and gradients, compiled for this CPU, a ReLU included at no cost;
weights and biases by channel, with Brevitas' values and gradients."""
from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sw import native

SOURCE = Path(__file__).with_suffix(".cpp")


def _dense(x: Tensor) -> Tensor:
    """x without gaps in memory, in the order it has, or channels last."""
    flat = x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return x if flat else x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)


def _like(grad: Tensor, x: Tensor) -> Tensor:
    """grad with the memory layout of x."""
    return grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, low: int, high: int, relu: bool) -> Tensor:
        code, x = native.load(SOURCE), _dense(x)
        assert code is not None
        y = torch.empty_like(x)
        ctx.save_for_backward(x)
        ctx.form = ctypes.c_float(scale), ctypes.c_float(low), ctypes.c_float(high)
        ctx.above = ctypes.c_float(0.0 if relu else -math.inf)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, y)]
        code.forward(pointers[0], ctypes.c_int64(x.numel()), *ctx.form, pointers[1], ctypes.c_int64(torch.get_num_threads()))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,), code = ctx.saved_tensors, native.load(SOURCE)
        assert code is not None
        grad, out = _like(gradients[0], x), torch.empty_like(x)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, grad, out)]
        count, threads = ctypes.c_int64(x.numel()), ctypes.c_int64(torch.get_num_threads())
        code.backward(*pointers[:2], count, *ctx.form, ctx.above, pointers[2], threads)
        return out, None, None, None, None


def fake_quantize(x: Tensor, scale: float, low: int, high: int, *, relu: bool = False) -> Tensor:
    """``scale * clamp(round(x / scale), low, high)``, half to even; the gradient passes where nothing was clamped.

    relu: as if a ReLU stood before; ``low`` must then be 0. Any shape and memory layout; float32 on a CPU is compiled.
    """
    if relu and low != 0:
        raise ValueError(f"low must be 0 with a ReLU, not {low!r}")
    if x.device.type == "cpu" and x.dtype == torch.float32 and native.load(SOURCE) is not None:
        y: Tensor = _Compiled.apply(x, scale, low, high, relu)  # type: ignore[no-untyped-call]
        return y
    return torch.fake_quantize_per_tensor_affine(torch.relu(x) if relu else x, scale, 0, low, high)


class _ByChannel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, limit: float) -> Tensor:
        steps = x / scale
        whole = steps.round()
        inside = whole.abs() <= limit
        whole = whole.clamp(-limit, limit)
        ctx.save_for_backward(inside, whole - steps * inside)
        return whole * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inside, moved = ctx.saved_tensors
        grad = gradients[0]
        return grad * inside, (grad * moved).flatten(1).sum(1).view(-1, *[1] * (grad.ndim - 1)), None


def fake_quantize_channels(x: Tensor, scale: Tensor, limit: int) -> Tensor:
    """``scale * clamp(round(x / scale), -limit, limit)``, half to even; scale has one number for each of x's first dimension.

    The gradient of x passes where nothing was clamped; that of scale is as if rounding were not.
    """
    y: Tensor = _ByChannel.apply(x, scale, float(limit))  # type: ignore[no-untyped-call]
    return y
