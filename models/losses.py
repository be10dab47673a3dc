"""CenterNet's targets and losses (Zhou et al., Objects as Points, arXiv 1904.07850), with CornerNet's original radius formula."""
from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]

MIN_OVERLAP = 0.7
ALPHA, BETA = 2, 4
WH_WEIGHT, REG_WEIGHT = 0.1, 1.0
#: A probability is kept this far from 0 and 1.
CLAMP = 1e-4


@dataclass(frozen=True)
class Targets:
    """What the three maps should be. The pixels that should know a box are listed one after the other, object by object.

    hm: (N, classes, H, W) float32, 1 at centres; image, row, column: (n,) int64; wh: (n, 2) width, height; reg: (n, 2) dx, dy from the
    pixel's corner to the centre, both in map pixels, float32; weight: (n,) float32, adding up to 1 for each of ``objects``.
    """

    hm: Tensor
    image: Tensor
    row: Tensor
    column: Tensor
    wh: Tensor
    reg: Tensor
    weight: Tensor
    objects: int

    def to(self, device: torch.device) -> Targets:
        """The same on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def gaussian_radius(height: float, width: float, min_overlap: float = MIN_OVERLAP) -> float:
    """How far a corner may move so that boxes still overlap by ``min_overlap``; CornerNet's formula as it was released (roots over 2)."""
    both = height + width
    b1, c1 = both, width * height * (1 - min_overlap) / (1 + min_overlap)
    r1 = (b1 + sqrt(b1**2 - 4 * c1)) / 2
    b2, c2 = 2 * both, (1 - min_overlap) * width * height
    r2 = (b2 + sqrt(b2**2 - 16 * c2)) / 2
    a3, b3, c3 = 4 * min_overlap, -2 * min_overlap * both, (min_overlap - 1) * width * height
    r3 = (b3 + sqrt(b3**2 - 4 * a3 * c3)) / 2
    return min(r1, r2, r3)


def draw_gaussian(hm: Floats, row: int, column: int, radius: int) -> None:
    """Raise ``hm`` (H, W) to a Gaussian with its 1 at (row, column), cut at ``radius``, sigma a sixth of the diameter, element-wise max."""
    span = np.arange(-radius, radius + 1, dtype=np.float32)
    profile = np.exp(-(span**2) / (2 * ((2 * radius + 1) / 6) ** 2)).astype(np.float32)
    top, left = max(row - radius, 0), max(column - radius, 0)
    seen = hm[top : row + radius + 1, left : column + radius + 1]
    ys, xs = (profile[start - at + radius :][:size] for start, at, size in ((top, row, seen.shape[0]), (left, column, seen.shape[1])))
    np.maximum(seen, ys[:, None] * xs[None, :], out=seen)


class _BoxMap:
    """Which pixels of one map should know which object's box, and how much that counts."""

    def __init__(self, height: int, width: int) -> None:
        self.strength = np.zeros((height, width), np.float32)
        self.owner = np.full((height, width), -1, np.int64)
        self.boxes: list[tuple[float, float, float, float]] = []

    def add(self, x: float, y: float, w: float, h: float, area: float) -> None:
        """An object of size (w, h) centred at (x, y). Its pixels are a Gaussian of ``area`` times its size; the strongest claim wins."""
        height, width = self.owner.shape
        row, column = min(int(y), height - 1), min(int(x), width - 1)
        ry, rx = (int(area * length / 2) for length in (h, w))
        top, left = max(row - ry, 0), max(column - rx, 0)
        ys, xs = np.arange(top, min(row + ry + 1, height)), np.arange(left, min(column + rx + 1, width))
        profile = np.exp(-(((ys - row) / ((2 * ry + 1) / 6)) ** 2)[:, None] / 2 - (((xs - column) / ((2 * rx + 1) / 6)) ** 2)[None] / 2)
        seen = np.s_[top : top + len(ys), left : left + len(xs)]
        wins = profile > self.strength[seen]
        self.owner[seen][wins] = len(self.boxes)
        self.strength[seen][wins] = profile[wins]
        self.boxes.append((x, y, w, h))

    def pixels(self) -> npt.NDArray[np.float64]:
        """(n, 7): row, column, width, height, dx, dy, weight; the weights of an object add up to 1."""
        rows, columns = np.nonzero(self.owner >= 0)
        owner, strength = self.owner[rows, columns], self.strength[rows, columns].astype(np.float64)
        total = np.bincount(owner, strength, minlength=len(self.boxes))
        x, y, w, h = np.array(self.boxes).reshape(-1, 4)[owner].T
        return np.stack([rows, columns, w, h, x - columns, y - rows, strength / total[owner]], 1)


