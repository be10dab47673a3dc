"""Scenes of real handwritten digits on real photographs: what models.data.digits writes.

Digits are scikit-learn's 1,797 (8x8 pixels, from the UCI optical recognition set), grounds are crops of its two sample photographs.
Both are parted between train, val and test: a digit or a photo pixel that one split shows, no other split shows. Every scene holds its
digits and two distractors: a mirrored digit, half a digit, or a texture patch. A stroke's pixels (those drawn in full ink) are verified on
the final picture, before JPEG, to differ in luminance from what they cover. A scene depends on (seed, split, index) only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

SPLITS = ("train", "val", "test")
SHARES = (0.7, 0.15, 0.15)  # of the digits of each class
PHOTO_CUTS = (0.5, 0.75)  # of a photo's width: train | val | test
CROP = (72, 140)  # side of the ground in photo pixels, before it is scaled to the scene
PATCH_CROP = (24, 60)  # the same of a texture patch
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # luminance, ITU-R BT.601
MAX_COVER = 0.1  # of a box that others may cover

MIRRORED = (3, 6, 7, 9)  # no digit when mirrored; 2 and 5 turn into each other, 0, 1, 8 and open 4s stay themselves
# Halves that are no digit: (class, keep the upper half). The upper half of 8 or 9 is a 0, a half of 1 is a 1.
HALVES = ((0, True), (0, False), (2, True), (3, True), (3, False), (4, True), (5, False))

Image8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]  # x1, y1, x2, y2: edges in pixels


@dataclass(frozen=True)
class Style:
    """What a scene is made of; heights in pixels, luminance in 0..255."""

    digits: tuple[int, int]
    height: tuple[int, int]
    min_contrast: int  # least luminance distance of a stroke from what is behind it
    max_contrast: int


EASY = Style((1, 4), (18, 48), 100, 255)
HARD = Style((3, 8), (10, 48), 77, 160)  # 77 of 255 is a contrast of 0.3


@dataclass(frozen=True)
class Mark:
    """A digit (label 0..9) or a distractor (-1) on a scene."""

    label: int
    source: int  # index into scikit-learn's digits; -1: a texture patch
    box: Box  # tight around the ink
    ink: npt.NDArray[np.bool_]  # (h, w) inside the box: pixels in full ink
    behind: Floats  # (h, w) luminance of what was there before
    light: bool  # the ink is lighter than what is behind it


@dataclass(frozen=True)
class Scene:
    image: Image8  # (size, size, 3)
    digits: tuple[Mark, ...]
    distractors: tuple[Mark, ...]
    grounds: tuple[tuple[int, Box], ...]  # photo and the part of it that is shown: the ground, then the texture patches


def draw_scene(hard: bool, seed: int, split: str, index: int, size: int) -> Scene:
    """Scene `index` of `split`: (size, size, 3) with its marks. Grounds on which the digits find no place are drawn anew."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    style = HARD if hard else EASY
    while True:
        painter = _Painter(rng, style, seed, split, size)
        count = int(rng.integers(style.digits[0], style.digits[1] + 1))
        kinds = [painter.distract] * 2 + [painter.digit] * count
        if all(any(kind() for _ in range(30)) for kind in kinds):
            return Scene(painter.image, tuple(painter.digits), tuple(painter.distractors), tuple(painter.grounds))


def luminance(image: npt.NDArray[np.generic]) -> Floats:
    """(H, W, 3) RGB to (H, W) luminance, 0..255."""
    grey: Floats = image.astype(np.float32) @ GREY
    return grey


