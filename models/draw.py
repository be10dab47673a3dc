"""Pictures of detections beside the ground truth."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from models.data.voc import Sample
from sw.decode import Detections
from sw.files import whole_file

PANEL = 512  # least length of a panel's longer side, so that labels can be read
FONT = 14
TITLE = 24
GAP = 8
Colour = tuple[int, int, int]


def draw_pair(image: npt.NDArray[np.uint8], truth: Sample, detections: Detections, classes: Sequence[str], path: Path) -> None:
    """Writes one PNG: detections with class and score on the left, the ground truth on the right.

    image: (H, W, 3) RGB; both sets of boxes in its pixels. Small images are enlarged by a whole factor. `path` appears whole or not at all.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 of shape (H, W, 3), not {image.dtype} of {image.shape}")
    height, width = image.shape[:2]
    factor = max(1, -(-PANEL // max(height, width)))
    found = [f"{classes[label]} {score:.2f}" for label, score in zip(detections.labels, detections.scores, strict=True)]
    real = [classes[label] + (" (difficult)" if hard else "") for label, hard in zip(truth.labels, truth.difficult, strict=True)]
    panels = (
        _panel(image, factor, f"detected: {len(found)}", detections.boxes, detections.labels, found, len(classes)),
        _panel(image, factor, f"ground truth: {len(real)}", truth.boxes, truth.labels, real, len(classes)),
    )
    sheet = Image.new("RGB", (2 * panels[0].width + GAP, panels[0].height), "white")
    for index, panel in enumerate(panels):
        sheet.paste(panel, (index * (panel.width + GAP), 0))
    with whole_file(Path(path)) as temporary:
        sheet.save(temporary, "PNG")


def class_colour(label: int, count: int) -> Colour:
    """A colour for class `label` of `count`: hues spread evenly, neighbours also differing in brightness."""
    red, green, blue = colorsys.hsv_to_rgb(label / max(count, 1), 1.0 if label % 2 else 0.75, 0.8 if label % 2 else 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _panel(
    image: npt.NDArray[np.uint8], factor: int, title: str, boxes: npt.NDArray[np.float32], labels: npt.NDArray[np.int64],
    captions: Sequence[str], count: int,
) -> Image.Image:
    size = (image.shape[1] * factor, image.shape[0] * factor)
    panel = Image.new("RGB", (size[0], size[1] + TITLE), "white")
    panel.paste(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), (0, TITLE))
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default(FONT)
    pen.text((4, 3), title, fill="black", font=font)
    for box, label in reversed(list(zip(boxes, labels, strict=True))):  # best last, on top
        x1, y1, x2, y2 = _inside(box * factor, size)
        pen.rectangle((x1, y1 + TITLE, max(x1, x2 - 1), max(y1, y2 - 1) + TITLE), outline=class_colour(int(label), count), width=2)
    for box, label, caption in reversed(list(zip(boxes, labels, captions, strict=True))):
        x1, y1, _, y2 = _inside(box * factor, size)
        _caption(pen, font, (x1, y1, y2), size, caption, class_colour(int(label), count))
    return panel


def _caption(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, place: tuple[int, int, int], size: tuple[int, int],
    text: str, colour: Colour,
) -> None:
    """The text on its class's colour above the box; below it where there is no room above."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = int(right - left) + 4, int(bottom - top) + 4
    x1, y1, y2 = place
    x = max(0, min(x1, size[0] - width))
    y = TITLE + (y1 - height if y1 >= height else min(y2, size[1] - height))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    pen.text((x + 2 - left, y + 2 - top), text, fill="black" if luminance > 110 else "white", font=font)


def _inside(box: npt.NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = (int(v) for v in np.rint(np.clip(box, 0, [size[0], size[1], size[0], size[1]])))
    return x1, y1, x2, y2
