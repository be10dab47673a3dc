"""COCO folders and COCO's figures; the latter against a plain program that follows the published definition."""
from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models import checkpoint
from models.batches import Views
from models.coco_metrics import evaluate_coco
from models.data.coco import CocoFolder
from models.data.folder import has_split, open_folder
from models.data.voc import DataError, Sample
from models.score import score, torch_network
from models.train import train
from sw.decode import Detections


def overlap(a: Any, b: Any, crowd: bool) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared, area = max(w, 0) * max(h, 0), (a[2] - a[0]) * (a[3] - a[1])
    return float(shared / (area if crowd else area + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def ap_by_definition(found: list[Detections], truth: list[Sample], label: int, iou: float, low: float, high: float) -> float | None:
    """AP at one IoU for objects of area low..high: greedy by score, unignored objects first, 101 points of the raised precision."""
    lines, positives = [], 0
    for detections, sample in zip(found, truth, strict=True):
        own = [k for k in range(len(sample.labels)) if sample.labels[k] == label]
        assert sample.areas is not None
        ignored = {k: bool(sample.difficult[k]) or not low <= sample.areas[k] < high for k in own}
        own.sort(key=lambda k: ignored[k])
        positives += sum(not ignored[k] for k in own)
        used: set[int] = set()
        mine = sorted((k for k in range(len(detections.labels)) if detections.labels[k] == label), key=lambda k: -detections.scores[k])
        for d in mine[:100]:
            best, match = iou, None
            for k in own:
                if k in used and not sample.difficult[k]:
                    continue
                if match is not None and not ignored[match] and ignored[k]:
                    break
                value = overlap(detections.boxes[d], sample.boxes[k], bool(sample.difficult[k]))
                if value >= best:
                    best, match = value, k
            if match is not None:
                used.add(match)
            side = detections.boxes[d][2:] - detections.boxes[d][:2]
            drop = ignored[match] if match is not None else not low <= side[0] * side[1] < high
            lines.append((float(detections.scores[d]), match is not None, drop))
    if not positives:
        return None
    kept = [hit for _, hit, drop in sorted(lines, key=lambda line: -line[0]) if not drop]
    hits, curve = 0, []
    for count, hit in enumerate(kept, start=1):
        hits += hit
        curve.append((hits / positives, hits / count))
    points = [max((p for r, p in curve if r >= t / 100 - 1e-12), default=0.0) for t in range(101)]
    return float(np.mean(points))


def scene(rng: np.random.Generator) -> tuple[Detections, Sample]:
    n = int(rng.integers(0, 7))
    corner, side = rng.uniform(0, 200, (n, 2)), rng.choice([12.0, 50.0, 150.0], (n, 1)) * rng.uniform(0.7, 1.3, (n, 2))
    boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)
    labels, crowd = rng.integers(0, 2, n), rng.random(n) < 0.2
    areas = side.prod(1) * rng.uniform(0.5, 1, n)
    sample = Sample("x", np.zeros((1, 1, 3), np.uint8), boxes, labels, crowd, np.zeros(n, np.bool_), areas)
    pick = rng.integers(0, n, 2 * n) if n else np.zeros(0, np.int64)
    near = (boxes[pick] + rng.normal(0, 0.06, (len(pick), 4)) * np.repeat(side[pick], 2, 1)).astype(np.float32)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    labels = np.where(rng.random(len(pick)) < 0.8, labels[pick], rng.integers(0, 2, len(pick)))
    return Detections(near, rng.random(len(pick)).astype(np.float32), labels), sample


def test_figures_equal_the_definition_on_random_scenes() -> None:
    rng = np.random.default_rng(0)
    found, truth = map(list, zip(*(scene(rng) for _ in range(30)), strict=True))
    got = evaluate_coco(found, truth, ["a", "b"])

    def mean(ious: Any, low: float, high: float) -> float:
        values = [ap_by_definition(found, truth, label, iou, low, high) for label in (0, 1) for iou in ious]
        return float(np.mean([v for v in values if v is not None]))

    steps = np.linspace(0.5, 0.95, 10)
    assert got["ap"] == pytest.approx(mean(steps, 0, 1e10), abs=1e-6)
    assert got["ap50"] == pytest.approx(mean([0.5], 0, 1e10), abs=1e-6) and 0.2 < float(got["ap50"] or 0) < 0.95
    assert got["ap75"] == pytest.approx(mean([0.75], 0, 1e10), abs=1e-6)
    for name, low, high in (("ap_small", 0, 32**2), ("ap_medium", 32**2, 96**2), ("ap_large", 96**2, 1e10)):
        assert got[name] == pytest.approx(mean(steps, low, high), abs=1e-6), name


def test_nothing_found_is_zero_and_lengths_must_agree() -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    sample = next(s for _, s in (scene(np.random.default_rng(k)) for k in range(9)) if len(s.labels))
    assert evaluate_coco([nothing], [sample], ["a", "b"])["ap"] == 0.0
    with pytest.raises(ValueError, match="as many as"):
        evaluate_coco([], [sample], ["a", "b"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    for name in ("one.jpg", "two.png"):
        Image.new("RGB", (64, 48), (9, 9, 9)).save(tmp_path / "val2017" / name)
    write(tmp_path)
    return tmp_path


CONTENT: dict[str, Any] = {
    "images": [
        {"id": 9, "file_name": "two.png", "width": 64, "height": 48}, {"id": 4, "file_name": "one.jpg", "width": 64, "height": 48},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 7, "bbox": [10, 5, 20, 30], "area": 333.0, "iscrowd": 0},
        {"id": 2, "image_id": 4, "category_id": 3, "bbox": [50, 5, 30, 10], "area": 100.0, "iscrowd": 1},
        {"id": 3, "image_id": 4, "category_id": 3, "bbox": [5, 5, 0, 10], "area": 0.0, "iscrowd": 0},
    ],
}  # fmt: skip


def write(root: Path, **changes: Any) -> None:
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(CONTENT | changes))


def test_a_coco_folder_is_a_sequence_of_samples(root: Path) -> None:
    folder = open_folder(root, "val")
    assert isinstance(folder, CocoFolder) and has_split(root, "val2017") and not has_split(root, "train")
    folder.check()
    folder.check(images=True)
    assert folder.classes == ("cat", "dog") and len(folder) == 2 and folder.ids == ("one", "two")
    sample = folder[0]
    assert sample.boxes.tolist() == [[10, 5, 30, 35], [50, 5, 64, 15]], "clipped; the empty one left out"
    assert sample.labels.tolist() == [1, 0] and sample.difficult.tolist() == [False, True]
    assert sample.areas is not None and sample.areas.tolist() == [333.0, 100.0]
    assert len(folder[1].boxes) == 0
    assert CocoFolder(root, "val", ["x", "dog", "cat"])[0].labels.tolist() == [1, 2]


def test_training_and_scoring_take_coco_folders(root: Path) -> None:
    (root / "val2017").rename(root / "images")
    write(root)
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(CONTENT))
    small: dict[str, Any] = {"width": 0.25, "size": (32, 64), "decoder": (8, 8, 8), "head_channels": 8, "batch": 2}
    result = train(root / "run", data=root, epochs=1, workers=0, progress=False, **small)
    assert result["kept"] == "best" and np.isfinite(result["history"][0]["loss"])
    model = checkpoint.load_float(root / "run" / "float.pt")
    assert model.config.classes == ("cat", "dog")
    found = score(torch_network(model), open_folder(root, "val", model.config.classes), (32, 64), coco=True)
    assert found["coco"].keys() >= {"ap", "ap50", "ap_small"} and found["per_class"]["cat"]["boxes"] == 0, "a crowd is nothing to find"


