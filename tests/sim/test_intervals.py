"""Cycles a frame from the ends of frames at every watched stream."""
from pathlib import Path

import pytest

from sim.accelerator import _slowest, mean_interval


@pytest.mark.parametrize(("ends", "interval"), [([], 0.0), ([70], 0.0), ([70, 170], 100.0), ([130, 220, 330, 430], 100.0)])
def test_the_mean_counts_neither_the_shortest_nor_the_longest(ends: list[int], interval: float) -> None:
    assert mean_interval(ends) == interval


def write(folder: Path, *streams: list[int]) -> Path:
    lines = [f"ends {k} {' '.join(map(str, ends))}" for k, ends in enumerate(streams)]
    (folder / "stats.txt").write_text("\n".join(["cycles 900", *lines, "start 0"]))
    return folder


def test_the_middle_of_a_run_counts_where_frames_enter_and_leave(tmp_path: Path) -> None:
    """Ten frames, each through after three intervals: from the sixth to the last that leaves before the tenth enters."""
    folder = write(tmp_path, [500, 1000, 1100, 1200, 1300, 1400, 1500, 1600, 1700, 9999])
    enter, leave = [100 * k for k in range(10)], [310, 450, 560, 665, 770, 800, 909, 1000, 1100, 1200]
    assert _slowest(folder, [*zip(enter[:9], leave[:9], strict=True), (910, 1200)]) == 109
    assert _slowest(folder, [*zip(enter[:9], leave[:9], strict=True), (1000, 1200)]) == (1000 - 800) / 2
    slow = [0, 100, 200, 300, 400, 500, 640, 780, 920, 1060]
    assert _slowest(folder, list(zip(slow, leave, strict=True))) == 140, "frames enter more slowly than they leave"


def test_a_shorter_run_counts_from_when_the_first_frame_has_left(tmp_path: Path) -> None:
    """The first stream is fast while the pipeline fills, the second slows down as a shared unit gets more to do."""
    folder = write(tmp_path, [10, 60, 110, 200, 300, 401], [100, 180, 290, 400, 500, 601], [200, 290, 380, 470, 560, 650])
    ends = [200, 290, 380, 470, 560, 650]
    assert _slowest(folder, [(0, e) for e in ends]) == (601 - 290) / 3


def test_a_short_run_counts_all_but_its_first_frame(tmp_path: Path) -> None:
    assert _slowest(write(tmp_path, [10, 100, 200, 300], [20, 130, 240, 351]), [(0, e) for e in (300, 310, 320, 351)]) == 110.5
    assert _slowest(write(tmp_path, [10, 100], [20, 130]), [(0, 130), (10, 140)]) == 110.0
    assert _slowest(write(tmp_path, []), [(0, 0)]) == 0.0
