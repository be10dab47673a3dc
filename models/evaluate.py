"""AP50 of a backend on a data set, and pictures of what it found."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.backends import Backend
from models.data.folder import open_folder
from models.draw import draw_pair
from models.score import detect as find_boxes
from models.score import score

#: Least score of a box that is drawn.
DRAWN = 0.3


def evaluate(
    backend: Backend,
    data: Path,
    split: str,
    images: int | None = None,
    batch: int = 32,
    flip_test: bool = False,
    coco: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """AP50 (area metric) and the 11-point figure of ``backend``, without and with NMS, on the first ``images`` of a split (None: all);
    ``coco``: COCO's figures too.

    Raises DataError if the data's classes are not the model's.
    """
    folder = open_folder(data, split, backend.classes)
    folder.check()
    result = score(
        backend.network, folder, backend.size, images=images, batch=batch, flip_test=flip_test, coco=coco, progress=progress,
        finder=backend.finder,
    )  # fmt: skip
    return {"backend": backend.name, "split": folder.split, "data": str(data), **result}


def draw_detections(backend: Backend, data: Path, split: str, images: int, out: Path) -> list[dict[str, Any]]:
    """Draw the boxes of ``backend`` beside ground truth, one PNG an image in ``out``; a record for each."""
    folder = open_folder(data, split, backend.classes)
    records = []
    for k in range(min(images, len(folder))):
        sample = folder[k]
        (found,) = find_boxes(backend.network, [sample], backend.size, threshold=DRAWN, finder=backend.finder)
        path = out / f"{sample.id}.png"
        draw_pair(sample.image, sample, found, backend.classes, path)
        boxes = [
            {"class": backend.classes[label], "score": round(float(score), 4), "box": [round(float(v), 2) for v in box]}
            for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
        ]
        records.append({"image": sample.id, "picture": str(path), "detections": boxes, "truth": len(sample.labels)})
    return records
