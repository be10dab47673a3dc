# amaranth: UnusedElaboratable=no
from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw.lib.paged import Grid, PagedWindow, check_pace, entries_needed, line_buffer, pixels_kept, window_pixels
from hw.lib.window import WindowStage
from hw.params import Lanes, Window
from hw.testing import run_streams
from sim.run import Case, run_cases
from tests.hw.lib import test_window
from tests.hw.lib.test_window import Order


def strided(k: int, dilation: int = 1, stride: tuple[int, int] = (2, 2)) -> Window:
    return Window(kernel=(k, k), stride=stride, dilation=(dilation, dilation), pad=((k - 1) * dilation // 2,) * 4)


class Exact(PagedWindow):
    """K - 1 rows and K pixels, whatever memory they are rounded up to."""

    def _places(self) -> int:
        return window_pixels(self.grid, self.window)


def case(height: int, width: int, groups: int, window: Window, order: Order = "group", **more: Any) -> Case:
    return test_window.case(height, width, groups, window, order, **{"kind": PagedWindow, **more})


@pytest.mark.rtl
def test_emits_every_window_at_full_rate(tmp_path: Path) -> None:
    """With stalls, and without: one word a cycle, back to back across frames."""
    cases = [
        case(8, 8, 4, strided(3)),
        case(9, 7, 2, strided(3), "tap", fill=9),
        case(8, 10, 3, strided(3), lanes=1),
        case(6, 16, 1, strided(3), "tap"),
        case(9, 12, 5, strided(5), lanes=1),
        case(10, 11, 1, strided(7)),
        case(9, 9, 2, strided(9), lanes=1),
        case(12, 12, 2, strided(3, dilation=3)),
        case(12, 10, 3, strided(3, dilation=2), lanes=1),  # each second row and column
        case(14, 12, 2, strided(5, dilation=2), "tap"),
        case(7, 9, 2, strided(3, stride=(2, 1))),
        case(7, 9, 2, strided(3, stride=(1, 2))),
        case(7, 6, 3, strided(3, stride=(1, 1)), lanes=1),
    ]
    run_cases(cases, tmp_path / "bench")


def cycles(c: Case, p_in: float = 1, p_out: float = 1) -> int:
    """Cycles until all words have come; AssertionError at one that is not golden's, TimeoutError if they do not all come."""
    lanes = c.unit.lanes.lanes
    i, o = ([word.tolist() for word in a.reshape(-1, lanes)] for a in (c.inputs[0], c.outputs[0]))
    return run_streams(c.unit, {"i": i}, {"o": o}, p_in=p_in, p_out=p_out, max_cycles=20_000)


@pytest.mark.parametrize("order", ["tap", "group"])
def test_is_no_longer_than_two_rows_and_three_pixels(order: Order) -> None:
    """Where a ring at full rate takes a row more, and with fewer rows a bubble at the end of each."""
    c = case(6, 32, 1, strided(3), order, kind=Exact)
    ring = case(6, 32, 1, strided(3), order, kind=WindowStage)
    assert (c.unit.depth, ring.unit.depth) == (2 * 32 + 3, 3 * 32 + 4)
    assert cycles(c) - cycles(case(6, 32, 1, strided(3), order, kind=Exact, frames=3)) == c.frame_cycles == 3 * 16 * 9


@pytest.mark.parametrize("seed", range(6))
def test_exact_places_under_stalls(seed: int) -> None:
    """Every word is compared, and all come."""
    rng = np.random.default_rng(seed)
    k = int(rng.choice([3, 3, 5]))
    height, width, groups = (int(rng.integers(k, k + 6)), int(rng.integers(k, k + 6)), int(rng.integers(1, 4)))
    c = case(height, width, groups, strided(k), rng.choice(["tap", "group"]).item(), kind=Exact, lanes=1, frames=3)
    cycles(c, p_in=float(rng.uniform(0.2, 1)), p_out=float(rng.uniform(0.2, 1)))


@pytest.mark.parametrize("window", [strided(3), strided(5), strided(3, dilation=3), strided(3, stride=(2, 1)), Window(kernel=(4, 4))])
@pytest.mark.parametrize(("height", "width"), [(12, 9), (9, 12)])
def test_entries_reach_from_the_first_kept_pixel_to_the_last_promised(window: Window, height: int, width: int) -> None:
    """A walk over all taps with the places in a queue, as the hardware does it."""
    out_h, out_w = window.out_size(height, width)
    read = [
        (y * window.stride[0] - window.pad[0] + i * window.dilation[0], x * window.stride[1] - window.pad[1] + j * window.dilation[1])
        for y, x, i, j in itertools.product(range(out_h), range(out_w), range(window.kernel[0]), range(window.kernel[1]))
    ]
    pixels = [row * width + col for row, col in read if 0 <= row < height and 0 <= col < width]
    places = pixels_kept(Grid.of(height, width, window), window, 1, 8)
    live, promised, most = set(range(height * width)), places, 0
    for time, pixel in enumerate(pixels):
        assert pixel in live and pixel < promised  # it had a place
        if pixel not in pixels[time + 1 :]:
            promised += 1
            most = max(most, promised - min(live))
            live.remove(pixel)
    assert not live and entries_needed(height, width, window, places) == most


def test_memory_is_rounded_up_for_more_places() -> None:
    window = strided(3)
    narrow, wide, block = (Grid.of(8, width, window) for width in (16, 64, 62))
    assert pixels_kept(narrow, window, 1, 8) == 35 + 6  # 64 words of LUT RAM
    assert pixels_kept(wide, window, 1, 8) == 131 + 6
    assert pixels_kept(block, window, 16, 64) * 16 == 2032 + 16  # block RAM of 2,048 words


def test_refuses() -> None:
    arguments: dict[str, Any] = {"height": 8, "width": 8, "channels": 2, "i": Lanes(lanes=1, bits=8, signed=False), "order": "group"}
    with pytest.raises(ValueError, match=r"of 8 rows only \[0, 2, 3, 5\] are in a window"):
        line_buffer("paged", window=Window(kernel=(2, 4), stride=(3, 1), dilation=(2, 1)), **arguments)
    with pytest.raises(ValueError, match=r"a \(2, 2\) window has too few taps for a stride of \(2, 2\)"):
        check_pace(Window(kernel=(2, 2), stride=(2, 2)))
    assert isinstance(line_buffer("paged", window=strided(3), **arguments), PagedWindow)
    assert line_buffer("tight", window=strided(3), **arguments).tight
