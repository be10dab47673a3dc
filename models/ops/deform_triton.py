"""Deformable convolution for GPUs in Triton: same arguments and meaning as ``models.ops.deform.deform_conv``.

A depthwise layer is one kernel, which weighs and adds the taps as it samples them; any other one samples all taps of all channels
(im2col) and multiplies matrices. Positions come from PyTorch, so that square or free offsets, bounds and rounding are its business,
gradients included. The backward kernel runs one tap of a block of pixels a program and walks over the channels: gradients of positions
and mask need no atomics. Under ``TRITON_INTERPRET=1`` the kernels run on the CPU, for tests.
"""
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.ops.deform import FREE, Taps, _check, settle, tap_coordinates

#: Channels and pixels of a program's tile.
CHANNELS, PIXELS = 16, 64


@triton.jit  # type: ignore[untyped-decorator]
def _near(x, channel, there, row, column, dy: tl.constexpr, dx: tl.constexpr, height, width):  # type: ignore[no-untyped-def]
    """One of the four neighbours: its values (channels, pixels), its share, and where it is; outside the map it counts 0."""
    y, z = tl.floor(row) + dy, tl.floor(column) + dx
    inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
    index = channel[:, None] * (height * width) + (y * width + z).to(tl.int32)[None, :]
    seen = there & inside[None, :]
    near_y, near_x = 1 - tl.abs(row - y), 1 - tl.abs(column - z)
    return tl.load(x + index, mask=seen, other=0.0).to(row.dtype), near_y, near_x, index, seen


