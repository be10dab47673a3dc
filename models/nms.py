"""Greedy non-maximum suppression, class by class. CenterNet needs none in principle; figures with it are always labelled."""
from __future__ import annotations

import numpy as np

from models.metrics import box_iou
from sw.decode import Detections

#: A box that overlaps a better one of its class by more than this is dropped.
OVERLAP = 0.5


def suppress(found: Detections, overlap: float = OVERLAP) -> Detections:
    """``found`` without boxes that overlap a better-scored box of their class by more than ``overlap`` (intersection over union)."""
    if not 0 < overlap < 1:
        raise ValueError(f"overlap must lie between 0 and 1, not {overlap!r}")
    clash = (box_iou(found.boxes, found.boxes) > overlap) & (found.labels[:, None] == found.labels[None])
    kept: list[int] = []
    dropped = np.zeros(len(found.scores), np.bool_)
    for index in np.argsort(-found.scores, kind="stable"):
        if not dropped[index]:
            kept.append(int(index))
            dropped |= clash[index]
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept])
