"""When a unit reads and writes its beats: a static schedule for each kind of unit.

Every function maps the arrival times of a unit's input beats (in cycles, ascending, ``frames`` frames one after the other) to the
times at which it takes them and to the times at which its output beats appear. Nothing here stalls: buffers are as large as
they must be, which is what the FIFO sizes are read from (sw/folding/schedule.py). Units that work in bursts are slowed to an even pace
(``pace``, or a longer ``cost``): hardware that is held back by a full queue does the same.
"""
from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hw.lib.spool import BLOCK
from hw.lib.taps import step_gaps
from hw.params import DeformRing, Window

from .fold import beats

Times = npt.NDArray[np.signedinteger[Any]]

#: Cycles that a block takes to memory and back, with the others' waiting there taken in.
MEMORY = 2000
#: Pipeline depth assumed of every unit; what it is wrong by, the slack of the FIFOs covers.
LATENCY = 6


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times at which input beats are taken (one array a port) and output beats appear (one array a port)."""

    reads: tuple[Times, ...]
    writes: tuple[Times, ...]


def serve(ready: Times, cost: float) -> Times:
    """Completion times of jobs served in order, each taking ``cost`` cycles and not starting before it is ``ready``."""
    if float(cost).is_integer():  # the same in whole numbers, which is faster
        busy = np.arange(0, len(ready) * int(cost), int(cost), dtype=ready.dtype)
        whole: Times = ready - busy
        np.maximum.accumulate(whole, out=whole)
        busy += int(cost)
        whole += busy
        return whole
    k = np.arange(len(ready), dtype=np.float64)
    start = k * cost
    np.subtract(ready, start, out=start)
    np.maximum.accumulate(start, out=start)
    k += 1
    k *= cost
    start += k
    result: Times = np.ceil(start, out=start).astype(ready.dtype)
    return result


def elementwise(arrivals: Times) -> Timing:
    """One beat in, one beat out."""
    done = serve(arrivals, 1)
    return Timing(reads=(done,), writes=(done + LATENCY,))


def join(arrivals: tuple[Times, ...]) -> Timing:
    """One beat of every input at once, one beat out."""
    done = serve(np.maximum.reduce(arrivals), 1)
    return Timing(reads=(done,) * len(arrivals), writes=(done + LATENCY,))


def regroup(arrivals: Times, channels: int, lanes_in: int, lanes_out: int) -> Timing:
    """Beats of another width: an output beat follows the input beat that holds its last channel."""
    n_in, n_out = beats(channels, lanes_in), beats(channels, lanes_out)
    pixels = len(arrivals) // n_in
    last = np.minimum((np.arange(n_out) + 1) * lanes_out, channels) - 1
    done = serve(arrivals.reshape(pixels, n_in).take(last // lanes_in, axis=1).ravel(), 1)
    first_user = np.minimum(np.arange(n_in) * lanes_in // lanes_out, n_out - 1)
    taken = done.reshape(pixels, n_out).take(first_user, axis=1).ravel()
    return Timing(reads=(np.maximum(arrivals, taken),), writes=(done + LATENCY,))


def split(arrivals: Times, sizes: tuple[int, ...], lanes: int) -> Timing:
    """Beats dealt out to the parts they belong to."""
    done = serve(arrivals, 1)
    per_pixel = done.reshape(-1, sum(sizes) // lanes)
    bounds = np.cumsum([0, *(s // lanes for s in sizes)])
    writes = tuple(per_pixel[:, a:b].ravel() + 1 for a, b in itertools.pairwise(bounds))
    return Timing(reads=(done,), writes=writes)


def concat(arrivals: tuple[Times, ...], sizes: tuple[int, ...], lanes: int, interleave: bool) -> Timing:
    """Parts joined pixel by pixel, or lane by lane."""
    per_pixel = [a.reshape(-1, s // lanes) for a, s in zip(arrivals, sizes, strict=True)]
    if interleave:
        ready = np.maximum.reduce(arrivals)
        done = serve(np.repeat(ready, len(arrivals)), 1)
        taken = done.reshape(-1, len(arrivals))[:, -1]
        return Timing(reads=(taken,) * len(arrivals), writes=(done + LATENCY,))
    done = serve(np.concatenate(per_pixel, axis=1).ravel(), 1)
    bounds = np.cumsum([0, *(s // lanes for s in sizes)])
    rows = done.reshape(-1, bounds[-1])
    return Timing(reads=tuple(rows[:, a:b].ravel() for a, b in itertools.pairwise(bounds)), writes=(done + LATENCY,))


def all_taps(
    arrivals: Times, frames: int, shape: tuple[int, int, int], window: Window, cost: float, also: Times | None = None
) -> Timing:  # fmt: skip
    """A window whose taps come together, ``shape`` (rows, columns, beats a pixel); every output takes ``cost`` cycles and waits until
    ``also`` for what goes with it.

    Outputs leave with steps, one a beat of input (hw.lib.taps.WindowTaps); the last of a frame with those of the next.
    """
    height, width, groups = shape
    first, (row, pixel, group) = step_gaps(height, width, groups, window)
    out_h, out_w = window.out_size(height, width)
    moves = np.full((frames, out_h, out_w, groups), group, np.int64)
    moves[..., 0], moves[:, :, 0, 0] = pixel, row
    moves[:, 0, 0, 0] = first
    steps = (moves.reshape(frames, -1).cumsum(axis=1) + np.arange(frames)[:, None] * height * width * groups).ravel()
    tail = np.arange(1, max(steps[-1] + 1 - len(arrivals), 0) + 1, dtype=arrivals.dtype) + arrivals[-1]
    ready = np.concatenate([arrivals, tail])[steps]
    done = serve(ready if also is None else np.maximum(ready, also), cost)
    before = np.searchsorted(steps, np.arange(len(arrivals)), side="right") - 1  # the output that a beat waits for
    reads = np.where(before >= 0, np.maximum(arrivals, done[before] - int(cost)), arrivals)
    return Timing(reads=(reads,), writes=(done + LATENCY,))


def decode(
    arrivals: tuple[Times, Times, Times], frames: int, shape: tuple[int, int, int], window: Window, records: int
) -> Timing:  # fmt: skip
    """Windows of heat as in :func:`all_taps`, each pixel's with its size and shift; ``records`` follow the last, one a cycle.

    Peaks are taken to be few: what they cost holds back the beats before the decoder and needs no queue.
    """
    groups = shape[2]
    with_them = np.repeat(np.maximum(arrivals[1], arrivals[2]), groups)
    heat = all_taps(arrivals[0], frames, shape, window, 1, with_them)
    taken = heat.writes[0][groups - 1 :: groups] - LATENCY
    last = taken.reshape(frames, -1)[:, -1:]
    return Timing(reads=(heat.reads[0], taken, taken), writes=((last + LATENCY + np.arange(records, dtype=last.dtype)).ravel(),))


def reduce(arrivals: Times, frames: int, per_pixel: int) -> Timing:
    """All beats of a map taken as they come; the results follow the last pixel's."""
    done = serve(arrivals, 1)
    return Timing(reads=(done,), writes=(done.reshape(frames, -1)[:, -per_pixel:].ravel() + LATENCY,))


