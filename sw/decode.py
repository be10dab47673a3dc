"""CenterNet decoding: from the three head maps to boxes. NumPy only.

This is the specification that PyTorch and chip follow. A pixel is a peak of its class if its value is greater than each of its 3x3
neighbours that precede it in raster order (NW, N, NE, W) and not less than each that follows (E, SW, S, SE); neighbours outside the map do
not count. So of equal values within one 3x3 window only the first can be a peak. Peaks rank by value, descending, then class, row, column.

After "Objects as Points" (Zhou et al. 2019), section 4; there, equal neighbours are all peaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Map = npt.NDArray[Any]

# (row, column) steps to the neighbours that precede a pixel in raster order; their opposites follow it.
PRECEDING = ((-1, -1), (-1, 0), (-1, 1), (0, -1))


@dataclass(frozen=True)
class Detections:
    """The boxes of one image, best first."""

    boxes: npt.NDArray[np.float32]  # (n, 4) x1, y1, x2, y2 in input pixels, not clipped to the image
    scores: npt.NDArray[np.float32]  # (n,) 0..1
    labels: npt.NDArray[np.int64]  # (n,)


def decode(
    hm: Map,
    wh: Map,
    reg: Map,
    *,
    top_k: int = 100,
    stride: int = 4,
    threshold: float = 0.05,
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> list[Detections]:
    """Decodes N images.

    Parameters
    ----------
    hm: (N, H, W, C) heat map before the sigmoid, integers (ranked as integers) or floats; its score is sigmoid(hm * scale).
    wh: (N, H, W, 2) width and height of the box, in output pixels once scaled; negative sizes count as 0.
    reg: (N, H, W, 2) dx, dy of the centre from the pixel's corner (column, row), in output pixels once scaled.
    top_k: most boxes an image, over all classes.
    stride: input pixels an output pixel.
    threshold: least score, 0 <= threshold < 1; compared before the sigmoid, see `least_value`.
    scales: of hm, wh and reg; value = integer * scale.

    Raises ValueError on shapes that do not agree, values that are not finite, or parameters out of range.
    """
    _check(hm, wh, reg, top_k, stride)
    least = least_value(threshold, scales[0])
    found = []
    for values, sizes, shifts, peaks in zip(hm, wh, reg, find_peaks(hm), strict=True):
        labels, rows, columns = np.nonzero((peaks & (values >= least)).transpose(2, 0, 1))  # by class, row, column
        heat = values[rows, columns, labels]
        heat = heat.astype(np.int64 if heat.dtype.kind in "iu" else np.float64)
        best = np.argsort(-heat, kind="stable")[:top_k]
        labels, rows, columns, heat = labels[best], rows[best], columns[best], heat[best]
        centre = np.stack([columns, rows], axis=1) + shifts[rows, columns].astype(np.float64) * scales[2]
        half = np.maximum(sizes[rows, columns].astype(np.float64) * scales[1], 0) / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1) * stride
        scores = (1 + np.tanh(heat * scales[0] / 2)) / 2  # the sigmoid, without overflow
        found.append(Detections(boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int64)))
    return found


def from_records(records: Map, *, frac_bits: int, stride: int = 4, scale: float = 1.0) -> list[Detections]:
    """Detections from the records (N, K, 1, 8) of `sw.ops.decode.Decode` with those fraction bits; `scale` is that of the heat map.

    Equal to what `decode` makes of the same maps, to the last bit of every float.
    """
    found = []
    for frame in records[:, :, 0].astype(np.int64):
        best = frame[frame[:, 0] == 1]
        boxes = best[:, 3:7].astype(np.float64) * 2.0**-frac_bits * stride
        scores = (1 + np.tanh(best[:, 2] * scale / 2)) / 2
        found.append(Detections(boxes.astype(np.float32), scores.astype(np.float32), best[:, 1]))
    return found


def find_peaks(hm: Map) -> npt.NDArray[np.bool_]:
    """(N, H, W, C) -> booleans of the same shape: the peaks as defined above."""
    peaks = np.ones(hm.shape, np.bool_)
    height, width = hm.shape[1:3]
    for dy, dx in PRECEDING:
        later = np.s_[:, max(0, -dy) : height, max(0, -dx) : min(width, width - dx)]
        earlier = np.s_[:, 0 : max(0, height + dy), max(0, dx) : min(width, width + dx)]
        greater = hm[later] > hm[earlier]
        peaks[later] &= greater
        peaks[earlier] &= ~greater
    return peaks


def least_value(threshold: float, scale: float) -> float:
    """The least heat-map value whose score reaches `threshold`: logit(threshold) / scale. On integers, compare with its ceiling."""
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be at least 0 and less than 1, not {threshold!r}")
    if not scale > 0:
        raise ValueError(f"scale must be positive, not {scale!r}")
    return -math.inf if threshold == 0 else math.log(threshold / (1 - threshold)) / scale


def _check(hm: Map, wh: Map, reg: Map, top_k: int, stride: int) -> None:
    if hm.ndim != 4:
        raise ValueError(f"hm must be (N, H, W, C), not of shape {hm.shape}")
    for name, values in (("wh", wh), ("reg", reg)):
        if values.shape != (*hm.shape[:3], 2):
            raise ValueError(f"{name} must be of shape {(*hm.shape[:3], 2)}, not {values.shape}")
    for name, values in (("hm", hm), ("wh", wh), ("reg", reg)):
        if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
            raise ValueError(f"{name} must hold integers or finite floats, not {values.dtype}")
    if top_k < 1 or stride < 1:
        raise ValueError(f"top_k and stride must be at least 1, not {top_k!r} and {stride!r}")
