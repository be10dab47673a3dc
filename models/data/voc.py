"""Pascal VOC folders: JPEGImages/, Annotations/ and ImageSets/Main/<split>.txt. NumPy and Pillow only.

Files are not trusted: sizes are limited before anything is decoded, XML with a document type or entities is refused unread, and
whatever is wrong becomes a DataError that names the file, the fault and the cure.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image

log = logging.getLogger(__name__)

MAX_PIXELS = 64 * 2**20
MAX_XML_BYTES = 10**6
MAX_LIST_BYTES = 16 * 10**6
MAX_IMAGE_BYTES = 256 * 10**6
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
FALLBACKS = {"train": ("trainval",), "val": ("test",), "test": ("val",), "trainval": ("train",)}


class DataError(ValueError):
    """A data set that cannot be used: the message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Sample:
    """One image with its boxes."""

    id: str
    image: npt.NDArray[np.uint8]  # (H, W, 3) RGB
    boxes: npt.NDArray[np.float32]  # (n, 4) x1, y1, x2, y2: edges in pixels, 0 <= x1 < x2 <= W
    labels: npt.NDArray[np.int64]  # (n,) index into the classes
    difficult: npt.NDArray[np.bool_]  # (n,)
    truncated: npt.NDArray[np.bool_]  # (n,)
    areas: npt.NDArray[np.float64] | None = None  # (n,) of the objects themselves, square pixels, where the data set says


@dataclass(frozen=True)
class Annotation:
    """What one XML file says; boxes as in Sample, checked against nothing yet but their order."""

    path: Path
    size: tuple[int, int] | None  # (width, height)
    names: tuple[str, ...]
    boxes: npt.NDArray[np.float32]
    difficult: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]