def pad(arrivals: Times, frames: int, shape: tuple[int, int, int], pads: tuple[int, int, int, int]) -> Timing:
    """A map with a border: its beats, ``shape`` (rows, columns, beats a pixel), wait while the border's leave."""
    top, left, bottom, right = pads
    grid = arrivals.reshape(frames, *shape)
    ready = np.pad(grid, ((0, 0), (top, bottom), (left, right), (0, 0)))
    ready = np.maximum(ready, grid[:, :1, :1, :1])  # nothing of a frame leaves before its first beat has come
    done = serve(ready.ravel(), 1)
    inside = done.reshape(ready.shape)[:, top : top + shape[0], left : left + shape[1]]
    return Timing(reads=(inside.ravel(),), writes=(done + LATENCY,))


def upsample(arrivals: Times, frames: int, height: int, row_beats: int, width: int, factor: int, cost: float) -> Timing:
    """Rows sent ``factor`` times, pixels repeated, a beat every ``cost`` cycles; a row is taken while the last copy of the row before
    leaves."""
    per_pixel = row_beats // width
    grid = arrivals.reshape(frames * height, width, per_pixel)
    wide = np.repeat(grid, factor, axis=1).reshape(frames * height, 1, -1)
    ready = np.repeat(wide, factor, axis=1).ravel()
    done = serve(ready, cost)
    last_copy = done.reshape(frames * height, factor, width, factor, per_pixel)[:, -1, :, -1]
    taken = grid.copy()
    taken[1:] = np.maximum(taken[1:], last_copy[:-1])
    return Timing(reads=(taken.ravel(),), writes=(done + LATENCY,))


def matvec(vectors: Times, folds_in: int, folds_out: int, pace: float) -> tuple[Times, Times]:
    """(start of every pixel's computation, output beats) when pixel vectors are complete at ``vectors``; ``pace`` times slower than it
    could."""
    busy = folds_in * folds_out * pace
    start = serve(vectors, busy) - int(busy)
    writes = start[:, None] + ((np.arange(folds_out) + 1) * folds_in * pace).astype(start.dtype) + LATENCY
    return start, writes.ravel()


