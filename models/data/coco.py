"""COCO folders: annotations/instances_<split>.json and the images in <split>/, images/<split>/ or images/.

Files are not trusted: the JSON file is limited in size, file names stay inside the folder, and whatever is wrong becomes a DataError.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.data.voc import DataError, Sample, image_size, read_image

MAX_JSON_BYTES = 2**30
#: Names that stand for a split, tried in order.
YEARS = ("", "2017", "2014")
#: Lists of the file and what each of their entries must have.
NEEDED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def _json_path(root: Path, split: str) -> Path | None:
    if not split or split != Path(split).name or "\\" in split:
        raise DataError(f"split must be the name of a file in {root / 'annotations'}, without instances_ and .json, not {split!r}")
    paths = (root / "annotations" / f"instances_{split}{year}.json" for year in YEARS)
    return next((path for path in paths if path.is_file()), None)


def has_split(root: Path, split: str) -> bool:
    """Whether there are annotations of ``split`` (train finds train2017 too)."""
    return _json_path(Path(root), split) is not None


class CocoFolder:
    """A split of a COCO folder as a sequence of Samples; a box of a crowd is marked difficult and is not taught.

    Parameters: as VocFolder's. classes None: the file's categories in order of their ids. Boxes are clipped to the image; those that are
    then empty are left out, as COCO itself has some. ``Sample.areas`` are the annotations' (of the segmentation), by which COCO tells small
    from large.
    """

    teaches_difficult = False

    def __init__(self, root: Path | str, split: str, classes: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        path = _json_path(self.root, split)
        if path is None:
            there = ", ".join(sorted(p.stem.removeprefix("instances_") for p in (self.root / "annotations").glob("instances_*.json")))
            raise DataError(f"{self.root / 'annotations'}/instances_{split}.json is missing; there is {there or 'none at all'}")
        self.path, self.split = path, path.stem.removeprefix("instances_")
        content = _read(path)
        names = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        self.classes = tuple(classes) if classes is not None else tuple(names.values())
        if foreign := [name for name in names.values() if name not in self.classes]:
            raise DataError(f"{path}: category {foreign[0]!r} is not among the {len(self.classes)} classes of the model")
        self.labels = {number: self.classes.index(name) for number, name in names.items()}
        self.images = sorted(content["images"], key=lambda image: image["id"])
        self.ids = tuple(Path(image["file_name"]).stem for image in self.images)
        self.boxes: dict[int, list[Any]] = {}
        for each in content["annotations"]:
            self.boxes.setdefault(each["image_id"], []).append(each)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        pixels = read_image(self._image_path(image["file_name"]))
        if pixels.shape[:2] != (image["height"], image["width"]):
            raise DataError(f"{self.path}: {image['file_name']} is {pixels.shape[1]}x{pixels.shape[0]}, "
                            f"not {image['width']}x{image['height']}")
        height, width = pixels.shape[:2]
        found = [each for each in self.boxes.get(image["id"], []) if self._kept(each, width, height)]
        corners = [(x, y, x + w, y + h) for x, y, w, h in (each["bbox"] for each in found)]
        boxes = np.clip(np.array(corners, np.float32).reshape(-1, 4), 0, np.array([width, height, width, height], np.float32))
        crowd = np.array([bool(each.get("iscrowd", 0)) for each in found], np.bool_)
        areas = np.array([float(each.get("area", each["bbox"][2] * each["bbox"][3])) for each in found], np.float64)
        labels = np.array([self._label(each) for each in found], np.int64)
        return Sample(self.ids[index], pixels, boxes, labels, crowd, np.zeros(len(found), np.bool_), areas)

    def check(self, images: bool = False, progress: Callable[[int, int], None] | None = None) -> None:
        """Validate every annotation against the images' headers (``images``: decode them too). DataError at the first fault."""
        for done, image in enumerate(self.images, start=1):
            if images:
                _ = self[done - 1]
            elif image_size(self._image_path(image["file_name"])) != (image["width"], image["height"]):
                raise DataError(f"{self.path}: {image['file_name']} has another size than the annotations say")
            for each in self.boxes.get(image["id"], []):
                self._label(each)
            if progress is not None:
                progress(done, len(self.images))

    def _label(self, each: dict[str, Any]) -> int:
        try:
            return self.labels[each["category_id"]]
        except KeyError:
            raise DataError(f"{self.path}: annotation {each.get('id')} has category {each.get('category_id')!r}, which is none") from None

    def _kept(self, each: dict[str, Any], width: int, height: int) -> bool:
        try:
            x, y, w, h = map(float, each["bbox"])
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{self.path}: annotation {each.get('id')} needs a bbox of four numbers") from None
        return w > 0 and h > 0 and min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0)

    def _image_path(self, name: str) -> Path:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{self.path}: file name {name!r} leaves the folder")
        for folder in (self.split, f"images/{self.split}", "images"):
            if (path := self.root / folder / name).is_file():
                return path
        raise DataError(f"{self.root / self.split / name}: image is missing; restore it or take it out of {self.path.name}")


def _read(path: Path) -> dict[str, Any]:
    """The parsed file, with the lists that are needed, every entry with its keys."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DataError(f"{path}: larger than {MAX_JSON_BYTES:,} bytes")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    for name, keys in NEEDED.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(each, dict) and set(keys) <= set(each) for each in entries):
            raise DataError(f"{path}: needs a list {name!r} of objects with {', '.join(keys)}")
    if not content["images"] or not content["categories"]:
        raise DataError(f"{path}: lists no image or no category")
    result: dict[str, Any] = content
    return result