class VocFolder:
    """A split of a VOC folder as a sequence of Samples, decoded when asked for.

    Parameters
    ----------
    root: the folder that holds JPEGImages, Annotations and ImageSets/Main.
    split: name of a list in ImageSets/Main, without ".txt".
    classes: names in the order of the labels, usually the model's. None: the lines of root/classes.txt if there is one, else the
        sorted names of all annotations of the folder.

    Raises DataError; `check` finds every fault of the annotations before work is spent.
    """

    teaches_difficult = True

    def __init__(self, root: Path | str, split: str, classes: Sequence[str] | None = None) -> None:
        self.root, self.split = Path(root), split
        self.ids = _read_split(self.root, split)
        listed = _read_classes(self.root)
        if classes is None:
            self.classes = listed or _collect_classes(self.root)
        else:
            self.classes = _unique_names(classes, "classes")
            for name in listed or ():
                if name not in self.classes:
                    raise _unknown_class(self.root / "classes.txt", name, self.classes)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Decodes image and annotation `index`; raises DataError, or IndexError past the end (so the folder can be iterated)."""
        name = self.ids[index]
        image = read_image(self._image_path(name))
        return self._sample(name, image)

    def check(self, images: bool = False, progress: Callable[[int, int], None] | None = None) -> None:
        """Validates all annotations of the split against the images' headers (`images`: decodes the images too).

        `progress(done, total)` is called after each. Raises DataError at the first fault.
        """
        for done, name in enumerate(self.ids, start=1):
            path = self._image_path(name)
            if images:
                self._sample(name, read_image(path))
            else:
                width, height = image_size(path)
                self._labels(self._checked(name, width, height))
            if progress is not None:
                progress(done, len(self.ids))

    def _image_path(self, name: str) -> Path:
        for suffix in SUFFIXES:
            path = self.root / "JPEGImages" / (name + suffix)
            if path.is_file():
                return path
        raise DataError(f"{self.root / 'JPEGImages' / name}.jpg: image is missing (nor is there a .png); restore it or take {name!r} "
                        f"out of ImageSets/Main/{self.split}.txt")

    def _sample(self, name: str, image: npt.NDArray[np.uint8]) -> Sample:
        found = self._checked(name, image.shape[1], image.shape[0])
        return Sample(name, image, found.boxes, self._labels(found), found.difficult, found.truncated)

    def _checked(self, name: str, width: int, height: int) -> Annotation:
        found = read_annotation(self.root / "Annotations" / f"{name}.xml")
        if found.size is not None and found.size != (width, height):
            raise DataError(f"{found.path}: <size> says {found.size[0]}x{found.size[1]}, but the image is {width}x{height}; "
                            "annotate the image that is there")
        for label, (x1, y1, x2, y2) in zip(found.names, found.boxes.tolist(), strict=True):
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise DataError(f"{found.path}: the box of {label!r}, {x1 + 1:g} {y1 + 1:g} {x2:g} {y2:g} (xmin ymin xmax ymax), is empty "
                                f"or outside the {width}x{height} image; VOC boxes are 1-based and inclusive, 1 <= xmin <= xmax <= width")
        return found

    def _labels(self, found: Annotation) -> npt.NDArray[np.int64]:
        for name in found.names:
            if name not in self.classes:
                raise _unknown_class(found.path, name, self.classes)
        return np.array([self.classes.index(name) for name in found.names], np.int64)


def find_split(root: Path | str, split: str = "train") -> str:
    """The name of the split to use for `split`: itself if listed, else its stand-in, with a warning in the log; DataError if neither is.

    train -> trainval, trainval -> train, val -> test, test -> val.
    """
    root = Path(root)
    if _split_path(root, split).is_file():
        return split
    for other in FALLBACKS.get(split, ()):
        if _split_path(root, other).is_file():
            log.warning("%s has no split %r: using %r instead (figures on it are not independent if it is used twice)", root, split, other)
            return other
    raise _missing_split(root, split)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header of a JPEG or PNG file; DataError if unreadable or beyond MAX_PIXELS."""
    with _open_image(path) as image:
        return image.size


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Decodes a JPEG or PNG file to (H, W, 3) RGB; DataError if missing, corrupt, cut off or beyond MAX_PIXELS.

    EXIF rotation is ignored, as in VOC: boxes refer to the pixels as stored.
    """
    with _open_image(path) as image:
        try:
            image.load()
            if image.mode == "P":
                image = image.convert("RGBA")
            if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise ValueError(f"mode {image.mode} is not 8 bits a channel")
            return np.array(image.convert("RGB"), np.uint8)
        except Exception as error:  # decoders raise many kinds, all of which mean: this file is no good
            raise DataError(f"{path}: image is corrupt or cut off ({error}); replace the file") from error


def _open_image(path: Path) -> Image.Image:
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise ValueError(f"file is larger than {MAX_IMAGE_BYTES:,} bytes")
        with warnings.catch_warnings():  # our limit is below Pillow's and does not depend on its settings
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=("JPEG", "PNG"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: image is missing; restore it") from error
    except Exception as error:
        raise DataError(f"{path}: cannot be read as JPEG or PNG ({error}); replace the file") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise DataError(f"{path}: image of {image.width}x{image.height} exceeds {MAX_PIXELS:,} pixels; scale it down")
    return image


def read_annotation(path: Path) -> Annotation:
    """Parses one VOC annotation; DataError if it is missing, too large, broken, or has a document type or entities."""
    try:
        root = ElementTree.fromstring(_read_text(path, MAX_XML_BYTES, xml=True))
        size = root.find("size")
        objects = root.findall("object")
        boxes = [[_number(o, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        return Annotation(
            path,
            None if size is None else (int(_number(size, "width")), int(_number(size, "height"))),
            tuple(_text(o, "name") for o in objects),
            np.array(boxes, np.float32).reshape(-1, 4) - np.array([1, 1, 0, 0], np.float32),
            np.array([_flag(o, "difficult") for o in objects], np.bool_),
            np.array([_flag(o, "truncated") for o in objects], np.bool_),
        )
    except (ElementTree.ParseError, _BadField) as error:
        raise DataError(f"{path}: broken annotation ({error}); write it again as Pascal VOC XML") from error


class _BadField(Exception):
    """A field that is missing or malformed; read_annotation adds the file's name."""