@pytest.mark.parametrize("random", [0.0, 1.0])
def test_crowds_are_not_taught(root: Path, random: float) -> None:
    seen = Views(CocoFolder(root, "val"), (64, 64), random=random)[0]
    assert 0 not in seen.labels and not seen.difficult.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "lists no image"),
        ({"annotations": [{"image_id": 4}]}, "needs a list 'annotations' of objects with image_id, category_id, bbox"),
        ({"annotations": [{"image_id": 4, "category_id": 5, "bbox": [0, 0, 9, 9]}]}, "has category 5, which is none"),
        ({"annotations": [{"image_id": 4, "category_id": 3, "bbox": [0, 0, 9]}]}, "needs a bbox of four numbers"),
        ({"images": [{"id": 1, "file_name": "../a.jpg", "width": 1, "height": 1}]}, "leaves the folder"),
        ({"images": [{"id": 1, "file_name": "gone.jpg", "width": 1, "height": 1}]}, "image is missing"),
        ({"images": [{"id": 1, "file_name": "one.jpg", "width": 1, "height": 1}]}, "another size|is 64x48"),
    ],
)
def test_broken_annotations_are_named(root: Path, changes: dict[str, Any], message: str) -> None:
    write(root, **changes)
    with pytest.raises(DataError, match=message):
        folder = CocoFolder(root, "val")
        folder.check()
        _ = folder[0]


def test_foreign_categories_and_missing_splits_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match="category 'cat' is not among the 1 classes"):
        CocoFolder(root, "val", ["dog"])
    with pytest.raises(DataError, match=r"instances_test\.json is missing; there is val2017"):
        open_folder(root, "test")
    (root / "annotations" / "instances_val2017.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        CocoFolder(root, "val")


def test_voc_years_join(root: Path) -> None:
    for year, names in (("VOC2007", ["a", "b"]), ("VOC2012", ["c"])):
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / year / folder).mkdir(parents=True)
        (root / year / "ImageSets/Main/trainval.txt").write_text("\n".join(names))
        for name in names:
            Image.new("RGB", (64, 48)).save(root / year / "JPEGImages" / f"{name}.png")
            box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
            (root / year / "Annotations" / f"{name}.xml").write_text(f"<annotation><object><name>cat</name>{box}</object></annotation>")
    split = "VOC2007/trainval+VOC2012/trainval"
    joined = open_folder(root, split)
    joined.check()
    assert [joined[k].id for k in range(3)] == ["a", "b", "c"] and len(joined) == 3 and has_split(root, split)
    with pytest.raises(IndexError):
        joined[3]
    with pytest.raises(DataError, match="must be like VOC2007/trainval"):
        open_folder(root, "VOC2007/trainval+../x/y")
    assert dataclasses.is_dataclass(joined[0])