def make_targets(
    boxes: list[Floats],
    labels: list[npt.NDArray[np.int64]],
    *,
    classes: int,
    size: tuple[int, int],
    stride: int = 4,
    box_area: float = 0.0,
) -> Targets:
    """Targets of a batch: per image boxes (n, 4) x1 y1 x2 y2 in input pixels and labels (n,); ``size`` is the input's (height, width).

    box_area: 0: a box is taught at its centre alone (CenterNet); else in a Gaussian around it of that part of its sides, which costs
    nothing when decoding and makes a peak one pixel off harmless (after TTFNet, Liu et al., arXiv 1909.00700).
    """
    if not 0 <= box_area <= 1:
        raise ValueError(f"box_area must be between 0 and 1, not {box_area!r}")
    height, width = size[0] // stride, size[1] // stride
    hm = np.zeros((len(boxes), classes, height, width), np.float32)
    where: list[tuple[int, int, int]] = []
    extent: list[tuple[float, ...]] = []
    spread: list[npt.NDArray[np.float64]] = []
    for image, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
        around = _BoxMap(height, width)
        for (x1, y1, x2, y2), label in zip((image_boxes / stride).tolist(), image_labels.tolist(), strict=True):
            w, h = x2 - x1, y2 - y1
            if w <= 0 or h <= 0:
                continue
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            row, column = min(int(y), height - 1), min(int(x), width - 1)
            draw_gaussian(hm[image, label], row, column, max(0, int(gaussian_radius(ceil(h), ceil(w)))))
            where.append((image, row, column))
            extent.append((w, h, x - column, y - row, 1.0))
            if box_area:
                around.add(x, y, w, h, box_area)
        pixels = around.pixels()
        spread.append(np.concatenate([np.full((len(pixels), 1), image), pixels], 1))
    objects = len(where)
    if box_area:
        table = torch.from_numpy(np.concatenate(spread))
        index, numbers = table[:, :3].long(), table[:, 3:].float()
    else:
        index = torch.tensor(where, dtype=torch.int64).reshape(-1, 3)
        numbers = torch.tensor(extent, dtype=torch.float32).reshape(-1, 5)
    image_of, row_of, column_of = index.unbind(1)
    return Targets(torch.from_numpy(hm), image_of, row_of, column_of, numbers[:, :2], numbers[:, 2:4], numbers[:, 4], objects)


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """CornerNet's penalty-reduced focal loss, summed and divided by the number of centres (at least 1)."""
    p = torch.sigmoid(logits.float()).clamp(CLAMP, 1 - CLAMP)
    centre = target.eq(1)
    missed = torch.log(p) * (1 - p) ** ALPHA * centre
    false = torch.log(1 - p) * p**ALPHA * (1 - target) ** BETA * ~centre
    return -(missed.sum() + false.sum()) / centre.sum().clamp(min=1)


def detection_loss(maps: tuple[Tensor, Tensor, Tensor], targets: Targets) -> dict[str, Tensor]:
    """Losses of (hm, wh, reg): ``hm``, ``wh``, ``reg`` and their weighted sum ``loss``; L1 of both numbers, weighted, per object."""
    hm, wh, reg = maps
    objects, weight = max(1, targets.objects), targets.weight.unsqueeze(1)
    at = (targets.image, slice(None), targets.row, targets.column)
    losses = {
        "hm": focal_loss(hm, targets.hm),
        "wh": ((wh[at].float() - targets.wh).abs() * weight).sum() / objects,
        "reg": ((reg[at].float() - targets.reg).abs() * weight).sum() / objects,
    }
    return {"loss": losses["hm"] + WH_WEIGHT * losses["wh"] + REG_WEIGHT * losses["reg"], **losses}
