"""COCO's AP family through pycocotools: AP over IoU 0.5 to 0.95, by size, with crowds ignored, at most 100 detections an image."""
from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from models.data.voc import Sample
from sw.decode import Detections

#: Figures in pycocotools' order.
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")


def evaluate_coco(detections: Sequence[Detections], truth: Sequence[Sample], classes: Sequence[str]) -> dict[str, float | None]:
    """COCO's twelve figures, 0..1, of one Detections and one Sample an image, in the same pixels; None where there is nothing to find.

    Difficult boxes count as crowds. Sizes are told by ``Sample.areas`` where the data set has them, else by the boxes.
    Raises ValueError if the lists differ in length.
    """
    if len(detections) != len(truth):
        raise ValueError(f"detections must be as many as ground truth, {len(truth)}, not {len(detections)!r}")
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (found, sample) in enumerate(zip(detections, truth, strict=True), start=1):
        sides = (sample.boxes[:, 2:] - sample.boxes[:, :2]).astype(np.float64)
        areas = sample.areas if sample.areas is not None else sides.prod(1)
        for box, side, label, crowd, area in zip(sample.boxes, sides, sample.labels, sample.difficult, areas, strict=True):
            about = {"area": float(area), "iscrowd": int(crowd), "id": len(annotations) + 1}
            annotations.append(_entry(image, int(label), box, side) | about)
        for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True):
            side = (box[2:] - box[:2]).astype(np.float64)
            results.append(_entry(image, int(label), box, side) | {"score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = {
            "images": [{"id": k} for k in range(1, len(truth) + 1)],
            "annotations": annotations,
            "categories": [{"id": k, "name": name} for k, name in enumerate(classes)],
            "info": {},
        }
        ground.createIndex()
        if not results:
            return {name: 0.0 if annotations else None for name in NAMES}
        run = COCOeval(ground, ground.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {name: None if value < 0 else float(value) for name, value in zip(NAMES, run.stats, strict=True)}


def _entry(image: int, label: int, box: Any, side: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": label, "bbox": [float(box[0]), float(box[1]), float(side[0]), float(side[1])]}
