"""Geometry and colour between images and the network's fixed, raw 8-bit input. NumPy and Pillow only.

Every mapping is output = scale * input + offset, one scale for both axes, coordinates being pixel edges; the padding is 0 (black),
as in the network. Resampling is bilinear with Pillow's support, so that scaling down averages instead of skipping pixels.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, floor

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.data.voc import Sample

Image8 = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]

MIN_VISIBLE = 0.4  # part of a box that a crop must show for the box to stay
JITTER = 0.4  # brightness, contrast and saturation, as CornerNet and CenterNet
LIGHTING = 0.1  # standard deviation of the PCA lighting, as CornerNet
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
# Principal components of ImageNet's RGB values in [0, 1] (Krizhevsky 2012; figures of fb.resnet.torch), columns are vectors.
PCA_VALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)
PCA_VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32)


def letterbox(sample: Sample, size: tuple[int, int]) -> tuple[Sample, float, tuple[int, int]]:
    """Scales the sample to fit `size` (height, width), keeping its shape, centred on black.

    Returns the sample, the scale and the offset (dx, dy) in output pixels: output = scale * input + offset.
    """
    height, width = _checked_size(size)
    rows, columns = sample.image.shape[:2]
    if (rows, columns) == (height, width):
        return sample, 1.0, (0, 0)
    scale = min(height / rows, width / columns)
    offset = (int(width - scale * columns + 1e-6) // 2, int(height - scale * rows + 1e-6) // 2)
    left, top, patch = _resample(sample.image, scale, offset, (height, width))
    boxes = _clip(sample.boxes * np.float32(scale) + np.array(offset * 2, np.float32), (height, width))
    return replace(sample, image=_on_black(patch, left, top, (height, width)), boxes=boxes), scale, offset


def unletterbox(boxes: Boxes, scale: float, offset: tuple[float, float], size: tuple[int, int]) -> Boxes:
    """Boxes (n, 4) of the letterboxed image back in the original of `size` (height, width), clipped to it."""
    return _clip((boxes.astype(np.float32) - np.array([*offset, *offset], np.float32)) / np.float32(scale), _checked_size(size))


def augment(sample: Sample, size: tuple[int, int], rng: np.random.Generator, *, flip: bool = True) -> Sample:
    """A random view of the sample, `size` (height, width): CenterNet's scale and crop, a mirror image half the time, colours.

    The crop's side is {0.6, 0.7 .. 1.3} of the letterbox', its centre anywhere but near the border. Boxes are clipped, and dropped if less
    than MIN_VISIBLE of their area is left. `flip` must be False where a mirror image is another thing, as with digits.
    """
    height, width = _checked_size(size)
    rows, columns = sample.image.shape[:2]
    scale = min(height / rows, width / columns) / float(rng.choice(np.arange(6, 14)) / 10)
    centre = [rng.uniform(border := _border(length), length - border) for length in (columns, rows)]
    offset = (width / 2 - scale * centre[0], height / 2 - scale * centre[1])
    left, top, patch = _resample(sample.image, scale, offset, (height, width))
    image = _on_black(jitter_colours(patch, rng), left, top, (height, width))
    moved = sample.boxes * np.float32(scale) + np.array([*offset, *offset], np.float32)
    boxes = _clip(moved, (height, width))
    if flip and rng.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = (sides.prod(axis=1) >= MIN_VISIBLE * (moved[:, 2:] - moved[:, :2]).prod(axis=1)) & (sides >= 1).all(axis=1)
    return Sample(sample.id, image, boxes[keep], sample.labels[keep], sample.difficult[keep], sample.truncated[keep])


def jitter_colours(image: Image8, rng: np.random.Generator) -> Image8:
    """Brightness, contrast and saturation by up to JITTER each, in random order, then PCA lighting; (H, W, 3) stays uint8."""
    x = image.astype(np.float32)
    for kind in rng.permutation(3):
        factor = np.float32(rng.uniform(1 - JITTER, 1 + JITTER))
        x *= factor
        if kind == 1:
            x += (1 - factor) / factor * (x @ GREY).mean()
        elif kind == 2:
            x += ((1 - factor) / factor * (x @ GREY))[..., None]
    x += 255 * (PCA_VECTORS @ (PCA_VALUES * rng.normal(0, LIGHTING, 3).astype(np.float32)))
    np.clip(x, 0, 255, out=x)
    return np.rint(x).astype(np.uint8)


def _border(length: int, border: int = 128) -> int:
    """How far from the edge a crop's centre stays: 128, halved until twice that fits in `length` (CenterNet)."""
    while border > 0 and length <= 2 * border:
        border //= 2
    return border


def _resample(image: Image8, scale: float, offset: tuple[float, float], size: tuple[int, int]) -> tuple[int, int, Image8]:
    """(left, top, pixels) of the whole output pixels that output = scale * input + offset covers inside `size`."""
    spans = []
    for length, limit, shift in ((image.shape[1], size[1], offset[0]), (image.shape[0], size[0], offset[1])):
        first = min(max(0, ceil(shift - 1e-6)), limit - 1)
        last = max(min(limit, floor(scale * length + shift + 1e-6)), first + 1)
        start = min(max((first - shift) / scale, 0.0), length - 1e-3)
        spans.append((first, last, start, max(min((last - shift) / scale, float(length)), start + 1e-3)))
    (left, right, x1, x2), (top, bottom, y1, y2) = spans
    picture = Image.fromarray(image).resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=(x1, y1, x2, y2))
    return left, top, np.asarray(picture)


def _on_black(patch: Image8, left: int, top: int, size: tuple[int, int]) -> Image8:
    canvas = np.zeros((*size, 3), np.uint8)
    canvas[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return canvas


def _clip(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    limits = np.array([size[1], size[0], size[1], size[0]], np.float32)
    clipped: Boxes = np.clip(boxes, np.float32(0), limits)
    return clipped


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width), both positive, not {size!r}")
    return size