class _Painter:
    """A scene in the making."""

    def __init__(self, rng: np.random.Generator, style: Style, seed: int, split: str, size: int) -> None:
        self.rng, self.style, self.split, self.size = rng, style, split, size
        self.pool = digit_pool(seed)[split]
        self.grounds: list[tuple[int, Box]] = []
        ground = self._crop(size, CROP)
        level = float(rng.uniform(0.55, 1.0))  # exposure: leaves room for lighter or darker ink
        self.image: Image8 = np.rint(ground * level + rng.uniform(0, 255 * (1 - level))).astype(np.uint8)
        self.digits: list[Mark] = []
        self.distractors: list[Mark] = []

    def _crop(self, size: int, sides: tuple[int, int]) -> Floats:
        """A random square of the split's part of a photo, scaled to `size` pixels and mirrored half the time."""
        photo = int(self.rng.integers(2))
        x1, y1, x2, y2 = photo_region(photo, self.split)
        side = int(self.rng.integers(sides[0], sides[1] + 1))
        left, top = int(self.rng.integers(x1, x2 - side + 1)), int(self.rng.integers(y1, y2 - side + 1))
        crop = photos()[photo][top : top + side, left : left + side]  # cut first: resampling must not look across the region's edge
        pixels = np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC), np.float32)
        self.grounds.append((photo, (left, top, left + side, top + side)))
        return pixels[:, ::-1] if self.rng.random() < 0.5 else pixels

    def digit(self) -> bool:
        """Places one digit, if place and contrast allow."""
        label = int(self.rng.integers(10))
        source = int(self.rng.choice(self.pool[label]))
        return self._place(label, source, digit_images()[source], self.digits)

    def distract(self) -> bool:
        """Places one distractor: a mirrored digit, half a digit, or a patch of texture."""
        kind = int(self.rng.integers(3))
        if kind == 0:
            return self._patch()
        if kind == 1:
            source = int(self.rng.choice(self.pool[int(self.rng.choice(MIRRORED))]))
            glyph = digit_images()[source][:, ::-1]
        else:
            label, upper = HALVES[int(self.rng.integers(len(HALVES)))]
            source = int(self.rng.choice(self.pool[label]))
            glyph = digit_images()[source].copy()
            glyph[slice(4, 8) if upper else slice(0, 4)] = 0
        return self._place(-1, source, glyph, self.distractors)

    def _patch(self) -> bool:
        side = int(self.rng.integers(self.style.height[0], 41))
        box = self._spot(side, side)
        if box is None:
            return False
        pixels = self._crop(side, PATCH_CROP)
        _window(self.image, box)[...] = np.clip(np.rint(pixels), 0, 255)
        ink = np.zeros((side, side), np.bool_)
        self.distractors.append(Mark(-1, -1, box, ink, np.zeros((side, side), np.float32), False))
        return True

    def _place(self, label: int, source: int, glyph: Image8, marks: list[Mark]) -> bool:
        """Draws an 8x8 glyph in one colour; undone, False, if any mark's ink is then too close to what is behind it."""
        low, high = self.style.height
        cover = _enlarge(glyph, int(self.rng.integers(low, high + 1)))
        height, width = cover.shape
        if label >= 0 and not low <= height <= high:
            return False
        box = self._spot(height, width)
        if box is None:
            return False
        before, ink = self.image.copy(), cover == 1
        behind = _window(before, box).astype(np.float32)
        colour = self._colour(luminance(behind)[ink])
        if colour is None:
            return False
        rgb, alpha, light = colour
        blended = behind + (alpha * cover)[..., None] * (rgb - behind)
        _window(self.image, box)[...] = np.clip(np.rint(blended), 0, 255)
        marks.append(Mark(label, source, box, ink, luminance(behind), light))
        if all(contrast(self.image, mark) >= self.style.min_contrast for mark in (*self.digits, *self.distractors) if mark.ink.any()):
            return True
        marks.pop()
        self.image = before
        return False

    def _spot(self, height: int, width: int) -> Box | None:
        """A random place where no box, old or new, is covered by more than MAX_COVER in all; None if the dice say so."""
        left, top = (int(self.rng.integers(1, self.size - length)) for length in (width, height))
        box = (left, top, left + width, top + height)
        boxes = [mark.box for mark in (*self.digits, *self.distractors)] + [box]
        for one in boxes:
            covered = sum(_common_area(one, other) for other in boxes if other is not one)
            if covered > MAX_COVER * (one[2] - one[0]) * (one[3] - one[1]):
                return None
        return box

    def _colour(self, behind: Floats) -> tuple[Floats, float, bool] | None:
        """(RGB, opacity, lighter?) of an ink whose luminance is far enough from all of `behind`; None if there is no such ink."""
        alpha = float(self.rng.uniform(0.9, 1.0))
        low, high = ((c + 2) / alpha for c in (self.style.min_contrast, self.style.max_contrast))  # 2: rounding of three channels
        spans = []
        if (least := float(behind.max()) + low) <= 255:
            spans.append((least, max(least, min(255.0, float(behind.max()) + high)), True))
        if (most := float(behind.min()) - low) >= 0:
            spans.append((max(0.0, min(most, float(behind.min()) - high)), most, False))
        if not spans:
            return None
        first, last, light = spans[int(self.rng.integers(len(spans)))]
        target = float(self.rng.uniform(first, last))
        rgb = self.rng.uniform(0, 255, 3).astype(np.float32)
        grey = float(rgb @ GREY)
        rgb = rgb * (target / grey) if target < grey else rgb + (255 - rgb) * ((target - grey) / max(255 - grey, 1e-3))
        return rgb.astype(np.float32), alpha, light


