"""Non-maximum suppression against a slow program, and the flip test."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.nms import suppress
from models.score import mirrored
from sw.decode import Detections


def overlap(a: Any, b: Any) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


@pytest.mark.parametrize("seed", range(5))
def test_against_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 15, (60, 2))], 1).astype(np.float32)
    found = Detections(boxes, (rng.permutation(60) / 60).astype(np.float32), rng.integers(0, 3, 60))
    kept: list[int] = []
    for k in sorted(range(60), key=lambda k: -found.scores[k]):
        if all(found.labels[k] != found.labels[j] or overlap(boxes[k], boxes[j]) <= 0.4 for j in kept):
            kept.append(k)
    got = suppress(found, 0.4)
    assert 3 < len(kept) < 50
    np.testing.assert_array_equal(got.boxes, boxes[kept])
    np.testing.assert_array_equal(got.labels, found.labels[kept])


def test_nothing_found_stays_nothing() -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert len(suppress(nothing).scores) == 0
    with pytest.raises(ValueError, match="overlap must lie"):
        suppress(nothing, 1.0)


def test_flip_test_averages_probabilities_and_sizes_over_the_mirror_image() -> None:
    """A network that copies pixels: on the mirror image it sees the other side, and its maps come back the right way round."""

    def network(images: Any) -> Any:
        x = images[:, ::4, ::4].astype(np.float64)
        hm = (x[..., :1] - 100) / 50
        return hm, x[..., 1:] + np.arange(x.shape[2])[None, None, :, None], x[..., 1:]

    images = np.random.default_rng(0).integers(0, 256, (2, 8, 17, 3), dtype=np.uint8)
    hm, wh, reg = mirrored(network)(images)
    alone, sizes, offsets = network(images)
    np.testing.assert_allclose(hm, alone, rtol=1e-6)  # the same pixels from both sides
    np.testing.assert_allclose(wh, sizes + (4 - 2 * np.arange(5))[None, None, :, None] / 2)
    np.testing.assert_array_equal(reg, offsets)
