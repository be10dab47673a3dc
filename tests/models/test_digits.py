"""The embedded set keeps its promises, measured here on the scenes' final pixels."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models.data.digits as digits
from models.data.digits import CLASSES, write_digits
from models.data.scenes import HARD, SPLITS, Scene, digit_pool, draw_scene, photo_region, photos
from models.data.voc import DataError, VocFolder

COUNTS: dict[str, Any] = {"train": 6, "val": 3, "test": 3}


def scenes(hard: bool, count: int = 40) -> dict[str, list[Scene]]:
    return {split: [draw_scene(hard, 0, split, index, 128) for index in range(count)] for split in SPLITS}


@pytest.fixture(scope="module", params=[False, True], ids=["easy", "hard"])
def drawn(request: pytest.FixtureRequest) -> tuple[bool, dict[str, list[Scene]]]:
    return request.param, scenes(request.param)


def test_digits_are_as_many_and_as_high_as_promised(drawn: tuple[bool, dict[str, list[Scene]]]) -> None:
    hard, by_split = drawn
    low, high, least = (3, 8, 10) if hard else (1, 4, 18)
    everything = [scene for group in by_split.values() for scene in group]
    assert {len(scene.digits) for scene in everything} == set(range(low, high + 1))
    assert {len(scene.distractors) for scene in everything} == {2}
    heights = [mark.box[3] - mark.box[1] for scene in everything for mark in scene.digits]
    assert least <= min(heights) <= least + 2
    assert 44 <= max(heights) <= 48
    assert {mark.label for scene in everything for mark in scene.digits} == set(range(10))


def test_ink_stands_out_from_what_is_behind_it(drawn: tuple[bool, dict[str, list[Scene]]]) -> None:
    hard, by_split = drawn
    worst = 255.0
    for scene in (scene for group in by_split.values() for scene in group):
        for mark in scene.digits:
            x1, y1, x2, y2 = mark.box
            red, green, blue = scene.image[y1:y2, x1:x2].astype(float).transpose(2, 0, 1)
            distance = np.abs(0.299 * red + 0.587 * green + 0.114 * blue - mark.behind)
            assert mark.ink.mean() > 0.1
            worst = min(worst, float(distance[mark.ink].min()))
    assert worst >= (0.3 * 255 if hard else 100)
    if hard:
        assert worst < HARD.min_contrast + 10  # it does go down to there


def test_boxes_are_hardly_covered(drawn: tuple[bool, dict[str, list[Scene]]]) -> None:
    for scene in (scene for group in drawn[1].values() for scene in group):
        marks = (*scene.digits, *scene.distractors)
        for one in scene.digits:
            covered = np.zeros((128, 128), bool)
            for other in marks:
                if other is not one:
                    covered[other.box[1] : other.box[3], other.box[0] : other.box[2]] = True
            x1, y1, x2, y2 = one.box
            assert covered[y1:y2, x1:x2].mean() <= 0.1


def test_splits_share_no_digit_and_no_photo_pixel(drawn: tuple[bool, dict[str, list[Scene]]]) -> None:
    used: dict[str, set[int]] = {}
    shown = np.zeros((len(SPLITS), len(photos()), *photos()[0].shape[:2]), bool)
    for part, (split, group) in enumerate(drawn[1].items()):
        used[split] = {mark.source for scene in group for mark in (*scene.digits, *scene.distractors)} - {-1}
        for photo, (x1, y1, x2, y2) in (ground for scene in group for ground in scene.grounds):
            shown[part, photo, y1:y2, x1:x2] = True
    assert shown.any(axis=(2, 3)).all()
    assert shown.sum(axis=0).max() == 1
    assert not (used["train"] & used["val"] or used["train"] & used["test"] or used["val"] & used["test"])
    pools = [index for split in SPLITS for part in digit_pool(0)[split] for index in part.tolist()]
    assert sorted(pools) == list(range(1797))


def test_photo_regions_tile_the_photos() -> None:
    for photo, picture in enumerate(photos()):
        regions = [photo_region(photo, split) for split in SPLITS]
        assert sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in regions) == picture.shape[0] * picture.shape[1]
        assert regions[0][2] == regions[1][0]
        assert regions[1][2] == regions[2][0]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_written_set_is_a_voc_folder_whose_bytes_follow_the_seed(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_digits(tmp_path / "a", **COUNTS, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(k, 12) for k in range(1, 13)]
    for split, count in (*COUNTS.items(), ("trainval", 9)):
        data = VocFolder(tmp_path / "a", split)
        data.check(images=True)
        assert (len(data), data.classes) == (count, CLASSES)
    for index in range(6):
        scene, sample = draw_scene(False, 0, "train", index, 128), VocFolder(tmp_path / "a", "train")[index]
        assert sample.boxes.tolist() == [list(mark.box) for mark in scene.digits]
        assert sample.labels.tolist() == [mark.label for mark in scene.digits]
        assert np.abs(sample.image.astype(int) - scene.image).mean() < 8  # JPEG
    write_digits(tmp_path / "b", **COUNTS)
    write_digits(tmp_path / "c", **COUNTS, seed=1)
    write_digits(tmp_path / "more", train=7, val=3, test=3)
    a, b, c, more = (files(tmp_path / name) for name in ("a", "b", "c", "more"))
    assert a == b
    assert all(a[name] != c[name] for name in a if name.endswith(".jpg"))
    assert all(a[name] == more[name] for name in a if name.endswith(".jpg"))  # a scene does not depend on how many there are


def test_returns_at_once_if_the_set_is_there_and_refuses_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_digits(tmp_path / "a", **COUNTS)
    before = files(tmp_path / "a")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    monkeypatch.setattr(digits, "draw_scene", lambda *_: pytest.fail("drew again"))
    write_digits(tmp_path / "a", **COUNTS)
    with pytest.raises(DataError, match="another configuration"):
        write_digits(tmp_path / "a", **COUNTS, hard=True)
    with pytest.raises(DataError, match="is no digits set"):
        write_digits(other, **COUNTS)
    assert files(tmp_path / "a") == before
    assert files(other) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["ctrl_c", "disk_full"])
def test_interruption_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise error

    with pytest.raises(type(error)):
        write_digits(tmp_path / "a", **COUNTS, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_larger_scenes_and_refused_parameters(tmp_path: Path) -> None:
    write_digits(tmp_path / "a", train=2, val=1, test=1, size=192)
    assert VocFolder(tmp_path / "a", "train")[1].image.shape == (192, 192, 3)
    refused: tuple[dict[str, Any], ...] = ({"size": 64}, {"val": 0}, {"seed": -1})
    for bad in refused:
        with pytest.raises(ValueError, match="must be"):
            write_digits(tmp_path / "b", **bad)


def test_no_split_is_dominated_by_one_class(drawn: tuple[bool, dict[str, list[Scene]]]) -> None:
    for group in drawn[1].values():
        counts = Counter(mark.label for scene in group for mark in scene.digits)
        assert max(counts.values()) < 0.25 * sum(counts.values())
