"""VOC average precision against cases computed by hand and against a slow program that follows the kit's text."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from models.metrics import box_iou, evaluate_voc
from sw.decode import Detections


@dataclass(frozen=True)
class Truth:
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    difficult: npt.NDArray[np.bool_]


def truth(*items: tuple[list[float], int, bool]) -> Truth:
    boxes, labels, difficult = ([item[k] for item in items] for k in range(3))
    return Truth(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(difficult, np.bool_))


def found(*items: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = ([item[k] for item in items] for k in range(3))
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64))


A, B, C, FAR = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0], [80.0, 80.0, 90.0, 90.0]


def test_perfect_detections_score_one() -> None:
    result = evaluate_voc([found((A, 0.9, 0), (B, 0.8, 1))], [truth((A, 0, False), (B, 1, False))], ["x", "y"])
    assert result["ap50"] == result["ap50_11"] == 1.0


def test_half_found_after_a_false_positive() -> None:
    # ranks: wrong, right; one of two boxes found: precision 1/2 at recall 1/2
    result = evaluate_voc([found((FAR, 0.9, 0), (A, 0.8, 0))], [truth((A, 0, False), (B, 0, False))], ["x"])
    assert result["ap50"] == pytest.approx(0.25)
    assert result["ap50_11"] == pytest.approx(6 * 0.5 / 11)  # recalls 0, 0.1 .. 0.5


def test_curve_is_raised_to_the_best_precision_to_its_right() -> None:
    # right, wrong, right, right of 3: precisions 1, 1/2, 2/3, 3/4 -> area 1/3 * 1 + 2/3 * 3/4
    result = evaluate_voc(
        [found((A, 0.9, 0), (FAR, 0.8, 0), (B, 0.7, 0), (C, 0.6, 0))], [truth((A, 0, False), (B, 0, False), (C, 0, False))], ["x"]
    )
    assert result["ap50"] == pytest.approx(1 / 3 + 2 / 3 * 3 / 4)
    assert result["ap50_11"] == pytest.approx((4 * 1 + 7 * 3 / 4) / 11)  # recalls 0 .. 0.3 at 1


def test_recall_of_three_tenths_counts_at_three_tenths() -> None:
    boxes = [[20.0 * k, 0.0, 20.0 * k + 10, 10.0] for k in range(10)]
    result = evaluate_voc([found(*((b, 0.9, 0) for b in boxes[:3]))], [truth(*((b, 0, False) for b in boxes))], ["x"])
    assert result["ap50_11"] == pytest.approx(4 / 11)


def test_duplicates_are_false_positives() -> None:
    result = evaluate_voc([found((A, 0.9, 0), (A, 0.8, 0), (B, 0.7, 0))], [truth((A, 0, False), (B, 0, False))], ["x"])
    assert result["ap50"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_difficult_boxes_count_neither_way() -> None:
    detections = [found((A, 0.9, 0), (A, 0.85, 0), (B, 0.8, 0))]
    result = evaluate_voc(detections, [truth((A, 0, True), (B, 0, False))], ["x"])
    assert result["ap50"] == 1.0
    assert result["per_class"]["x"]["boxes"] == 1


def test_overlap_of_exactly_half_is_a_hit() -> None:
    half = [0.0, 0.0, 10.0, 5.0]
    assert box_iou(np.array([A]), np.array([half]))[0, 0] == 0.5
    assert evaluate_voc([found((half, 0.9, 0))], [truth((A, 0, False))], ["x"])["ap50"] == 1.0
    less = [0.0, 0.0, 10.0, 4.9]
    assert evaluate_voc([found((less, 0.9, 0))], [truth((A, 0, False))], ["x"])["ap50"] == 0.0


def test_near_miss_does_not_use_up_the_box() -> None:
    result = evaluate_voc([found(([0.0, 0.0, 10.0, 4.0], 0.9, 0), (A, 0.8, 0))], [truth((A, 0, False))], ["x"])
    assert result["ap50"] == pytest.approx(0.5)


def test_classes_without_boxes_are_left_out_of_the_mean() -> None:
    result = evaluate_voc([found((A, 0.9, 0), (B, 0.9, 1))], [truth((A, 0, False), (C, 2, True))], ["x", "y", "z"])
    assert result["ap50"] == 1.0
    assert [row["ap"] for row in result["per_class"].values()] == [1.0, None, None]


def ap_by_text(detections: list[Detections], truths: list[Truth], label: int) -> tuple[float, float] | None:
    """The kit's VOCevaldet and VOCap, line by line, with plain loops."""
    lines = [
        (-float(d.scores[k]), image, d.boxes[k].tolist())
        for image, d in enumerate(detections)
        for k in range(len(d.labels))
        if d.labels[k] == label
    ]
    taken: set[tuple[int, int]] = set()
    positives = sum(1 for t in truths for k in range(len(t.labels)) if t.labels[k] == label and not t.difficult[k])
    if not positives:
        return None
    tp = fp = 0
    recall, precision = [0.0], [0.0]
    for _, image, box in sorted(lines, key=lambda line: line[0]):
        best, where = -1.0, -1
        for k, other in enumerate(truths[image].boxes.tolist()):
            if truths[image].labels[k] != label:
                continue
            w, h = min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1])
            if w > 0 and h > 0:
                union = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1]) - w * h
                if w * h / union > best:
                    best, where = w * h / union, k
        if best >= 0.5 and truths[image].difficult[where]:
            continue
        if best >= 0.5 and (image, where) not in taken:
            taken.add((image, where))
            tp += 1
        else:
            fp += 1
        recall.append(tp / positives)
        precision.append(tp / (tp + fp))
    area = sum((recall[k] - recall[k - 1]) * max(precision[k:]) for k in range(1, len(recall)))
    points = sum(max((p for r, p in zip(recall, precision, strict=True) if r >= t / 10 - 1e-9), default=0.0) for t in range(11)) / 11
    return area, points


def test_random_scenes_agree_with_the_text() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        truths, detections = [], []
        for _ in range(6):
            n, m = rng.integers(0, 6, 2)
            corners = rng.uniform(0, 40, (n, 2))
            boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (n, 2))], axis=1).astype(np.float32)
            truths.append(Truth(boxes, rng.integers(0, 3, n), rng.random(n) < 0.2))
            near = boxes[rng.integers(0, n, m)] + rng.normal(0, 2, (m, 4)).astype(np.float32) if n else np.zeros((0, 4), np.float32)
            scores = rng.random(len(near)).astype(np.float32)
            detections.append(Detections(near, scores, rng.integers(0, 3, len(near))))
        result = evaluate_voc(detections, truths, ["x", "y", "z"])
        want = [ap_by_text(detections, truths, label) for label in range(3)]
        for row, pair in zip(result["per_class"].values(), want, strict=True):
            assert (row["ap"], row["ap_11"]) == (pytest.approx(pair) if pair else (None, None))
        counted = [pair for pair in want if pair]
        assert result["ap50"] == pytest.approx(np.mean([pair[0] for pair in counted]))
        assert result["ap50_11"] == pytest.approx(np.mean([pair[1] for pair in counted]))


def test_refuses_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="as many as"):
        evaluate_voc([], [truth((A, 0, False))], ["x"])
    with pytest.raises(ValueError, match="below the number of classes"):
        evaluate_voc([found((A, 0.5, 3))], [truth((A, 0, False))], ["x"])
    with pytest.raises(ValueError, match="at least one box"):
        evaluate_voc([found()], [truth()], ["x"])
