"""CoDeNet's largest configurations whole: frames of 512 × 512 pixels in Verilator, every tensor and the detections equal to golden's.

Up to two hours on two cores; what ``warploom bench codenet`` has simulated already is taken from build/bench/codenet. Configurations a, b
and c are simulated by that command only.
"""
import pytest

from sw.bench.codenet import CONFIGS, simulate_codenet

pytestmark = [pytest.mark.rtl, pytest.mark.slow]


@pytest.mark.parametrize("name", ["d", "e"])
def test_whole_frames_equal_golden(name: str) -> None:
    record = simulate_codenet(name)
    assert record["mismatches"] == 0 and record["frames_checked"] == CONFIGS[name].frames
    assert record["values_compared"] > 100_000_000
    assert record["cycles_per_frame"] <= CONFIGS[name].cycles
