"""Geometry: what is drawn moves with its box. Colours: bounded, 8-bit, seeded."""

import numpy as np
import pytest

from models.data.transforms import MIN_VISIBLE, augment, jitter_colours, letterbox, unletterbox
from models.data.voc import Sample


def scene(height: int, width: int, boxes: list[tuple[int, int, int, int]]) -> Sample:
    """White rectangles on dark grey, one a box."""
    image = np.full((height, width, 3), 20, np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = 235
    n = len(boxes)
    flags = np.arange(n) % 2 == 1
    return Sample("s", image, np.array(boxes, np.float32).reshape(n, 4), np.arange(n), flags, ~flags)


def bright_box(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> list[int]:
    """x1, y1, x2, y2 of what is brighter than the middle between the darkest and the lightest pixel that is not padding."""
    grey = image.astype(float).mean(axis=2)
    rows, columns = np.nonzero(grey > (grey[grey > 0].min() + grey.max()) / 2)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (320, 64), (61, 47)], ids=str)
@pytest.mark.parametrize("shape", [(240, 320), (300, 100), (50, 37)], ids=str)
def test_letterbox_moves_boxes_with_pixels_and_back(shape: tuple[int, int], size: tuple[int, int]) -> None:
    height, width = shape
    sample = scene(height, width, [(width // 4, height // 3, width // 2, height * 3 // 4)])
    boxed, scale, (dx, dy) = letterbox(sample, size)
    assert boxed.image.shape == (*size, 3)
    assert boxed.image.dtype == np.uint8
    assert scale == min(size[0] / height, size[1] / width)
    np.testing.assert_allclose(boxed.boxes[0], bright_box(boxed.image), atol=1)
    np.testing.assert_allclose(unletterbox(boxed.boxes, scale, (dx, dy), shape), sample.boxes, atol=1e-3)
    shown = boxed.image.min(axis=2) > 0
    assert shown[dy : dy + int(scale * height), dx : dx + int(scale * width)].all()
    assert shown.sum() <= (scale * height + 1) * (scale * width + 1)  # the rest is black
    assert (boxed.labels, boxed.difficult, boxed.truncated) == (sample.labels, sample.difficult, sample.truncated)


def test_letterbox_of_the_right_size_changes_nothing() -> None:
    sample = scene(64, 96, [(3, 4, 50, 60)])
    boxed, scale, offset = letterbox(sample, (64, 96))
    np.testing.assert_array_equal(boxed.image, sample.image)
    assert (scale, offset) == (1.0, (0, 0))


def test_unletterbox_clips_to_the_image() -> None:
    boxes = np.array([[-5, -5, 500, 500]], np.float32)
    assert unletterbox(boxes, 0.5, (10, 0), (60, 80)).tolist() == [[0, 0, 80, 60]]


@pytest.mark.parametrize("flip", [False, True])
def test_augment_moves_boxes_with_pixels(flip: bool) -> None:
    rng = np.random.default_rng(1)
    sample = scene(150, 200, [(60, 50, 130, 100)])
    seen = 0
    for _ in range(60):
        view = augment(sample, (96, 128), rng, flip=flip)
        assert view.image.shape == (96, 128, 3)
        assert view.image.dtype == np.uint8
        for box in view.boxes:
            seen += 1
            np.testing.assert_allclose(box, bright_box(view.image), atol=1.5)
    assert seen >= 50


def test_only_flip_mirrors() -> None:
    sample = scene(128, 128, [(20, 20, 50, 100), (52, 40, 90, 80)])  # the tall one stands left
    for flip, sides in ((False, {True}), (True, {True, False})):
        rng = np.random.default_rng(2)
        views = [augment(sample, (128, 128), rng, flip=flip) for _ in range(40)]
        pairs = [view.boxes for view in views if len(view.boxes) == 2]
        assert {bool(first[0] < second[0]) for first, second in pairs} == sides


def test_augment_drops_what_is_hardly_visible_and_keeps_the_rest_in_order() -> None:
    rng = np.random.default_rng(3)
    sample = scene(128, 128, [(0, 0, 30, 30), (98, 0, 128, 30), (0, 98, 30, 128), (50, 50, 80, 80)])
    counts = set()
    for _ in range(80):
        view = augment(sample, (128, 128), rng, flip=False)
        counts.add(len(view.boxes))
        assert (view.boxes >= 0).all()
        assert (view.boxes <= 128).all()
        areas = (view.boxes[:, 2:] - view.boxes[:, :2]).prod(axis=1)
        assert (areas >= MIN_VISIBLE * (30 / 1.3) ** 2 * 0.999).all()
        np.testing.assert_array_equal(view.difficult, view.labels % 2 == 1)
        np.testing.assert_array_equal(view.truncated, view.labels % 2 == 0)
    assert len(counts) > 2


def test_augment_without_boxes_and_of_tiny_images() -> None:
    rng = np.random.default_rng(4)
    for shape in ((64, 64), (3, 200), (1, 1)):
        view = augment(scene(*shape, []), (64, 64), rng)
        assert view.boxes.shape == (0, 4)
        assert view.image.shape == (64, 64, 3)


def test_colours_stay_close_vary_and_repeat_with_the_seed() -> None:
    image = np.full((20, 30, 3), 100, np.uint8)
    image[:10] = (160, 90, 60)
    results = [jitter_colours(image, np.random.default_rng(seed)) for seed in range(50)]
    again = [jitter_colours(image, np.random.default_rng(seed)) for seed in range(50)]
    np.testing.assert_array_equal(results, again)
    means = np.array([result.mean() for result in results])
    assert means.std() > 10
    assert means.min() > 100 * 0.6 - 30
    assert means.max() < 100 * 1.4 + 30
    differences = [int(r[0, 0, 0]) - int(r[0, 0, 2]) for r in results]
    assert min(differences) < 80 < 120 < max(differences)  # of red and blue, 100 before: saturation varies


def test_refuses_sizes_that_are_none() -> None:
    with pytest.raises(ValueError, match="size must be"):
        letterbox(scene(10, 10, []), (0, 10))
