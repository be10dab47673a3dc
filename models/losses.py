"""CenterNet's targets and losses (Zhou et al., Objects as Points, arXiv 1904.07850), with CornerNet's original radius formula."""
from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

Floats = npt.NDArray[np.float32]

MIN_OVERLAP = 0.7
ALPHA, BETA = 2, 4
WH_WEIGHT, REG_WEIGHT = 0.1, 1.0
#: A probability is kept this far from 0 and 1.
CLAMP = 1e-4


@dataclass(frozen=True)
class Targets:
    """What the three maps should be. Objects of a batch are listed one after the other.

    hm: (N, classes, H, W) float32, 1 at centres; image, row, column: (n,) int64; wh: (n, 2) width, height; reg: (n, 2) dx, dy in [0, 1),
    both in map pixels, float32.
    """

    hm: Tensor
    image: Tensor
    row: Tensor
    column: Tensor
    wh: Tensor
    reg: Tensor


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


def make_targets(
    boxes: list[Floats], labels: list[npt.NDArray[np.int64]], *, classes: int, size: tuple[int, int], stride: int = 4
) -> Targets:
    """Targets of a batch: per image boxes (n, 4) x1 y1 x2 y2 in input pixels and labels (n,); ``size`` is the input's (height, width)."""
    height, width = size[0] // stride, size[1] // stride
    hm = np.zeros((len(boxes), classes, height, width), np.float32)
    where: list[tuple[int, int, int]] = []
    extent: list[tuple[float, float, float, float]] = []
    for image, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
        for (x1, y1, x2, y2), label in zip((image_boxes / stride).tolist(), image_labels.tolist(), strict=True):
            w, h = x2 - x1, y2 - y1
            if w <= 0 or h <= 0:
                continue
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            row, column = min(int(y), height - 1), min(int(x), width - 1)
            draw_gaussian(hm[image, label], row, column, max(0, int(gaussian_radius(ceil(h), ceil(w)))))
            where.append((image, row, column))
            extent.append((w, h, x - column, y - row))
    index = torch.tensor(where, dtype=torch.int64).reshape(-1, 3)
    numbers = torch.tensor(extent, dtype=torch.float32).reshape(-1, 4)
    return Targets(torch.from_numpy(hm), index[:, 0], index[:, 1], index[:, 2], numbers[:, :2], numbers[:, 2:])


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """CornerNet's penalty-reduced focal loss, summed and divided by the number of centres (at least 1)."""
    p = torch.sigmoid(logits.float()).clamp(CLAMP, 1 - CLAMP)
    centre = target.eq(1)
    missed = torch.log(p) * (1 - p) ** ALPHA * centre
    false = torch.log(1 - p) * p**ALPHA * (1 - target) ** BETA * ~centre
    return -(missed.sum() + false.sum()) / centre.sum().clamp(min=1)


def detection_loss(maps: tuple[Tensor, Tensor, Tensor], targets: Targets) -> dict[str, Tensor]:
    """Losses of (hm, wh, reg): ``hm``, ``wh``, ``reg`` and their weighted sum ``loss``; L1 per object, mean over both numbers' sum."""
    hm, wh, reg = maps
    objects = max(1, len(targets.image))
    at = (targets.image, slice(None), targets.row, targets.column)
    losses = {
        "hm": focal_loss(hm, targets.hm),
        "wh": F.l1_loss(wh[at].float(), targets.wh, reduction="sum") / objects,
        "reg": F.l1_loss(reg[at].float(), targets.reg, reduction="sum") / objects,
    }
    return {"loss": losses["hm"] + WH_WEIGHT * losses["wh"] + REG_WEIGHT * losses["reg"], **losses}