def _text(node: ElementTree.Element, field: str) -> str:
    text = (node.findtext(field) or "").strip()
    if not text:
        raise _BadField(f"<{node.tag}> has no {field}")
    return text


def _number(node: ElementTree.Element, field: str) -> float:
    text = _text(node, field)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 2**24:  # float32 holds whole pixels up to here; false for NaN too
        raise _BadField(f"{field} must be a number of pixels, not {text!r}")
    return value


def _flag(node: ElementTree.Element, field: str) -> bool:
    text = (node.findtext(field) or "0").strip()
    if text not in ("0", "1"):
        raise _BadField(f"{field} must be 0 or 1, not {text!r}")
    return text == "1"


def _read_text(path: Path, limit: int, xml: bool = False) -> str:
    """The file's text, UTF-8 or else Latin-1, so that the search for a document type sees what the parser sees."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it") from error
    if len(data) > limit:
        raise DataError(f"{path}: larger than {limit:,} bytes; this is no file of a VOC folder")
    if b"\0" in data:
        raise DataError(f"{path}: holds zero bytes; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    if xml and re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise DataError(f"{path}: XML with a document type or entities is refused; remove <!DOCTYPE ...> from it")
    return text


def _split_path(root: Path, split: str) -> Path:
    if not split or split != Path(split).name or "\\" in split:
        raise DataError(f"split must be the name of a list in {root / 'ImageSets' / 'Main'}, not {split!r}")
    return root / "ImageSets" / "Main" / f"{split}.txt"


def _missing_split(root: Path, split: str) -> DataError:
    there = sorted(p.stem for p in (root / "ImageSets" / "Main").glob("*.txt"))
    cure = f"choose one of {', '.join(there)}" if there else "a VOC folder holds JPEGImages, Annotations and ImageSets/Main/train.txt"
    return DataError(f"{_split_path(root, split)}: split {split!r} is missing; {cure}")


def _read_split(root: Path, split: str) -> tuple[str, ...]:
    path = _split_path(root, split)
    if not path.is_file():
        raise _missing_split(root, split)
    ids = [line.strip() for line in _read_text(path, MAX_LIST_BYTES).splitlines() if line.strip()]
    if not ids:
        raise DataError(f"{path}: lists no image; write one image name a line, without suffix")
    seen: set[str] = set()
    for name in ids:
        if "/" in name or "\\" in name or name in (".", ".."):
            raise DataError(f"{path}: {name!r} must be a file name without folders; write one image name a line, without suffix")
        if name in seen:
            raise DataError(f"{path}: lists {name!r} twice; remove one")
        seen.add(name)
    return tuple(ids)


def _read_classes(root: Path) -> tuple[str, ...]:
    path = root / "classes.txt"
    if not path.is_file():
        return ()
    return _unique_names([line.strip() for line in _read_text(path, MAX_XML_BYTES).splitlines() if line.strip()], str(path))


def _collect_classes(root: Path) -> tuple[str, ...]:
    names = {name for path in sorted((root / "Annotations").glob("*.xml")) for name in read_annotation(path).names}
    if not names:
        raise DataError(f"{root / 'Annotations'}: no annotation holds an object; a VOC folder holds one XML file an image")
    return tuple(sorted(names))


def _unique_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    if not names or len(set(names)) != len(names) or not all(names):
        raise DataError(f"{where}: class names must be different, at least one, and none empty, not {list(names)!r}")
    return tuple(names)


def _unknown_class(path: Path, name: str, classes: Sequence[str]) -> DataError:
    known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    return DataError(f"{path}: class {name!r} is not among the {len(classes)} classes of the model ({known}); "
                     "use data with the model's classes, or train a model for this data")
