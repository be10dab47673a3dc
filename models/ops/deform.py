"""Deformable convolution as one operator with orthogonal options, and CoDeNet's special case of it.

Output pixel p sees tap (i, j) of a K x K kernel at ``p * stride - padding + (i, j) * dilation + offset``, bilinearly; each of the four
neighbours that lies outside the map counts 0 by itself. The options combine freely:

* full, grouped or depthwise, as the weight's shape and ``groups`` say;
* ``offset`` (N, G * 2 * K * K, OH, OW), free: y before x, taps row by row, G groups of channels (ONNX's layout), or (N, 1, OH, OW),
  square: tap (i, j), counted from the kernel's centre, is moved by ``o * (i, j)``, so that dilation + o is the dilation at that pixel;
* ``bounds``: offsets are clamped; ``frac_bits`` F: they are rounded to multiples of 2^-F, with a straight-through gradient (F = 0:
  whole pixels, F = 1..4 as hardware has them, None: as they are);
* ``mask`` (N, G * K * K, OH, OW) weighs every tap (v2).

Sources: Dai et al., arXiv 1703.06211; Zhu et al. (v2), arXiv 1811.11168; Huang et al., CoDeNet, arXiv 2006.08357; ONNX DeformConv 19.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.ops import deform_cpu

#: Bounds of o: the dilation o + 1 lies in [-7, 8].
OFFSET_MIN, OFFSET_MAX = -8, 7
#: bounds that leave offsets as they are.
UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True, kw_only=True)
class Taps:
    """Where a deformable convolution looks. padding None: so much that stride 1 keeps the map's size (odd kernels)."""

    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    padding: int | None = None
    square: bool = False
    bounds: tuple[float, float] = UNBOUNDED
    frac_bits: int | None = None

    def __post_init__(self) -> None:
        for name in ("kernel", "stride", "dilation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        if self.kernel % 2 == 0 and (self.square or self.padding is None):
            raise ValueError(f"kernel must be odd for square offsets or without padding, not {self.kernel!r}")
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds must be (low, high) with low < high, not {self.bounds!r}")
        if self.frac_bits is not None and not 0 <= self.frac_bits <= 8:
            raise ValueError(f"frac_bits must be None or in 0..8, not {self.frac_bits!r}")

    @property
    def pad(self) -> int:
        """Rows and columns of zeros around the map."""
        return self.dilation * (self.kernel // 2) if self.padding is None else self.padding

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """(OH, OW) of a map."""
        reach = self.dilation * (self.kernel - 1) + 1
        rows, columns = ((n + 2 * self.pad - reach) // self.stride + 1 for n in (height, width))
        return rows, columns

    def groups(self, offset: Tensor) -> int:
        """G: how many groups of channels have offsets of their own."""
        return 1 if self.square else offset.shape[1] // (2 * self.kernel**2)


#: Free offsets for 3x3 taps; CoDeNet's one number a pixel.
FREE = Taps()
SQUARE = Taps(square=True)


def _check(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, groups: int, taps: Taps) -> None:
    if x.ndim != 4 or offset.ndim != 4:
        raise ValueError(f"x and offset must be (N, C, H, W), not {tuple(x.shape)} and {tuple(offset.shape)}")
    k, out = taps.kernel, (x.shape[0], *taps.out_size(x.shape[2], x.shape[3]))
    if (offset.shape[0], *offset.shape[2:]) != out or (taps.square and offset.shape[1] != 1):
        what = "one number a pixel, (N, 1, OH, OW)" if taps.square else "(N, G * 2 * K * K, OH, OW)"
        raise ValueError(f"offset must be {what} with N, OH, OW = {out}, for x {tuple(x.shape)}, not {tuple(offset.shape)}")
    parts = taps.groups(offset)
    if not taps.square and (parts < 1 or offset.shape[1] != parts * 2 * k * k or x.shape[1] % parts):
        raise ValueError(f"offset must have G * {2 * k * k} channels, G a divisor of {x.shape[1]}, not {offset.shape[1]}")
    if weight.ndim != 4 or weight.shape[1:] != (x.shape[1] // groups, k, k) or x.shape[1] % groups or weight.shape[0] % groups:
        raise ValueError(f"weight must be (OC, {x.shape[1] // groups}, {k}, {k}) with {groups} groups, not {tuple(weight.shape)}")
    if mask is not None and mask.shape != (offset.shape[0], parts * k * k, *offset.shape[2:]):
        raise ValueError(f"mask must be (N, {parts * k * k}, OH, OW), not {tuple(mask.shape)}")


def settle(offset: Tensor, taps: Taps) -> Tensor:
    """The offsets as they are used: clamped and rounded; the rounding passes the gradient on unchanged."""
    if taps.bounds != UNBOUNDED:
        offset = offset.clamp(*taps.bounds)
    if taps.frac_bits is not None:
        steps = 2.0**taps.frac_bits
        offset = offset + ((offset * steps).round() / steps - offset).detach()
    return offset


def tap_coordinates(offset: Tensor, taps: Taps = SQUARE) -> tuple[Tensor, Tensor]:
    """Row and column of each tap, both (N, G, K * K, OH, OW) in pixels of the map, taps row by row, for settled offsets."""
    n, _, height, width = offset.shape
    k = taps.kernel
    kind: dict[str, Any] = {"dtype": offset.dtype, "device": offset.device}
    tap = torch.arange(k, **kind)
    rows, columns = tap.repeat_interleave(k).view(1, 1, -1, 1, 1), tap.repeat(k).view(1, 1, -1, 1, 1)
    if taps.square:
        half = k // 2
        down, right = offset.unsqueeze(2) * (rows - half), offset.unsqueeze(2) * (columns - half)
    else:
        moves = offset.view(n, -1, k * k, 2, height, width)
        down, right = moves[:, :, :, 0], moves[:, :, :, 1]
    y = torch.arange(height, **kind).view(1, 1, 1, -1, 1) * taps.stride - taps.pad + rows * taps.dilation
    x = torch.arange(width, **kind).view(1, 1, 1, 1, -1) * taps.stride - taps.pad + columns * taps.dilation
    return y + down, x + right


def deform_conv(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, *, groups: int = 1,
    taps: Taps = FREE, native: bool = True,
) -> Tensor:  # fmt: skip
    """For training. x (N, C, H, W), weight (OC, C / groups, K, K), bias (OC,). Differentiable in every tensor.

    Depthwise on a CPU: ``models.ops.deform_cpu``, unless ``native`` is False; else one ``grid_sample`` over all taps, then one convolution.
    Under autocast positions and samples stay float32: half precision knows no fractions of pixel 500.
    """
    _check(x, offset, weight, mask, groups, taps)
    dtype = torch.float64 if torch.float64 in (x.dtype, offset.dtype) else torch.float32
    x, offset = x.to(dtype), offset.to(dtype)
    (n, c, height, width), k, parts = x.shape, taps.kernel, taps.groups(offset)
    rows, columns = tap_coordinates(settle(offset, taps), taps)
    if native and groups == c == weight.shape[0] and x.device.type == "cpu" and deform_cpu.available():
        seen_by = None if mask is None else mask.to(dtype).view_as(rows)
        y: Tensor = deform_cpu.gather(x, rows, columns, weight.to(dtype).view(c, k * k).t(), seen_by)
        return y if bias is None else y + bias.view(1, -1, 1, 1)
    # align_corners=False: no 0/0 on 1-pixel maps.
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1).flatten(0, 1)
    # Lay the K x K taps of a pixel beside each other, so that a convolution with stride K weighs and adds them.
    grid = _beside(grid, k)
    seen = F.grid_sample(x.reshape(n * parts, c // parts, height, width), grid, "bilinear", "zeros", align_corners=False)
    if mask is not None:
        seen = seen * _beside(mask.to(dtype).flatten(0, 1).view(n * parts, k * k, *mask.shape[2:], 1), k).squeeze(-1).unsqueeze(1)
    return F.conv2d(seen.reshape(n, c, *seen.shape[2:]), weight.to(seen.dtype), bias, stride=k, groups=groups)


def _beside(x: Tensor, k: int) -> Tensor:
    """(N, K * K, H, W, D) to (N, H * K, W * K, D)."""
    n, _, height, width, depth = x.shape
    return x.view(n, k, k, height, width, depth).permute(0, 3, 1, 4, 2, 5).reshape(n, k * height, k * width, depth)


def deform_conv_exact(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, *, groups: int = 1,
    taps: Taps = FREE,
) -> Tensor:  # fmt: skip
    """For truth: the definition, with explicit floor and fraction. Exact in float64 while inputs are short binary fractions."""
    _check(x, offset, weight, mask, groups, taps)
    (n, c, height, width), k, parts = x.shape, taps.kernel, taps.groups(offset)
    rows, columns = (a.flatten(0, 1) for a in tap_coordinates(settle(offset, taps), taps))  # (N * G, K * K, OH, OW)
    top, left = rows.floor(), columns.floor()
    seen = torch.zeros((n * parts, c // parts, *rows.shape[1:]), dtype=x.dtype, device=x.device)
    flat = x.reshape(n * parts, c // parts, -1)
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = top + dy, left + dx
            share = (1 - (rows - row).abs()) * (1 - (columns - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            found = flat.gather(2, index.view(n * parts, 1, -1).expand(-1, c // parts, -1)).view_as(seen)
            seen = seen + found * (share * inside).unsqueeze(1)
    if mask is not None:
        seen = seen * mask.view(n * parts, 1, k * k, *mask.shape[2:])
    seen = seen.reshape(n, groups, c // groups, k * k, *rows.shape[2:])
    kernel = weight.view(groups, -1, c // groups, k * k)
    if groups == c and weight.shape[0] == c:  # plain products and sums: nothing but the size of the sums decides exactness
        y = (seen[:, :, 0] * kernel[:, 0, 0].view(1, c, k * k, 1, 1)).sum(2)
    else:
        y = torch.einsum("ngcthw,goct->ngohw", seen, kernel).flatten(1, 2)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def square_deform(x: Tensor, o: Tensor, weight: Tensor) -> Tensor:
    """CoDeNet's operator for training: x (N, C, H, W), o (N, 1, H, W), weight (C, 1, 3, 3); o = 0 is the plain 3x3 convolution."""
    return deform_conv(x, o, weight, groups=x.shape[1], taps=SQUARE)


def square_deform_exact(x: Tensor, o: Tensor, weight: Tensor) -> Tensor:
    """CoDeNet's operator for truth."""
    return deform_conv_exact(x, o, weight, groups=x.shape[1], taps=SQUARE)


class Deform(nn.Module):
    """Deformable convolution: x (N, inputs, H, W), offsets and, optionally, a mask to (N, outputs, OH, OW).

    ``bias`` (outputs,) is None until a batch norm is folded into the layer. ``kernels``: "torch", or "triton" on a GPU.
    """

    bias: nn.Parameter | None

    def __init__(
        self, inputs: int, outputs: int, taps: Taps | None = None, *, groups: int = 1, bias: bool = False, kernels: str = "torch"
    ) -> None:
        super().__init__()
        if kernels not in ("torch", "triton"):
            raise ValueError(f"kernels must be torch or triton, not {kernels!r}")
        if groups < 1 or inputs % groups or outputs % groups:
            raise ValueError(f"groups must divide {inputs} and {outputs}, not {groups!r}")
        self.inputs, self.outputs, self.groups, self.taps, self.kernels = inputs, outputs, groups, taps or FREE, kernels
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, self.taps.kernel, self.taps.kernel))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.register_parameter("bias", nn.Parameter(torch.zeros(outputs)) if bias else None)

    @property
    def channels(self) -> int:
        """Input channels."""
        return self.inputs

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.kernels == "triton":
            from models.ops.deform_triton import deform_conv_triton  # needs a GPU and its compiler, which nothing else does

            return deform_conv_triton(x, offset, self.weight, self.bias, mask, groups=self.groups, taps=self.taps)
        return deform_conv(x, offset, self.weight, self.bias, mask, groups=self.groups, taps=self.taps)


class SquareDeform(Deform):
    """CoDeNet's, depthwise 3x3: x (N, C, H, W) and offsets o (N, 1, H, W), clamped to [-8, 7] by the layer before, to (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, SQUARE, groups=channels)
