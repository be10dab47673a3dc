"""Average precision as the Pascal VOC development kit computes it. NumPy only.

A detection belongs to the ground-truth box of its class and image that it overlaps most; it is right if that overlap (intersection over
union) is at least the threshold (the kit's rule; some ports ask for more than it) and no better-scored detection took the box. Detections
of difficult boxes count neither way; second detections of a box are false positives. One pass over each image: no mirror images, no scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sw.decode import Detections

Floats = npt.NDArray[np.float64]


class GroundTruth(Protocol):
    """What is read of a Sample."""

    @property
    def boxes(self) -> npt.NDArray[np.float32]: ...

    @property
    def labels(self) -> npt.NDArray[np.int64]: ...

    @property
    def difficult(self) -> npt.NDArray[np.bool_]: ...


def evaluate_voc(
    detections: Sequence[Detections], ground_truth: Sequence[GroundTruth], classes: Sequence[str], iou: float = 0.5
) -> dict[str, Any]:
    """AP of one Detections and one ground truth an image, in the same pixels (edges).

    Returns a dictionary that JSON can hold; every AP is 0..1, and None for a class without a (not difficult) box, which the means
    leave out. ap50: mean by area under the precision-recall curve (VOC 2010 and later); ap50_11: mean by 11 points (VOC 2007); at
    another `iou` the two are named after it (ap75); metric: in words; images; per_class: name -> ap, ap_11, boxes, detections.

    Raises ValueError if the lists differ in length, a label has no class, or there is no box at all.
    """
    _check(detections, ground_truth, classes, iou)
    per_class: dict[str, dict[str, Any]] = {}
    for label, name in enumerate(classes):
        right, boxes = _match(detections, ground_truth, label, iou)
        recall, precision = _curve(right, boxes)
        per_class[name] = {
            "ap": area_ap(recall, precision) if boxes else None,
            "ap_11": eleven_point_ap(right, boxes) if boxes else None,
            "boxes": boxes,
            "detections": sum(int((d.labels == label).sum()) for d in detections),
        }
    counted = [row for row in per_class.values() if row["boxes"]]
    if not counted:
        raise ValueError("ground truth must hold at least one box that is not difficult")
    key = f"ap{round(100 * iou)}"
    return {
        key: float(np.mean([row["ap"] for row in counted])),
        f"{key}_11": float(np.mean([row["ap_11"] for row in counted])),
        "metric": f"VOC area under the precision-recall curve, IoU >= {iou:g}, difficult ignored",
        "images": len(ground_truth),
        "per_class": per_class,
    }


def box_iou(a: npt.NDArray[np.floating[Any]], b: npt.NDArray[np.floating[Any]]) -> Floats:
    """Intersection over union of (n, 4) with (m, 4) boxes -> (n, m); 0 where both are empty."""
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    shared = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0).prod(axis=-1)
    total = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - shared
    overlap: Floats = np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)
    return overlap


def area_ap(recall: Floats, precision: Floats) -> float:
    """Area under the curve, each precision raised to the best at equal or higher recall."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def eleven_point_ap(right: npt.NDArray[np.bool_], boxes: int) -> float:
    """Mean over recalls 0, 0.1 .. 1 of the best precision at that recall or higher. Recalls are compared as integers: 0.3 is 3/10."""
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    return sum(float(precision[10 * hits >= k * boxes].max(initial=0.0)) for k in range(11)) / 11


def _curve(right: npt.NDArray[np.bool_], boxes: int) -> tuple[Floats, Floats]:
    hits = np.cumsum(right)
    return hits / max(boxes, 1), hits / np.arange(1, len(right) + 1)


def _match(
    detections: Sequence[Detections], ground_truth: Sequence[GroundTruth], label: int, iou: float
) -> tuple[npt.NDArray[np.bool_], int]:
    """(is each counted detection right, best score first; number of boxes to find). Equal scores keep the order of images and ranks."""
    scores: list[float] = []
    verdicts: list[bool] = []
    boxes = 0
    for found, truth in zip(detections, ground_truth, strict=True):
        mine, theirs = found.labels == label, truth.labels == label
        difficult = truth.difficult[theirs]
        boxes += int((~difficult).sum())
        overlap = box_iou(found.boxes[mine], truth.boxes[theirs])
        own = found.scores[mine]
        taken: set[int] = set()
        for index in np.argsort(-own, kind="stable"):
            best = int(overlap[index].argmax()) if len(difficult) else -1
            hit = best >= 0 and bool(overlap[index, best] >= iou)
            if hit and difficult[best]:
                continue
            scores.append(float(own[index]))
            verdicts.append(hit and best not in taken)
            if hit:
                taken.add(best)
    order = np.argsort(-np.array(scores), kind="stable") if scores else np.zeros(0, np.int64)
    return np.array(verdicts, np.bool_)[order], boxes


def _check(detections: Sequence[Detections], ground_truth: Sequence[GroundTruth], classes: Sequence[str], iou: float) -> None:
    if len(detections) != len(ground_truth):
        raise ValueError(f"detections must be as many as ground truth, {len(ground_truth)}, not {len(detections)!r}")
    if not 0 < iou <= 1:
        raise ValueError(f"iou must be more than 0 and at most 1, not {iou!r}")
    for what, lists in (("detections", [d.labels for d in detections]), ("ground truth", [t.labels for t in ground_truth])):
        for index, labels in enumerate(lists):
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
                raise ValueError(f"labels of {what} {index} must be below the number of classes, {len(classes)}, not {labels!r}")
