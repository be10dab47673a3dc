"""VOC folders: what is read, and that every bad file is refused with its name before anything is decoded or run."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.voc import MAX_PIXELS, DataError, VocFolder, find_split
from sw.files import whole_file, whole_folder

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd_320"
OBJECT = "<object><name>{name}</name>{flags}<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"


def annotation(*objects: str, width: int = 40, height: int = 30) -> str:
    return f"<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>{''.join(objects)}</annotation>"


def thing(name: str = "cat", box: tuple[object, ...] = (1, 1, 10, 20), flags: str = "") -> str:
    return OBJECT.format(*box, name=name, flags=flags)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of 40x30: one with a cat and a difficult, truncated dog, one with nothing."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "JPEGImages" / "a.png")
    Image.fromarray(pixels).save(tmp_path / "JPEGImages" / "b.jpg")
    dog = thing("dog", (5, 6, 40, 30), "<truncated>1</truncated><difficult>1</difficult>")
    (tmp_path / "Annotations" / "a.xml").write_text(annotation(thing(), dog))
    (tmp_path / "Annotations" / "b.xml").write_text(annotation())
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("a\nb\n")
    return tmp_path


def test_reads_images_boxes_and_flags(folder: Path) -> None:
    data = VocFolder(folder, "trainval")
    data.check(images=True)
    assert (len(data), data.ids, data.classes) == (2, ("a", "b"), ("cat", "dog"))
    first, second = data[0], data[1]
    assert [data[k].id for k in range(len(data))] == ["a", "b"]
    np.testing.assert_array_equal(first.image, np.asarray(Image.open(folder / "JPEGImages" / "a.png")))
    assert first.boxes.tolist() == [[0, 0, 10, 20], [4, 5, 40, 30]]  # edges, from 1-based inclusive
    assert (first.labels.tolist(), first.difficult.tolist(), first.truncated.tolist()) == ([0, 1], [False, True], [False, True])
    assert (second.boxes.shape, second.labels.shape) == ((0, 4), (0,))


def test_given_classes_set_the_labels_and_listed_classes_win_over_found(folder: Path) -> None:
    assert VocFolder(folder, "trainval", ["dog", "bird", "cat"])[0].labels.tolist() == [2, 0]
    (folder / "classes.txt").write_text("dog\ncat\n")
    assert VocFolder(folder, "trainval").classes == ("dog", "cat")


def test_missing_split_falls_back_aloud_or_names_what_is_there(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_split(folder, "train") == "trainval"
    assert "using 'trainval'" in caplog.text
    with pytest.raises(DataError, match=r"val\.txt.*choose one of trainval"):
        find_split(folder, "val")
    with pytest.raises(DataError, match=r"'train' is missing; choose one of trainval"):
        VocFolder(folder, "train")
    with pytest.raises(DataError, match="split must be"):
        VocFolder(folder, "../trainval")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "broken annotation"),
        ("", "broken annotation"),
        ('<!DOCTYPE x [<!ENTITY a "b">]>' + annotation(), "document type or entities"),
        ('<!doctype x SYSTEM "file:///etc/passwd">' + annotation(), "document type or entities"),
        (annotation() + " " * 10**6, "larger than 1,000,000 bytes"),
        (annotation(width=41), "<size> says 41x30, but the image is 40x30"),
        (annotation(thing(box=(0, 1, 10, 20))), "empty or outside the 40x30 image"),
        (annotation(thing(box=(1, 1, 41, 20))), "empty or outside"),
        (annotation(thing(box=(10, 5, 10, 4))), "empty or outside"),
        (annotation(thing(box=(1, 1, "nan", 20))), "must be a number of pixels, not 'nan'"),
        (annotation(thing(box=(1, 1, "1e30", 20))), "must be a number of pixels"),
        (annotation("<object><name>cat</name></object>"), "has no bndbox/xmin"),
        (annotation(thing(name=" ")), "has no name"),
        (annotation(thing(flags="<difficult>yes</difficult>")), "difficult must be 0 or 1"),
        (annotation(thing("bird")), "class 'bird' is not among the 2 classes of the model"),
    ],
    ids=lambda v: v[:24].replace(" ", "_") if len(v) < 80 else "xml",
)
def test_refuses_annotations(folder: Path, text: str, message: str) -> None:
    (folder / "Annotations" / "b.xml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        VocFolder(folder, "trainval", ["cat", "dog"]).check()
    assert str(folder / "Annotations" / "b.xml") in str(caught.value)


def test_refuses_a_document_type_in_another_encoding(folder: Path) -> None:
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE x [<!ENTITY a "b">]>' + annotation()
    (folder / "Annotations" / "b.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match="zero bytes"):
        VocFolder(folder, "trainval", ["cat", "dog"]).check()
    text = '<?xml version="1.0" encoding="cp037"?><!DOCTYPE x [<!ENTITY a "b">]>' + annotation()
    (folder / "Annotations" / "b.xml").write_bytes(text.encode("cp037"))
    with pytest.raises(DataError, match="broken annotation"):
        VocFolder(folder, "trainval", ["cat", "dog"]).check()


def huge_png(width: int, height: int) -> bytes:
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [8193, 10000, 100000], ids=["past_ours", "past_pillow_warning", "past_pillow_error"])
def test_refuses_huge_images_unread(folder: Path, side: int) -> None:
    assert side * side > MAX_PIXELS
    (folder / "JPEGImages" / "a.png").write_bytes(huge_png(side, side))
    with pytest.raises(DataError, match=r"a\.png.*(exceeds 67,108,864 pixels|decompression bomb)"):
        VocFolder(folder, "trainval").check()


def test_refuses_missing_corrupt_and_cut_off_images(folder: Path) -> None:
    data = VocFolder(folder, "trainval")
    path = folder / "JPEGImages" / "b.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"b\.jpg: image is corrupt or cut off"):
        data[1]
    with pytest.raises(DataError, match=r"b\.jpg"):
        data.check(images=True)
    path.write_bytes(b"GIF89a" + whole[6:])
    with pytest.raises(DataError, match=r"b\.jpg: cannot be read as JPEG or PNG"):
        data.check()
    path.unlink()
    with pytest.raises(DataError, match=r"b\.jpg: image is missing"):
        data.check()
    (folder / "Annotations" / "a.xml").unlink()
    with pytest.raises(DataError, match=r"a\.xml: cannot be read"):
        data[0]


@pytest.mark.parametrize(
    ("lines", "message"), [("../a\n", "without folders"), ("a\\b\n", "without folders"), ("a\na\n", "twice"), ("\n", "lists no image")]
)
def test_refuses_split_lists(folder: Path, lines: str, message: str) -> None:
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        VocFolder(folder, "trainval")


def test_refuses_a_class_list_that_the_model_does_not_know(folder: Path) -> None:
    (folder / "classes.txt").write_text("cat\ndog\nbird\n")
    with pytest.raises(DataError, match=r"classes\.txt: class 'bird' is not among the 2 classes of the model \(cat, dog\)"):
        VocFolder(folder, "trainval", ["cat", "dog"])
    with pytest.raises(DataError, match="must be different"):
        VocFolder(folder, "trainval", ["cat", "cat"])


def test_interrupted_outputs_leave_the_earlier_ones_whole(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    with whole_file(kept) as path:
        path.write_text("first")
    with pytest.raises(KeyboardInterrupt), whole_file(kept) as path:
        path.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "folder") as path:
        (path / "part").write_text("half")
        raise OSError(28, "disk full")
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]
    assert kept.read_text() == "first"


@pytest.mark.skipif(not BCCD.is_dir(), reason="../shared/data/bccd_320 is not here")
def test_blood_cells_are_read_whole() -> None:
    data = VocFolder(BCCD, "train")
    data.check()
    assert (len(data), data.classes) == (205, ("Platelets", "RBC", "WBC"))
    assert data[0].image.shape == (240, 320, 3)