def contrast(image: Image8, mark: Mark) -> float:
    """Least luminance distance, in the mark's own direction, of its inked pixels in `image` from what was behind them."""
    change = luminance(_window(image, mark.box)) - mark.behind
    return float((change if mark.light else -change)[mark.ink].min())


def _window(image: Image8, box: Box) -> Image8:
    return image[box[1] : box[3], box[0] : box[2]]


def _common_area(a: Box, b: Box) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _enlarge(glyph: Image8, height: int) -> Floats:
    """An 8x8 glyph as coverage (h, w) in 0..1, about `height` tall for a full digit, cut tight around what is covered at least half."""
    side = round(10 * height / 7.5)  # a full digit's 8 rows measure about 7.5 when the soft edge is cut
    smooth = np.asarray(Image.fromarray(np.pad(glyph, 1)).resize((side, side), Image.Resampling.BICUBIC), np.float32)
    cover: Floats = np.clip((smooth / 255 - 0.3) / 0.25, 0, 1).astype(np.float32)
    rows, columns = np.nonzero((cover >= 0.5).any(axis=1))[0], np.nonzero((cover >= 0.5).any(axis=0))[0]
    return cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@lru_cache(maxsize=1)
def _load_digits() -> tuple[Image8, npt.NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # slow to import, and needed only here

    bunch = load_digits()
    peak = bunch.images.max(axis=(1, 2), keepdims=True)
    return np.rint(bunch.images * (255 / peak)).astype(np.uint8), np.asarray(bunch.target, np.int64)


def digit_images() -> Image8:
    """(1797, 8, 8), ink 0..255, every digit's darkest pixel 255."""
    return _load_digits()[0]


@lru_cache(maxsize=1)
def photos() -> tuple[Image8, ...]:
    """scikit-learn's two photographs, (427, 640, 3) RGB."""
    from sklearn.datasets import load_sample_images

    return tuple(np.asarray(image, np.uint8) for image in load_sample_images().images)


def photo_region(photo: int, split: str) -> Box:
    """The part of a photo that a split may show; the three parts stand side by side."""
    height, width = photos()[photo].shape[:2]
    edges = [0, *(round(cut * width) for cut in PHOTO_CUTS), width]
    part = SPLITS.index(split)
    return edges[part], 0, edges[part + 1], height


@lru_cache(maxsize=4)
def digit_pool(seed: int) -> dict[str, list[npt.NDArray[np.int64]]]:
    """For each split and class the indices of its digits: a seeded permutation of each class, cut in three."""
    rng = np.random.default_rng([seed, len(SPLITS)])
    pool: dict[str, list[npt.NDArray[np.int64]]] = {split: [] for split in SPLITS}
    for label in range(10):
        indices = rng.permutation(np.nonzero(_load_digits()[1] == label)[0])
        cuts = np.rint(np.cumsum(SHARES[:-1]) * len(indices)).astype(int)
        for split, part in zip(SPLITS, np.split(indices, cuts), strict=True):
            pool[split].append(part)
    return pool
