"""Cycles a frame from the ends of frames at every watched stream."""
from pathlib import Path

import pytest

from sim.accelerator import _slowest, mean_interval


@pytest.mark.parametrize(
    ("ends", "interval"),
    [
        ([], 0.0),
        ([70], 0.0),
        ([70, 170], 100.0),
        ([70, 130, 230], 100.0),  # the first frame fills the queues
        ([70, 130, 220, 330, 430], 100.0),  # frames take turns at a shared unit: the mean counts, neither 90 nor 110
    ],
)
def test_the_mean_counts_without_the_first_frame(ends: list[int], interval: float) -> None:
    assert mean_interval(ends) == interval


def test_the_slowest_stream_counts(tmp_path: Path) -> None:
    (tmp_path / "stats.txt").write_text("cycles 500\nends 0 10 100 200 300\nends 1 20 130 240 351\nends 2 30 90 150 210\nstart 0\n")
    assert _slowest(tmp_path) == 110.5