def pointwise(arrivals: Times, folds_in: int, folds_out: int, pace: float) -> Timing:
    """Matrix-vector unit with a double buffer: pixel p loads while pixel p - 1 is computed."""
    loads = arrivals.reshape(-1, folds_in)
    start, writes = matvec(loads[:, -1], folds_in, folds_out, pace)
    free = np.zeros_like(start)
    free[1:] = start[:-1]
    return Timing(reads=(np.maximum(loads, free[:, None]).ravel(),), writes=(writes,))


def engine(arrivals: Times, sizes: tuple[int, int, int], job: int, wait: int, layers: int) -> Timing:
    """A layer of the shared engine: ``sizes`` are pixels of a tile and beats of a pixel before and behind.

    A whole tile waits ``wait`` cycles for the jobs of others, then takes ``job``; its words leave when the layer's turn comes. The pool
    in front is taken to have room: where it has none the unit before waits, which costs time but no beat, and needs no queue.
    """
    tile, beats_in, beats_out = sizes
    whole = arrivals.reshape(-1, tile * beats_in)
    turn = max(layers, 3)
    words = serve(whole[:, -1] + wait, job)[:, None] + np.arange(1, tile * beats_out + 1, dtype=arrivals.dtype) * turn
    return Timing(reads=(arrivals,), writes=(serve(words.ravel(), turn) + LATENCY,))


def spool(arrivals: Times, turn: int) -> Timing:
    """A queue in memory (hw.lib.spool): a beat comes back when its block is whole and has been there; a beat every ``turn`` cycles."""
    size = 2 * BLOCK
    whole = np.concatenate([arrivals[size - 1 :: size], arrivals[len(arrivals) - len(arrivals) % size :][-1:]])
    ready = np.repeat(whole, size)[: len(arrivals)] + MEMORY
    return Timing(reads=(arrivals,), writes=(serve(ready, turn),))


@dataclass(frozen=True, kw_only=True)
class Sliding:
    """A window over a map held in a ring of rows: which input pixel an output pixel waits for, and when rows become free."""

    frames: int
    height: int
    width: int
    out_height: int
    out_width: int
    rows: int
    need_row: npt.NDArray[np.int64]
    need_col: npt.NDArray[np.int64]
    last_user: npt.NDArray[np.int64]

    @staticmethod
    def of(window: Window, frames: int, height: int, width: int) -> Sliding:
        """The schedule of a plain window."""
        out_h, out_w = window.out_size(height, width)
        reach = [(k - 1) * d for k, d in zip(window.kernel, window.dilation, strict=True)]
        top, left = window.pad[:2]
        need_row = np.clip(np.arange(out_h) * window.stride[0] - top + reach[0], 0, height - 1)
        need_col = np.clip(np.arange(out_w) * window.stride[1] - left + reach[1], 0, width - 1)
        need_row[-1] = max(need_row[-1], 0)
        last_user = np.clip((np.arange(height) + top) // window.stride[0], 0, out_h - 1)
        return Sliding(
            frames=frames, height=height, width=width, out_height=out_h, out_width=out_w, rows=reach[0] + 1,
            need_row=need_row, need_col=need_col, last_user=last_user,
        )  # fmt: skip

    @staticmethod
    def around(ring: DeformRing, banks: int, frames: int, width: int) -> Sliding:
        """The schedule of a deformable layer: whole rows of ``width`` pixels."""
        repeat, outputs = ring.repeat, ring.last + 1
        last_user = np.minimum(np.arange(ring.height) * repeat + repeat - 1 + ring.reach, ring.last)
        return Sliding(
            frames=frames, height=ring.height, width=width, out_height=outputs, out_width=width * repeat, rows=ring.rows(banks),
            need_row=np.array([ring.last_read(y) for y in range(outputs)]), need_col=np.full(width * repeat, width - 1),
            last_user=last_user,
        )  # fmt: skip

    def ready(self, arrivals: Times) -> Times:
        """When each output pixel's last input pixel is there; (frames·pixels,)."""
        grid = arrivals.reshape(self.frames, self.height, self.width, -1)[..., -1]
        return grid[:, self.need_row][:, :, self.need_col].reshape(-1)

    def reads(self, arrivals: Times, pixel_done: Times) -> Times:
        """When input beats are taken: a row waits until the row that it replaces in the ring has had its last user."""
        row_done = pixel_done.reshape(self.frames, self.out_height, self.out_width)[:, :, -1]
        free = row_done[:, self.last_user].ravel()  # of every input row, counted through all frames
        grid = arrivals.reshape(self.frames * self.height, -1).copy()
        if self.rows < len(grid):
            grid[self.rows :] = np.maximum(grid[self.rows :], free[: -self.rows, None])
        return grid.ravel()
