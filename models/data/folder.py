"""Data sets of either layout behind one function: Pascal VOC folders, COCO folders, and several VOC years joined."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from models.data import coco, voc
from models.data.voc import DataError, Sample, VocFolder


class Folder(Protocol):
    """A split of a data set as a sequence of Samples."""

    split: str
    classes: tuple[str, ...]
    #: Whether boxes marked difficult are taught (VOC) or only ignored when scoring (COCO's crowds).
    teaches_difficult: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def check(self, images: bool = False, progress: Callable[[int, int], None] | None = None) -> None:
        """Raise DataError at the first fault."""


class Joined:
    """Several splits one after the other, such as VOC2007's and VOC2012's trainval."""

    teaches_difficult = True

    def __init__(self, parts: Sequence[VocFolder], split: str) -> None:
        self.parts, self.split, self.classes = parts, split, parts[0].classes

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Sample:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)

    def check(self, images: bool = False, progress: Callable[[int, int], None] | None = None) -> None:
        for part in self.parts:
            part.check(images, progress)


def is_coco(root: Path) -> bool:
    """Whether ``root`` has COCO's layout."""
    return (root / "annotations").is_dir()


def has_split(root: Path, split: str) -> bool:
    """Whether the data set has that very split; no stand-ins."""
    root = Path(root)
    if "+" in split or "/" in split:
        return all((root / year / "ImageSets" / "Main" / f"{name}.txt").is_file() for year, name in _years(split))
    return coco.has_split(root, split) if is_coco(root) else (root / "ImageSets" / "Main" / f"{split}.txt").is_file()


def open_folder(root: Path | str, split: str, classes: Sequence[str] | None = None) -> Folder:
    """The split of a VOC folder, of a COCO folder (annotations/instances_*.json), or of several VOC years under one root, written
    ``VOC2007/trainval+VOC2012/trainval``. Where a plain split is missing its stand-in is used (train and trainval, val and test).

    Raises DataError.
    """
    root = Path(root)
    if "+" in split or "/" in split:
        first, *rest = _years(split)
        start = VocFolder(root / first[0], first[1], classes)
        return Joined([start, *(VocFolder(root / year, name, start.classes) for year, name in rest)], split)
    if is_coco(root):
        return coco.CocoFolder(root, split, classes)
    return VocFolder(root, voc.find_split(root, split), classes)


def _years(split: str) -> list[tuple[str, str]]:
    pairs = [tuple(part.split("/")) for part in split.split("+")]
    if not all(len(pair) == 2 and all(name and name not in (".", "..") for name in pair) for pair in pairs):
        raise DataError(f"a split of several years must be like VOC2007/trainval+VOC2012/trainval, not {split!r}")
    return [(year, name) for year, name in pairs]