@triton.jit
def _place(rows, columns, at, exists, height, width):  # type: ignore[no-untyped-def]
    """Positions of a tap, kept within two pixels of the map: further out nothing changes, and infinities would spread."""
    row, column = tl.load(rows + at, mask=exists, other=-2.0), tl.load(columns + at, mask=exists, other=-2.0)
    return tl.minimum(tl.maximum(row, -2.0), height + 1.0), tl.minimum(tl.maximum(column, -2.0), width + 1.0)


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    x, rows, columns, mask, weight, y, channels, height, width, pixels, parts,
    TAPS: tl.constexpr, DEPTHWISE: tl.constexpr, MASKED: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """y: (N·G, C, P) summed with weights (G·C, TAPS), or (N·G, C, TAPS, P) as sampled."""
    n = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    exists, there = p < pixels, (c < channels)[:, None] & (p < pixels)[None, :]
    x += n * channels * height * width
    total = tl.zeros((BC, BP), rows.dtype.element_ty)
    for t in tl.static_range(TAPS):
        at = (n * TAPS + t) * pixels + p
        row, column = _place(rows, columns, at, exists, height, width)
        seen = tl.zeros((BC, BP), rows.dtype.element_ty)
        for corner in tl.static_range(4):
            value, near_y, near_x, _, _ = _near(x, c, there, row, column, corner // 2, corner % 2, height, width)
            seen += value * (near_y * near_x)[None, :]
        if MASKED:
            seen *= tl.load(mask + at, mask=exists, other=0.0)[None, :]
        if DEPTHWISE:
            total += seen * tl.load(weight + (n % parts * channels + c) * TAPS + t, mask=c < channels, other=0.0)[:, None]
        else:
            tl.store(y + ((n * channels + c[:, None]) * TAPS + t) * pixels + p[None, :], seen, mask=there)
    if DEPTHWISE:
        tl.store(y + (n * channels + c[:, None]) * pixels + p[None, :], total, mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    x, rows, columns, mask, weight, gy, gx, g_rows, g_columns, g_mask, g_weight, channels: tl.constexpr, height, width, pixels, parts,
    TAPS: tl.constexpr, DEPTHWISE: tl.constexpr, MASKED: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Gradients of everything from that of y; gx and g_weight are added to."""
    n, t = tl.program_id(2).to(tl.int64), tl.program_id(1)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    exists = p < pixels
    at = (n * TAPS + t) * pixels + p
    x += n * channels * height * width
    gx += n * channels * height * width
    row, column = _place(rows, columns, at, exists, height, width)
    weighed = tl.load(mask + at, mask=exists, other=0.0) if MASKED else tl.full((BP,), 1.0, rows.dtype.element_ty)
    g_row = tl.zeros((BP,), rows.dtype.element_ty)
    g_column, g_weighed = tl.zeros_like(g_row), tl.zeros_like(g_row)
    for first in range(0, channels, BC):
        c = first + tl.arange(0, BC)
        there = (c < channels)[:, None] & exists[None, :]
        if DEPTHWISE:
            out = tl.load(gy + (n * channels + c[:, None]) * pixels + p[None, :], mask=there, other=0.0)
            own = (n % parts * channels + c) * TAPS + t
            down = out * tl.load(weight + own, mask=c < channels, other=0.0)[:, None]
        else:
            out = tl.load(gy + ((n * channels + c[:, None]) * TAPS + t) * pixels + p[None, :], mask=there, other=0.0)
            down = out
        seen = tl.zeros((BC, BP), rows.dtype.element_ty)
        for corner in tl.static_range(4):
            dy: tl.constexpr = corner // 2
            dx: tl.constexpr = corner % 2
            value, near_y, near_x, index, inside = _near(x, c, there, row, column, dy, dx, height, width)
            seen += value * (near_y * near_x)[None, :]
            slope = tl.sum(down * value, 0)
            g_row += slope * near_x * (2 * dy - 1)
            g_column += slope * near_y * (2 * dx - 1)
            tl.atomic_add(gx + index, down * (near_y * near_x * weighed)[None, :], mask=inside)
        g_weighed += tl.sum(down * seen, 0)
        if DEPTHWISE:
            tl.atomic_add(g_weight + own, tl.sum(out * seen * weighed[None, :], 1), mask=c < channels)
    tl.store(g_rows + at, g_row * weighed, mask=exists)
    tl.store(g_columns + at, g_column * weighed, mask=exists)
    if MASKED:
        tl.store(g_mask + at, g_weighed, mask=exists)


class _Sample(torch.autograd.Function):
    """x (N, C, H, W), positions (N, G, T, OH, OW), mask likewise or None, depthwise weight (C, T) or None to (N, C[, T], OH · OW)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
        x, rows, columns = x.contiguous(), rows.contiguous(), columns.contiguous()
        mask, weight = (None if each is None else each.contiguous() for each in (mask, weight))
        (n, c, height, width), (_, parts, taps, *out) = x.shape, rows.shape
        pixels = out[0] * out[1]
        y = x.new_empty((n, c, pixels) if weight is not None else (n, c, taps, pixels))
        sizes = (c // parts, height, width, pixels, parts)
        ctx.save_for_backward(x, rows, columns, mask, weight)
        ctx.sizes, ctx.how = sizes, {"TAPS": taps, "DEPTHWISE": weight is not None, "MASKED": mask is not None}
        ctx.how |= {"BC": CHANNELS, "BP": PIXELS}
        grid = (triton.cdiv(pixels, PIXELS), triton.cdiv(c // parts, CHANNELS), n * parts)
        _forward[grid](x, rows, columns, x if mask is None else mask, x if weight is None else weight, y, *sizes, **ctx.how)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, rows, columns, mask, weight = ctx.saved_tensors
        gx, g_rows, g_columns = torch.zeros_like(x), torch.empty_like(rows), torch.empty_like(columns)
        g_mask, g_weight = (None if each is None else torch.zeros_like(each) for each in (mask, weight))
        _, parts, taps = rows.shape[:3]
        grid = (triton.cdiv(ctx.sizes[3], PIXELS), taps, x.shape[0] * parts)
        _backward[grid](
            x, rows, columns, x if mask is None else mask, x if weight is None else weight, gy.contiguous(), gx, g_rows, g_columns,
            gx if g_mask is None else g_mask, gx if g_weight is None else g_weight, *ctx.sizes, **ctx.how,
        )  # fmt: skip
        return gx, g_rows, g_columns, g_mask, g_weight


def deform_conv_triton(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, *, groups: int = 1,
    taps: Taps = FREE,
) -> Tensor:  # fmt: skip
    """As ``deform_conv``, computed by the kernels above."""
    _check(x, offset, weight, mask, groups, taps)
    dtype = torch.float64 if torch.float64 in (x.dtype, offset.dtype) else torch.float32
    x, offset, weight = x.to(dtype), offset.to(dtype), weight.to(dtype)
    rows, columns = tap_coordinates(settle(offset, taps), taps)
    (n, c), (parts, size, *out) = x.shape[:2], rows.shape[1:]
    masks = None if mask is None else mask.to(dtype).view(n, parts, size, *out)
    if groups == c == weight.shape[0]:
        y: Tensor = _Sample.apply(x, rows, columns, masks, weight.reshape(c, size)).view(n, c, *out)  # type: ignore[no-untyped-call]
        return y if bias is None else y + bias.view(1, -1, 1, 1)
    seen = _Sample.apply(x, rows, columns, masks, None)  # type: ignore[no-untyped-call]
    y = F.conv2d(seen.view(n, c * size, *out), weight.reshape(len(weight), -1, 1, 1), bias, groups=groups)
    return y
