"""Depthwise sampling for CPUs: ``gather.cpp``, compiled once for this machine, as a PyTorch operator with a gradient.

Known to torch.compile as ``warploom::gather``. Without a C++ compiler, or with WARPLOOM_NATIVE=0, ``models.ops.deform`` does without.
"""
from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sw import native

SOURCE = Path(__file__).with_name("gather.cpp")
#: Channels of one task (SLICE in gather.cpp).
SLICE = 64


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "pixels", "taps", "parts", "threads")]


def library() -> ctypes.CDLL | None:
    """The compiled code, None where it cannot be."""
    return native.load(SOURCE)


def available() -> bool:
    """Whether ``gather`` can be used here."""
    return library() is not None


# What torch.compiler.assume_constant_result does, without importing torch._dynamo: that takes longer than all the rest of models.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _call(name: str, x: Tensor, rows: Tensor, *tensors: Tensor | None) -> None:
    code = library()
    assert code is not None
    (n, c, height, width), (parts, taps, oh, ow) = x.shape, rows.shape[1:]
    shape = _Shape(n, height, width, c, oh * ow, taps, parts, torch.get_num_threads())
    pointers = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in (x, rows, *tensors)]
    getattr(code, f"{name}_{str(x.dtype).removeprefix('torch.')}")(ctypes.byref(shape), *pointers)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _plain(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


@torch.library.custom_op("warploom::gather", mutates_args=(), device_types="cpu")
def gather(x: Tensor, rows: Tensor, columns: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    """x (N, C, H, W) seen bilinearly at ``rows`` and ``columns`` (N, G, taps, OH, OW), channel c at those of group c * G / C, times
    ``mask`` of the same shape, weighed and added up by ``weight`` (taps, C): (N, C, OH, OW), channels last. All float32 or all float64."""
    y = torch.empty((*x.shape[:2], *rows.shape[3:]), dtype=x.dtype, memory_format=torch.channels_last)
    places = _plain(rows, columns, weight, mask)
    assert places[0] is not None
    _call("forward", _last(x), places[0], *places[1:], y)
    return y


@gather.register_fake
def _(x: Tensor, rows: Tensor, columns: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:2], *rows.shape[3:])).contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("warploom::gather_backward", mutates_args=(), device_types="cpu")
def gather_backward(
    grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor, weight: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, rows, columns, weight and mask (empty without one)."""
    (n, c), parts = x.shape[:2], rows.shape[1]
    gx = torch.zeros_like(x, memory_format=torch.channels_last)
    layers = -(-c // parts // SLICE)  # each slice of channels adds its share
    moved, shifted, weighed = (x.new_empty((layers if used else 0, *rows.shape)) for used in (True, True, mask is not None))
    gweight = x.new_zeros((n, *weight.shape))
    places = _plain(rows, columns, weight, mask)
    assert places[0] is not None
    gmask = None if mask is None else weighed
    _call("backward", _last(x), places[0], *places[1:], _last(grad), gx, moved, shifted, gweight, gmask)
    return gx, moved.sum(0), shifted.sum(0), gweight.sum(0), weighed.sum(0)


@gather_backward.register_fake
def _(
    grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor, weight: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gx = torch.empty_like(x).contiguous(memory_format=torch.channels_last)
    return gx, torch.empty_like(rows), torch.empty_like(rows), torch.empty_like(weight), torch.empty_like(rows)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *found, mask = gather_backward(grad, *ctx.saved_tensors)
    return (*found, mask if ctx.saved_tensors[4] is not None else None)


gather.register_autograd(_backward, setup_context=_keep)
