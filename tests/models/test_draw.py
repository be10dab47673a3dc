"""Pictures of detections: boxes in their class's colour where they belong, written whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.voc import Sample
from models.draw import GAP, TITLE, class_colour, draw_pair
from sw.decode import Detections

CLASSES = ("cat", "dog", "bird")
IMAGE = np.full((64, 128, 3), 128, np.uint8)
TRUTH = Sample("s", IMAGE, np.array([[8, 24, 40, 56]], np.float32), np.array([1]), np.array([True]), np.array([False]))
FOUND = Detections(np.array([[64, 20, 100, 60], [-9, 30, 200, 70]], np.float32), np.array([0.9, 0.2], np.float32), np.array([2, 0]))


def test_boxes_stand_in_their_panel_in_their_colour(tmp_path: Path) -> None:
    draw_pair(IMAGE, TRUTH, FOUND, CLASSES, tmp_path / "sub" / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "sub" / "a.png"))
    assert sheet.shape == (64 * 4 + TITLE, 2 * 512 + GAP, 3)
    left, right = sheet[TITLE:, :512], sheet[TITLE:, 512 + GAP :]
    for panel, label, edges in ((left, 2, (64, 20, 100, 60)), (right, 1, (8, 24, 40, 56))):
        x1, y1, x2, y2 = (4 * edge for edge in edges)
        drawn = (panel == class_colour(label, 3)).all(axis=2)
        assert drawn[y1:y2, x1].all()
        assert drawn[y2 - 1, x1:x2].all()
        assert drawn[y1:y2, x2 - 1].all()
        assert drawn[: y1 - 1].any()  # the caption, above
    assert not (right == class_colour(2, 3)).all(axis=2).any()
    assert (left == class_colour(0, 3)).all(axis=2)[120:, 0].any()  # clipped to the image


def test_no_box_at_all_and_no_class_in_another_one_s_colour(tmp_path: Path) -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    draw_pair(IMAGE, TRUTH, nothing, CLASSES, tmp_path / "a.png")
    left = np.asarray(Image.open(tmp_path / "a.png"))[TITLE:, :512]
    assert (left == 128).all()
    for count in (3, 10, 20, 80):
        assert len({class_colour(label, count) for label in range(count)}) == count


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["ctrl_c", "disk_full"])
def test_interruption_keeps_the_earlier_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    path = tmp_path / "a.png"
    draw_pair(IMAGE, TRUTH, FOUND, CLASSES, path)
    before = path.read_bytes()

    def half(self: Image.Image, target: Path, kind: str) -> None:
        Path(target).write_bytes(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(type(error)):
        draw_pair(IMAGE, TRUTH, FOUND, CLASSES, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_refuses_images_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image must be uint8"):
        draw_pair(IMAGE[..., 0], TRUTH, FOUND, CLASSES, tmp_path / "a.png")
