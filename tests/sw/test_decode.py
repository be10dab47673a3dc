"""CenterNet decoding against a loop over every pixel that follows the definition word by word."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sw.decode import Detections, decode, find_peaks, least_value

Map = npt.NDArray[Any]


def is_peak(values: Map, row: int, column: int) -> bool:
    """(H, W): greater than each 3x3 neighbour before it in raster order, not less than each after it."""
    for r in range(max(0, row - 1), min(values.shape[0], row + 2)):
        for c in range(max(0, column - 1), min(values.shape[1], column + 2)):
            if (r, c) < (row, column) and not values[row, column] > values[r, c]:
                return False
            if (r, c) > (row, column) and not values[row, column] >= values[r, c]:
                return False
    return True


def decode_by_loop(hm: Map, wh: Map, reg: Map, top_k: int, stride: int, threshold: float, scales: tuple[float, float, float]) -> Detections:
    """One image, (H, W, C) and twice (H, W, 2)."""
    found = []
    height, width, channels = hm.shape
    for k in range(channels):
        for r in range(height):
            for c in range(width):
                score = 1 / (1 + math.exp(-float(hm[r, c, k]) * scales[0]))
                if is_peak(hm[..., k], r, c) and score >= threshold:
                    x, y = c + float(reg[r, c, 0]) * scales[2], r + float(reg[r, c, 1]) * scales[2]
                    w, h = (max(0.0, float(v) * scales[1]) for v in wh[r, c])
                    box = [stride * v for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)]
                    found.append((-hm[r, c, k].item(), k, r, c, score, box))
    found = sorted(found)[:top_k]
    return Detections(
        np.array([f[5] for f in found], np.float32).reshape(-1, 4),
        np.array([f[4] for f in found], np.float32),
        np.array([f[1] for f in found], np.int64),
    )


@pytest.mark.parametrize("levels", [2, 4, 40000], ids=["many_ties", "some_ties", "few_ties"])
@pytest.mark.parametrize("shape", [(2, 7, 9, 3), (1, 1, 1, 2), (1, 1, 6, 2), (1, 6, 1, 2), (1, 2, 2, 5)], ids=str)
def test_integers_agree_with_the_loop(shape: tuple[int, int, int, int], levels: int) -> None:
    rng = np.random.default_rng(levels)
    hm = rng.integers(-levels // 2, (levels + 1) // 2, shape).astype(np.int16)
    wh, reg = (rng.integers(-100, 3000, (*shape[:3], 2)).astype(np.int16) for _ in range(2))
    scales = (8 / levels, 2**-8, 2**-12)
    for top_k, threshold in ((1000, 0.0), (5, 0.0), (100, 0.3)):
        got = decode(hm, wh, reg, top_k=top_k, stride=4, threshold=threshold, scales=scales)
        for index, one in enumerate(got):
            want = decode_by_loop(hm[index], wh[index], reg[index], top_k, 4, threshold, scales)
            np.testing.assert_array_equal(one.labels, want.labels)
            np.testing.assert_array_equal(one.boxes, want.boxes)
            np.testing.assert_allclose(one.scores, want.scores, rtol=1e-6)


def test_floats_agree_with_the_loop() -> None:
    rng = np.random.default_rng(5)
    hm, wh, reg = (rng.normal(0, 2, (1, 8, 8, c)).astype(np.float32) for c in (4, 2, 2))
    got = decode(hm, wh, reg, top_k=30, stride=8, threshold=0.1)[0]
    want = decode_by_loop(hm[0], wh[0], reg[0], 30, 8, 0.1, (1, 1, 1))
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_allclose(got.boxes, want.boxes, rtol=1e-6)


def test_only_the_first_of_a_plateau_is_a_peak() -> None:
    hm = np.zeros((1, 5, 5, 1), np.int8)
    hm[0, 1:3, 1:4, 0] = 7
    peaks = find_peaks(hm)[0, ..., 0]
    assert peaks[1:3, 1:4].tolist() == [[True, False, False], [False, False, False]]
    assert np.argwhere(find_peaks(np.full((1, 4, 4, 1), -128, np.int8))).tolist() == [[0, 0, 0, 0]]


def test_equal_corners_on_the_anti_diagonal_keep_the_upper() -> None:
    hm = np.zeros((1, 2, 2, 1), np.int8)
    hm[0, 0, 1] = hm[0, 1, 0] = 3
    assert find_peaks(hm)[0, ..., 0].tolist() == [[False, True], [False, False]]


def test_ties_rank_by_class_then_row_then_column() -> None:
    hm = np.zeros((1, 5, 5, 2), np.int16)
    places = [(1, 0, 0), (0, 4, 0), (0, 2, 4), (0, 2, 0)]  # class, row, column
    for k, r, c in places:
        hm[0, r, c, k] = 9
    zero = np.zeros((1, 5, 5, 2), np.int16)
    got = decode(hm, zero, zero, stride=1, threshold=0.9)[0]
    assert [(int(k), int(b[1]), int(b[0])) for k, b in zip(got.labels, got.boxes, strict=True)] == sorted(places)


def test_scores_that_saturate_still_rank_by_value() -> None:
    hm = np.zeros((1, 1, 5, 1), np.int16)
    hm[0, 0, 0, 0], hm[0, 0, 4, 0] = 30000, 30001
    zero = np.zeros((1, 1, 5, 2), np.int16)
    got = decode(hm, zero, zero, stride=1)[0]
    assert got.scores.tolist()[:2] == [1.0, 1.0]
    assert got.boxes[0, 0] == 4


def test_least_value_is_the_exact_cut_on_integers() -> None:
    scale = 2**-8
    cut = math.ceil(least_value(0.05, scale))
    assert 1 / (1 + math.exp(-cut * scale)) >= 0.05 > 1 / (1 + math.exp(-(cut - 1) * scale))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.0}, "threshold must be"),
        ({"top_k": 0}, "top_k and stride must be"),
        ({"scales": (0.0, 1.0, 1.0)}, "scale must be"),
        ({"wh": np.zeros((1, 4, 4, 3))}, "wh must be of shape"),
        ({"hm": np.full((1, 4, 4, 1), np.nan)}, "hm must hold"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"hm": np.zeros((1, 4, 4, 1)), "wh": np.zeros((1, 4, 4, 2)), "reg": np.zeros((1, 4, 4, 2))}
    with pytest.raises(ValueError, match=message):
        decode(**(arguments | change))
