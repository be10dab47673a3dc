"""Sizes and address arithmetic of the rings that hold the rows a sliding window still needs."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth import Cat, Module, Mux, Signal, Value, signed, unsigned

from hw.lib.arith import add_carry
from hw.lib.store import block_shape, place_of, ram_luts
from hw.params import DeformRing, Window


@dataclass(frozen=True)
class Loop:
    """One level of a loop nest: how often it runs and by how much its position moves each time."""

    count: int
    step: int


def strides(loops: Sequence[Loop]) -> list[int]:
    """By how much the position moves when each level (outermost first) advances and all levels inside it restart.

    When a level advances, every level inside it stands at its last iteration, so the move is a constant.
    """
    moves, inside = [], 0
    for loop in reversed(loops):
        moves.append(loop.step - inside)
        inside += (loop.count - 1) * loop.step
    return moves[::-1]


@dataclass(frozen=True)
class WindowRing:
    """The ring of a sliding window, in pixels of the input, positions counted along the rows.

    A window's first corner moves by ``pixel`` to the next output of a row, by ``row`` to the next row, by ``frame`` to
    the next frame: all before it may be overwritten, and with ``early`` the pixel at the corner itself as soon as the first tap is read:
    no later window has it. ``pixels`` is the capacity: the window, its furthest move, so that what the next window needs is fetched while
    this one is read, less that pixel, and any :func:`_backlog`. For a 3×3 window with stride 1 that is two rows and three pixels. A tight
    ring of a window with a stride leaves out the move to the next row: two rows and five pixels where stride 2 would take three.
    """

    pixel: int
    row: int
    frame: int
    pixels: int
    early: bool = False


def window_ring(height: int, width: int, window: Window, tight: bool = False) -> WindowRing:
    """The ring of ``window`` over a map, ``tight`` or at full rate; ValueError if the window does not fit."""
    out_h, out_w = window.out_size(height, width)
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.stride, window.dilation
    span = (kh - 1) * dh * width + (kw - 1) * dw + 1
    row = sh * width - (out_w - 1) * sw
    frame = (height - (out_h - 1) * sh) * width - (out_w - 1) * sw
    if min(row, frame) < 0:  # padded so much that the corner would go back: keep two frames
        corner = window.pad[0] * width + window.pad[1]
        return WindowRing(0, 0, height * width, corner + 2 * height * width)
    early = window.taps > 1 and min(row, frame) > 0
    if tight:
        return WindowRing(sw, row, frame, span + (sw if sh > 1 else 0), early)
    return WindowRing(sw, row, frame, span + max(sw, row, frame) - early + _backlog(height, width, window), early)


def _backlog(height: int, width: int, window: Window) -> int:
    """Further pixels to store where rows of outputs and the rows they need take turns in being slower (0 in usual networks).

    Each row of outputs takes ``busy`` cycles for ``window.stride[0]`` rows of input, only the last has another number of them
    (all for each channel group). Whichever side bounds the frame must never wait for the other.
    """
    out_h, out_w = window.out_size(height, width)
    busy, fed = out_w * window.taps, window.stride[0] * width
    rest = height * width - (out_h - 1) * fed
    if out_h * busy >= height * width:
        return max(0, (out_h - 1) * (fed - busy))
    return max(0, busy - rest, (out_h - 1) * (busy - fed))


def ring_size(width: int, depth: int) -> int:
    """Words of the memory for a ring of ``depth`` words: a power of two, whose addresses go round by themselves, where that takes no
    more block RAM or LUTs."""

    def cost(words: int) -> int:
        return block_shape(width, words)[0] if place_of(width, depth) == "block" else ram_luts(width, words)

    rounded = 1 << (depth - 1).bit_length()
    return rounded if cost(rounded) == cost(depth) else depth


@dataclass(frozen=True)
class RowCount:
    """``ready``: the rows that a row of outputs needs are there. ``room``: there is a place for one more row. ``leaving``: two bits, in
    the cycle in which all reads of a row of outputs are issued: one row is no longer needed; nor is any row of this frame."""

    ready: Value
    room: Value
    leaving: Value


def count_rows(
    m: Module, ring: DeformRing, rows: int, *, y: Value, row_done: Value, frame_done: Value, arrived: Value, claimed: Value, left: Value
) -> RowCount:  # fmt: skip
    """Counts the whole rows of a ``ring`` of ``rows`` rows.

    ``y``: the row of outputs whose reads are issued; ``row_done``, ``frame_done``: its last one is, and it is the frame's last row;
    ``arrived``: a row is complete and may be read; ``claimed``: a place for a row is taken; ``left``: ``leaving`` once those reads are
    made.
    """
    reach, bits = ring.reach, (rows + ring.height).bit_length() + 1
    room = Signal(signed(rows.bit_length() + 1), init=rows - 1)  # rows that may be overwritten, less 1: its sign decides, too
    # Rows that have arrived, counted from the frame being read, less those that row y needs: its sign decides.
    spare = Signal(signed(bits), init=-1 - ring.last_read(0))
    # Of the rows that arrive, one becomes free, or is needed, where the row behind y's first, or its last, lies in another one than that.
    leaves, enters = ((y + 1 + by)[: ring.repeat.bit_length() - 1] == 0 for by in (-reach, reach))
    freed = Mux(left[1], ring.height - ring.first_read(ring.last) - 1, Mux(left[0], 0, -1))  # less 1
    needs = Mux(frame_done, -1 - ring.last_read(0), Mux(row_done & (y < ring.last - reach) & enters, -1, 0))
    m.d.sync += [room.eq(add_carry(room, freed, ~claimed)), spare.eq(add_carry(spare, needs, arrived))]
    return RowCount(~spare[-1], ~room[-1], Cat(row_done & (y >= reach) & leaves, frame_done))


def wrap_add(value: Value, move: Value, size: int) -> Value:
    """``(value + move) mod size`` for a value and a move of 0..size-1."""
    total = value + move
    return Mux(total >= size, total - size, total)[: max(size - 1, 0).bit_length()]


def counter(size: int, name: str) -> Signal:
    """A register for 0..size-1, at least one bit."""
    return Signal(unsigned(max((size - 1).bit_length(), 1)), name=name)
