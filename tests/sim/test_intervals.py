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


def test_the_slowest_stream_counts_from_when_the_first_frame_has_left(tmp_path: Path) -> None:
    """The first stream is fast while the pipeline fills, the second slows down as a shared unit gets more to do."""
    folder = write(tmp_path, [10, 60, 110, 200, 300, 401], [100, 180, 290, 400, 500, 601], [200, 290, 380, 470, 560, 650])
    assert _slowest(folder, 200) == (601 - 290) / 3


def test_a_short_run_counts_all_but_its_first_frame(tmp_path: Path) -> None:
    assert _slowest(write(tmp_path, [10, 100, 200, 300], [20, 130, 240, 351]), 300) == 110.5
    assert _slowest(write(tmp_path, [10, 100], [20, 130]), 130) == 110.0
    assert _slowest(write(tmp_path, []), 0) == 0.0
