from __future__ import annotations

import itertools

import pytest
from amaranth import Module, Signal
from amaranth.sim import Simulator

from hw.lib.ring import Loop, strides, window_ring, wrap_add
from hw.params import DeformRing, Window

WINDOWS = [
    Window(kernel=(3, 3), pad=(1, 1, 1, 1)),
    Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1)),
    Window(kernel=(3, 3)),
    Window(kernel=(2, 2), stride=(3, 3)),
    Window(kernel=(3, 2), stride=(1, 2), dilation=(2, 3), pad=(2, 1, 2, 2)),
    Window(kernel=(2, 2), pad=(1, 1, 1, 1)),
    Window(kernel=(1, 2), pad=(0, 1, 0, 1)),  # the next row begins where the corner is
]


def test_strides_walk_the_loop_nest() -> None:
    loops = [Loop(1, 1000), Loop(3, 40), Loop(1, 7), Loop(4, -3), Loop(2, 11)]
    position, moves = 0, strides(loops)
    runs = list(itertools.product(*(range(loop.count) for loop in loops)))
    for now, after in itertools.pairwise(runs):
        assert position == sum(k * loop.step for k, loop in zip(now, loops, strict=True))
        outermost = next(k for k, (a, b) in enumerate(zip(now, after, strict=True)) if a != b)
        position += moves[outermost]
    assert position + moves[0] == 1000


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("height", "width"), [(7, 6), (6, 9)])
def test_ring_keeps_what_windows_need(window: Window, height: int, width: int) -> None:
    ring = window_ring(height, width, window)
    out_h, out_w = window.out_size(height, width)
    top, left = window.pad[:2]
    kept = -(top * width + left)  # everything from here on is in the ring
    for y, x in itertools.product(range(out_h), range(out_w)):
        needed = [
            row * width + col
            for row in (y * window.stride[0] - top + i * window.dilation[0] for i in range(window.kernel[0]))
            for col in (x * window.stride[1] - left + j * window.dilation[1] for j in range(window.kernel[1]))
            if 0 <= row < height and 0 <= col < width
        ]
        assert all(kept <= place < kept + ring.pixels for place in needed)
        if ring.early:  # the corner's pixel is free after the first tap: no later one lies there, nor do the next windows begin there
            assert kept not in needed[1:] and min(ring.frame, ring.row, ring.pixel) >= 1
        kept += ring.frame if (y, x) == (out_h - 1, out_w - 1) else ring.row if x == out_w - 1 else ring.pixel
    assert kept == height * width - (top * width + left)


def test_three_by_three_keeps_two_rows_and_a_few_pixels() -> None:
    assert window_ring(20, 30, WINDOWS[0]).pixels == 2 * 30 + 3


@pytest.mark.parametrize(
    ("height", "reach", "repeat", "banks", "rows"),
    [
        (64, 8, 1, 2, 18), (9, 8, 1, 2, 18), (8, 8, 1, 2, 16), (4, 8, 1, 2, 8), (1, 8, 1, 2, 2), (5, 0, 1, 2, 2),
        (8, 8, 2, 2, 10), (16, 8, 2, 2, 10), (16, 7, 2, 1, 9), (9, 8, 4, 2, 6), (4, 16, 2, 2, 8),
    ],
)
def test_deform_rows(height: int, reach: int, repeat: int, banks: int, rows: int) -> None:
    assert DeformRing(height=height, reach=reach, repeat=repeat).rows(banks) == rows


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_wrap_add(size: int) -> None:
    a, b, total = Signal(4), Signal(4), Signal(4)
    m = Module()
    m.d.comb += total.eq(wrap_add(a, b, size))

    async def testbench(ctx: object) -> None:
        for x, y in itertools.product(range(size), repeat=2):
            ctx.set(a, x)  # type: ignore[attr-defined]
            ctx.set(b, y)  # type: ignore[attr-defined]
            assert ctx.get(total) == (x + y) % size  # type: ignore[attr-defined]

    sim = Simulator(m)
    sim.add_testbench(testbench)
    sim.run()
