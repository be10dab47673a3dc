# amaranth: UnusedElaboratable=no
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from hw.lib.ring import WindowRing, window_ring
from hw.lib.window import WindowStage
from hw.params import Lanes, Window
from hw.testing import run_streams
from sim.run import Case, run_cases
from sw.ops.base import Array
from sw.ops.windows import windows

Order = Literal["tap", "group"]
SAME = Window(kernel=(3, 3), pad=(1, 1, 1, 1))


class Words:
    """Golden words of a :class:`WindowStage` as maps whose pixels are single words."""

    def __init__(self, window: Window, lanes: int, order: Order, fill: int) -> None:
        self.window, self.lanes, self.order, self.fill = window, lanes, order, fill

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        cut = windows(inputs[0], self.window, self.fill)
        words = cut.reshape(*cut.shape[:3], self.window.taps, -1, self.lanes)
        if self.order == "group":
            words = words.swapaxes(3, 4)
        return (words.reshape(*cut.shape[:2], -1, self.lanes),)


def case(
    height: int, width: int, groups: int, window: Window, order: Order = "tap", *, lanes: int = 2, fill: int = 0, frames: int = 4,
    tight: bool = False, kind: type[WindowStage] = WindowStage,
) -> Case:  # fmt: skip
    i = Lanes(lanes=lanes, bits=8, signed=False)
    x = np.random.default_rng(9).integers(0, 256, (frames, height, width, groups * lanes))
    more: dict[str, Any] = {"tight": True} if tight else {}
    unit = kind(height=height, width=width, channels=groups * lanes, window=window, i=i, order=order, fill=fill, **more)
    name = f"{height}x{width} {groups} groups {order} {window.kernel} stride {window.stride} dilation {window.dilation} pad {window.pad}"
    op: Any = Words(window, lanes, order, fill)
    return Case(name=name, unit=unit, op=op, inputs=(x,))


@pytest.mark.rtl
def test_emits_every_window_at_full_rate(tmp_path: Path) -> None:
    cases = [
        case(5, 6, 2, SAME, "tap"),
        case(6, 5, 7, SAME, "group", lanes=1, fill=255),  # many groups: the next pixel must have been fetched before
        case(8, 7, 3, Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1)), "group"),
        case(7, 8, 2, Window(kernel=(3, 3), stride=(2, 2), pad=(0, 0, 1, 1)), "tap"),
        case(6, 6, 2, Window(kernel=(2, 2), stride=(2, 2)), "group"),  # input and output are equally busy
        case(7, 5, 2, Window(kernel=(2, 2), stride=(2, 2)), "group"),  # the last row and column are never used
        case(7, 6, 1, Window(kernel=(3, 3)), "tap"),
        case(7, 7, 2, Window(kernel=(3, 3), dilation=(2, 2), pad=(2, 2, 2, 2)), "tap", fill=9),
        case(6, 8, 1, Window(kernel=(3, 2), stride=(1, 2), pad=(2, 1, 2, 1)), "tap"),  # keeps two frames
        case(7, 7, 2, Window(kernel=(2, 2), stride=(3, 3)), "group"),
        case(4, 5, 3, Window(), "tap"),
        case(5, 5, 2, Window(stride=(2, 2)), "tap"),
        case(10, 10, 4, Window(kernel=(1, 3), stride=(3, 1)), "group", lanes=1),  # the last row of outputs falls behind
        case(3, 6, 2, Window(kernel=(4, 1), stride=(3, 3), pad=(3, 0, 2, 0)), "group", frames=5),
        case(1, 1, 1, SAME, "tap"),
        case(1, 4, 1, Window(kernel=(2, 1), dilation=(2, 1), pad=(1, 0, 1, 0)), "tap"),  # sees nothing of the map
    ]
    run_cases(cases, tmp_path / "bench")


@pytest.mark.rtl
def test_tight_line_buffers_emit_every_window(tmp_path: Path) -> None:
    """Their interval depends on how evenly input comes, so only two frames are run."""
    strided = Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1))
    cases = [
        case(8, 9, 3, strided, "group", frames=2, tight=True),
        case(7, 6, 1, strided, "tap", frames=2, tight=True),
        case(6, 5, 4, SAME, "group", lanes=1, frames=2, tight=True),
        case(9, 7, 2, Window(kernel=(5, 5), stride=(2, 2), pad=(2, 2, 2, 2)), "group", frames=2, tight=True),
        case(7, 7, 1, Window(kernel=(3, 3), dilation=(2, 2), pad=(2, 2, 2, 2)), "tap", frames=2, tight=True),
        case(6, 8, 1, Window(kernel=(3, 2), stride=(1, 2), pad=(2, 1, 2, 1)), "tap", frames=2, tight=True),
    ]
    run_cases(cases, tmp_path / "bench")


def test_tight_line_buffers_keep_up_with_slow_input() -> None:
    """Beats at random, RESTS times slower than the unit: the last window leaves about as soon as with a whole buffer."""
    strided = Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1))
    tight, whole = (case(8, 20, 2, strided, "group", frames=2, tight=t) for t in (True, False))
    assert tight.unit.rows <= 3 and tight.unit.depth < whole.unit.depth
    pace = tight.frame_cycles / (8 * 20 * 2)
    x = [word.tolist() for word in tight.inputs[0].reshape(-1, 2)]
    words = [word.tolist() for word in tight.outputs[0].reshape(-1, 2)]
    taken = [run_streams(c.unit, {"i": x}, {"o": words}, p_in=1 / pace, p_out=1, max_cycles=20_000) for c in (tight, whole)]
    assert taken[0] <= 1.1 * taken[1]


def shorten(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    def short(height: int, width: int, window: Window, tight: bool) -> WindowRing:
        ring = window_ring(height, width, window, tight)
        return replace(ring, pixels=ring.pixels - pixels)

    monkeypatch.setattr("hw.lib.window.window_ring", short)


def cycles(c: Case) -> int:
    """Cycles that a case takes in the Amaranth simulator at full rate."""
    i, o = ([word.tolist() for word in a.reshape(-1, c.unit.lanes.lanes)] for a in (c.inputs[0], c.outputs[0]))
    return run_streams(c.unit, {"i": i}, {"o": o}, p_in=1, p_out=1, max_cycles=3000)


def test_no_row_is_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    assert case(6, 5, 1, SAME).unit.rows == 3
    shorten(monkeypatch, 5)
    with pytest.raises(TimeoutError):
        cycles(case(6, 5, 1, SAME))


def test_strided_window_needs_all_rows_for_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1))
    taken = cycles(case(4, 20, 1, window, frames=2))
    shorten(monkeypatch, 20)
    assert cycles(case(4, 20, 1, window, frames=2)) > taken


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "height, width and channels must be positive"),
        ({"order": "pixel"}, "order must be"),
        ({"fill": 256}, "fill must be in 0..255, not 256"),
        ({"height": 1, "window": Window(kernel=(3, 3))}, "does not fit"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    i = Lanes(lanes=1, bits=8, signed=False)
    arguments: dict[str, Any] = {"height": 4, "width": 4, "channels": 2, "window": SAME, "i": i, "order": "tap"}
    with pytest.raises(ValueError, match=message):
        WindowStage(**(arguments | changes))
