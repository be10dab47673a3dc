"""What a line buffer must do, watched at its ports: each word is the beat that belongs there, and none is given before it came."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Assert, Assume, Const, Module, Mux, Signal, signed
from amaranth.lib.wiring import In

from hw.lib.taps import WindowTaps
from sim.formal.harness import Harness, stuck


def words_of(unit: Any) -> list[int | None]:
    """For each word of a frame of a :class:`hw.lib.window.WindowStage`, the beat that it repeats, or None outside the map."""
    (kh, kw), (sh, sw), (dh, dw) = unit.window.kernel, unit.window.stride, unit.window.dilation
    top, left = unit.window.pad[:2]
    order = unit.levels
    sizes = {"y": unit.out_size[0], "x": unit.out_size[1], "ky": kh, "kx": kw, "group": unit.groups}
    places: list[dict[str, int]] = [{}]
    for name in order:
        places = [{**place, name: k} for place in places for k in range(sizes[name])]
    words: list[int | None] = []
    for p in places:
        row, col = p["y"] * sh + p["ky"] * dh - top, p["x"] * sw + p["kx"] * dw - left
        inside = 0 <= row < unit.height and 0 <= col < unit.width
        words.append((row * unit.width + col) * unit.groups + p["group"] if inside else None)
    return words


class Words(Harness):
    """A unit that repeats the beats of a frame in a fixed order; a fixed but arbitrary beat of an arbitrary frame is followed.

    A word must have been taken before it is given (no read of an unwritten entry) and, where it is the followed beat, be that beat
    (nothing was overwritten too early); a word outside the map is ``fill``. ``words``: the beats that stand side by side in each word
    (from the lowest bits on), None outside; ``beats`` of a frame; ``frames``: how many the unit holds at most. Member besides: ``place``,
    the beat that is followed.
    """

    def __init__(self, unit: Any, beats: int, words: Sequence[Sequence[int | None]], fill: int, frames: int, patience: int) -> None:
        self.beats, self.words, self.fill, self.frames, self.patience = beats, list(words), fill, frames, patience
        super().__init__(unit, place=In(range(max(beats, 2))))

    def watch(self, m: Module, taken: Signal, given: Signal) -> None:
        before, known = Signal.like(self.place), Signal()
        m.d.sync += [before.eq(self.place), known.eq(1)]
        m.d.comb += Assume((self.place < self.beats) & (~known | (self.place == before)))
        came, went = Signal(range(max(self.beats, 2))), Signal(range(len(self.words)))
        frame_in, frame_out = Signal(), Signal()
        m.d.comb += [frame_in.eq(taken & (came == self.beats - 1)), frame_out.eq(given & (went == len(self.words) - 1))]
        with m.If(taken):
            m.d.sync += came.eq(Mux(frame_in, 0, came + 1))
        with m.If(given):
            m.d.sync += went.eq(Mux(frame_out, 0, went + 1))
        behind = Signal(signed(4))  # frame that comes in, less the frame that goes out
        m.d.sync += behind.eq(behind + frame_in - frame_out)
        m.d.comb += Assert((behind >= -1) & (behind <= self.frames))

        following, ahead, wanted = Signal(), Signal(3), Signal.like(self.payload)
        with m.If(following & frame_out):
            m.d.sync += [ahead.eq(ahead - 1), following.eq(ahead != 0)]
        lag = behind - frame_out
        with m.If(taken & self.mark & ~following & (came == self.place) & (lag >= 0)):
            m.d.sync += [following.eq(1), ahead.eq(lag), wanted.eq(self.payload)]

        payload, size = self.unit.o.payload.as_value(), len(self.payload)
        with m.If(self.unit.o.valid), m.Switch(went):
            for k, parts in enumerate(self.words):
                with m.Case(k):
                    for at, beat in enumerate(parts):
                        part = payload[at * size : (at + 1) * size]
                        if beat is None:
                            m.d.comb += Assert(part == Const(self.fill, size))
                            continue
                        m.d.comb += Assert((behind > 0) | ((behind == 0) & (came > beat)))
                        with m.If(following & (ahead == 0) & (self.place == beat)):
                            m.d.comb += Assert(part == wanted)
        stuck(m, self, taken, self.patience)


def windows(unit: Any, patience: int) -> Words:
    """The harness of a :class:`hw.lib.window.WindowStage`."""
    fill = unit.o.payload.shape().const([unit.fill] * unit.lanes.lanes).as_bits()
    beats = unit.height * unit.width * unit.groups
    return Words(unit, beats, [[beat] for beat in words_of(unit)], fill, -(-unit.depth // beats) + 1, patience)


def window_taps(unit: WindowTaps, patience: int) -> Words:
    """The harness of a :class:`hw.lib.taps.WindowTaps`."""
    (kh, kw), (sh, sw), (dh, dw) = unit.window.kernel, unit.window.stride, unit.window.dilation
    out_h, out_w = unit.window.out_size(unit.height, unit.width)

    def beat(row: int, col: int, group: int) -> int | None:
        inside = 0 <= row < unit.height and 0 <= col < unit.width
        return (row * unit.width + col) * unit.groups + group if inside else None

    words = [
        [beat(y * sh - unit.window.pad[0] + i * dh, x * sw - unit.window.pad[1] + j * dw, group) for i in range(kh) for j in range(kw)]
        for y in range(out_h) for x in range(out_w) for group in range(unit.groups)
    ]  # fmt: skip
    fill = unit.i.payload.shape().const([unit.fill] * unit.lanes.lanes).as_bits()
    return Words(unit, unit.height * unit.width * unit.groups, words, fill, 2, patience)
