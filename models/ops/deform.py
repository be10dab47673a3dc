"""Square, bounded, depthwise deformable 3x3 convolution (CoDeNet's operator).

Every pixel p has one number o, and tap (i, j) with i, j in -1, 0, 1 reads the map at ``p + (o + 1) * (i, j)``, bilinearly; each of
the four neighbours that lies outside the map counts 0 by itself. o = 0 is the plain 3x3 convolution with padding 1.
Source: Huang et al., CoDeNet, arXiv 2006.08357; bilinear rule as in ONNX DeformConv 19.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Bounds of o: the dilation o + 1 lies in [-7, 8].
OFFSET_MIN, OFFSET_MAX = -8, 7


def _check(x: Tensor, o: Tensor, weight: Tensor) -> None:
    if x.ndim != 4 or o.shape != (x.shape[0], 1, *x.shape[2:]):
        raise ValueError(f"o must be one number a pixel, (N, 1, H, W) for x {tuple(x.shape)}, not {tuple(o.shape)}")
    if weight.shape != (x.shape[1], 1, 3, 3):
        raise ValueError(f"weight must be ({x.shape[1]}, 1, 3, 3), not {tuple(weight.shape)}")


def tap_coordinates(o: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each tap, both (N, 9, H, W) in pixels, taps row by row, for offsets o (N, 1, H, W)."""
    height, width = o.shape[2:]
    tap = torch.tensor([-1.0, 0.0, 1.0], dtype=o.dtype, device=o.device)
    reach = o + 1
    y = torch.arange(height, dtype=o.dtype, device=o.device).view(1, 1, -1, 1) + reach * tap.repeat_interleave(3).view(1, 9, 1, 1)
    x = torch.arange(width, dtype=o.dtype, device=o.device).view(1, 1, 1, -1) + reach * tap.repeat(3).view(1, 9, 1, 1)
    return y, x


def square_deform(x: Tensor, o: Tensor, weight: Tensor) -> Tensor:
    """For training: one ``grid_sample`` over all taps. Differentiable in x (N, C, H, W), o (N, 1, H, W) and weight (C, 1, 3, 3)."""
    _check(x, o, weight)
    n, c, height, width = x.shape
    rows, columns = tap_coordinates(o)
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)  # align_corners=False: no 0/0 on 1-pixel maps
    # Lay the 3 x 3 taps of a pixel beside each other, so that a convolution with stride 3 weighs and adds them.
    grid = grid.view(n, 3, 3, height, width, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, 3 * height, 3 * width, 2)
    taps = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.conv2d(taps, weight, stride=3, groups=c)


def square_deform_exact(x: Tensor, o: Tensor, weight: Tensor) -> Tensor:
    """For truth: the definition, with explicit floor and fraction. Exact in float64 while inputs are short binary fractions."""
    _check(x, o, weight)
    n, c, height, width = x.shape
    rows, columns = tap_coordinates(o)
    top, left = rows.floor(), columns.floor()
    taps = torch.zeros((n, c, 9, height, width), dtype=x.dtype, device=x.device)
    flat = x.flatten(2)
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = top + dy, left + dx
            share = (1 - (rows - row).abs()) * (1 - (columns - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            seen = flat.gather(2, index.view(n, 1, -1).expand(n, c, -1)).view_as(taps)
            taps = taps + seen * (share * inside).unsqueeze(1)
    return (taps * weight.view(1, c, 9, 1, 1)).sum(2)


class SquareDeform(nn.Module):
    """Depthwise deformable 3x3: x (N, C, H, W) and offsets o (N, 1, H, W) in [-8, 7] to (N, C, H, W).

    ``bias`` (C,) is None until a batch norm is folded into the layer.
    """

    bias: nn.Parameter | None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(channels, 1, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.register_parameter("bias", None)

    def forward(self, x: Tensor, o: Tensor) -> Tensor:
        y = square_deform(x.float(), o.float(), self.weight)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)
