"""The embedded data set: scenes of models.data.scenes as a Pascal VOC folder. Needs no download."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

from models.data.scenes import SPLITS, draw_scene
from models.data.voc import DataError
from sw.files import whole_folder

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
JPEG_QUALITY = 92
VERSION = 1  # of this generator: another version writes other bytes


@dataclass(frozen=True)
class Config:
    """Everything that decides the bytes of the set; digits.json holds it."""

    hard: bool
    seed: int
    train: int
    val: int
    test: int
    size: int
    version: int = VERSION


def write_digits(
    out: Path,
    *,
    hard: bool = False,
    seed: int = 0,
    train: int = 3000,
    val: int = 300,
    test: int = 300,
    size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the set to the folder `out`, which appears whole or not at all; returns at once if it holds this very set already.

    train, val, test: numbers of scenes. size: side of a scene in pixels, 96 to 1024. progress(done, total) is called after each scene.
    Raises DataError if `out` is something else or a set with another configuration.
    """
    config = Config(hard, seed, train, val, test, size)
    if min(train, val, test) < 1 or seed < 0:
        raise ValueError(f"train, val and test must be at least 1 and seed at least 0, not {config!r}")
    if not 96 <= size <= 1024:
        raise ValueError(f"size must be 96 to 1024 pixels, not {size!r}")
    out = Path(out).resolve()
    if _is_there(out, config):
        return
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    with whole_folder(out) as folder:
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        done = 0
        for split, count in counts.items():
            for index in range(count):
                _write_scene(folder, f"{split}_{index:05d}", config, split, index)
                done += 1
                if progress is not None:
                    progress(done, train + val + test)
        _write_lists(folder, counts)
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
        (folder / "digits.json").write_text(json.dumps(asdict(config), indent=2) + "\n")


def _is_there(out: Path, config: Config) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "digits.json").read_text())
    except (OSError, ValueError):
        raise DataError(f"{out}: exists and is no digits set; choose another folder, or remove it") from None
    if found != asdict(config):
        raise DataError(f"{out}: holds a digits set of another configuration, {found}; choose another folder, or remove it")
    return True


def _write_lists(folder: Path, counts: dict[str, int]) -> None:
    lists = {split: [f"{split}_{index:05d}" for index in range(count)] for split, count in counts.items()}
    lists["trainval"] = lists["train"] + lists["val"]
    for split, names in lists.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def _write_scene(folder: Path, name: str, config: Config, split: str, index: int) -> None:
    scene = draw_scene(config.hard, config.seed, split, index, config.size)
    jpeg = io.BytesIO()
    Image.fromarray(scene.image).save(jpeg, "JPEG", quality=JPEG_QUALITY)
    (folder / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg.getvalue())
    objects = "".join(
        f"\t<object>\n\t\t<name>{escape(CLASSES[mark.label])}</name>\n\t\t<truncated>0</truncated>\n\t\t<difficult>0</difficult>\n\t\t<bndbox>"
        f"<xmin>{mark.box[0] + 1}</xmin><ymin>{mark.box[1] + 1}</ymin><xmax>{mark.box[2]}</xmax><ymax>{mark.box[3]}</ymax></bndbox>\n"
        "\t</object>\n"
        for mark in scene.digits
    )
    (folder / "Annotations" / f"{name}.xml").write_text(
        f"<annotation>\n\t<filename>{name}.jpg</filename>\n\t<source><database>Warploom digits</database></source>\n"
        f"\t<size><width>{config.size}</width><height>{config.size}</height><depth>3</depth></size>\n{objects}</annotation>\n"
    )
