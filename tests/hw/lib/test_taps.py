# amaranth: UnusedElaboratable=no
"""All taps of a window at once: against windows cut out of the padded map, at full rate and with stalls."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lib.taps import WindowTaps, taps_cycles
from hw.params import Lanes, Window
from hw.testing import run_streams
from hw.units.base import Unit, signature
from hw.verilog import convert
from sim.beats import pack, unpack
from sim.run import Case, run_cases
from sw.ops import Array
from sw.ops.windows import windows

SAME = Window(kernel=(3, 3), pad=(1, 1, 1, 1))


class TapsUnit(Unit):
    """The stage as a unit."""

    def __init__(self, **arguments: Any) -> None:
        self.stage = WindowTaps(**arguments)
        super().__init__({"i": In(signature(self.stage.lanes)), "o": Out(signature(self.stage.out))})

    @property
    def frame_cycles(self) -> int:
        return taps_cycles(self.stage.height, self.stage.width, self.stage.groups, self.stage.window, 1)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.stage = self.stage
        wiring.connect(m, wiring.flipped(self.i), self.stage.i)
        wiring.connect(m, self.stage.o, wiring.flipped(self.o))
        return m


class Cut:
    """(N, H, W, C) to (N, OH, OW, groups · taps · lanes), channels that are a whole number of beats."""

    def __init__(self, window: Window, lanes: int, fill: int) -> None:
        self.window, self.lanes, self.fill = window, lanes, fill

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        cut = windows(inputs[0].astype(np.int64), self.window, self.fill)  # (N, OH, OW, KH, KW, C)
        n, h, w = cut.shape[:3]
        parts = cut.reshape(n, h, w, self.window.taps, -1, self.lanes)
        return (parts.transpose(0, 1, 2, 4, 3, 5).reshape(n, h, w, -1),)


def case(height: int, width: int, groups: int, window: Window, *, lanes: int = 1, fill: int = 0, frames: int = 4) -> Case:
    i = Lanes(lanes=lanes, bits=5, signed=True)
    x = np.random.default_rng(1).integers(i.lowest, i.highest + 1, (frames, height, width, groups * lanes))
    unit = TapsUnit(height=height, width=width, channels=groups * lanes, window=window, i=i, fill=fill)
    return Case(name=f"{height}x{width} {groups} groups {window}", unit=unit, op=Cut(window, lanes, fill), inputs=(x,))  # type: ignore[arg-type]


def square(k: int, *, stride: int = 1, dilation: int = 1) -> Window:
    return Window(kernel=(k, k), stride=(stride, stride), dilation=(dilation, dilation), pad=(k // 2 * dilation,) * 4)


@pytest.mark.rtl
def test_windows(tmp_path: Path) -> None:
    run_cases([
        case(5, 6, 3, SAME, lanes=2, fill=-16),
        case(6, 6, 2, square(3, stride=2)),
        case(10, 9, 2, square(3, dilation=2)),
        case(9, 9, 1, Window(kernel=(3, 3))),
        case(6, 7, 2, Window(kernel=(2, 3), stride=(2, 1), pad=(0, 1, 0, 1))),
        case(4, 4, 1, square(9)),  # the window is larger than the map
        case(1, 1, 1, SAME, frames=8),
        case(1, 7, 2, SAME),
        case(6, 6, 2, Window(stride=(2, 3))),
    ], tmp_path)  # fmt: skip


@pytest.mark.parametrize(("p_in", "p_out"), [(1, 1), (0.4, 0.6)])
def test_every_frame_is_finished_without_the_next(p_in: float, p_out: float) -> None:
    """One frame alone, in the Amaranth simulator: all its outputs come."""
    one = case(4, 5, 2, SAME, frames=1)
    beats = [unpack(pack(x, lanes), lanes, lanes.lanes).tolist() for x, lanes in (
        (one.inputs[0], one.unit.stage.lanes), (one.outputs[0], one.unit.stage.out))]  # fmt: skip
    run_streams(one.unit, {"i": beats[0]}, {"o": beats[1]}, p_in=p_in, p_out=p_out)


def test_the_line_buffer_is_no_larger_than_it_must_be() -> None:
    """K - 1 rows and K - 1 pixels beside the beat that comes in, counted in the Verilog."""
    text = convert(WindowTaps(height=8, width=16, channels=1, window=square(5), i=Lanes(lanes=1, bits=8, signed=False)), "stage")
    memories = sum((int(w) + 1) * (int(d) + 1) for w, d in re.findall(r"reg \[(\d+):0\] \S+ \[(\d+):0\];", text))
    pixels = sum(int(w) + 1 for w in re.findall(r"reg \[(\d+):0\] pixels_\S+ *(?:=.*)?;", text))
    assert memories + pixels == (4 * 16 + 4) * 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "must be positive"),
        ({"fill": 99}, "fill must be in"),
        ({"window": Window(kernel=(3, 3), pad=(2, 2, 2, 2))}, "pad must leave a step for every output"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"height": 4, "width": 4, "channels": 1, "window": SAME, "i": Lanes(lanes=1, bits=5, signed=True)}
    with pytest.raises(ValueError, match=message):
        WindowTaps(**(arguments | changes))
