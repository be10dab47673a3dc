"""Sliding windows: a line buffer that emits the words of every window."""
from __future__ import annotations

from typing import Literal

from amaranth import Cat, Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.arith import add_carry, bits_for
from hw.lib.fifo import Fifo
from hw.lib.ring import Loop, ring_size, strides, window_ring
from hw.lib.store import ram
from hw.lib.walk import Walk, ring_address
from hw.params import RESTS, Lanes, Window
from hw.units.base import signature


class WindowStage(wiring.Component):
    """For every output pixel in raster order, the words of its taps; ``fill`` in every lane outside the map.

    Order "tap": for each tap (row by row) all channel groups; order "group": for each channel group all taps.

    Throughput: one word a cycle, back to back across pixels, rows and frames. Latency: a word leaves four cycles after
    the beat that it repeats was taken, if the reader waits for it; ready is registered. A word waits only for its own beat. The line buffer
    is one memory, a ring of ``depth`` beats (:func:`hw.lib.ring.window_ring`) shared by consecutive frames; input is
    taken whenever it has room. Unused lanes of the last group pass through.

    ``tight``: of a window with a stride, the rows between two rows of outputs are not stored ahead, so it waits for them. It keeps up with
    input that comes evenly if it is :data:`hw.params.RESTS` times as fast as that.

    Parameters: ``height``, ``width``, ``channels`` of the map; ``window``; ``i`` lanes of both streams; ``order``; ``fill``.
    Members: ``i``, ``o``: streams of ``i``. Raises ValueError if the window does not fit or an argument is out of range.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(
        self, *, height: int, width: int, channels: int, window: Window, i: Lanes, order: Literal["tap", "group"], fill: int = 0,
        tight: bool = False,
    ) -> None:  # fmt: skip
        if min(height, width, channels) < 1:
            raise ValueError(f"height, width and channels must be positive, not {(height, width, channels)!r}")
        if order not in ("tap", "group"):
            raise ValueError(f'order must be "tap" or "group", not {order!r}')
        if not i.lowest <= fill <= i.highest:
            raise ValueError(f"fill must be in {i.lowest}..{i.highest}, not {fill!r}")
        self.height, self.width, self.window, self.lanes, self.fill = height, width, window, i, fill
        self.out_size = window.out_size(height, width)
        self.groups = i.beats(channels)
        self.tight = tight
        self.ring = window_ring(height, width, window, tight)
        (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.stride, window.dilation
        taps, group = ["ky", "kx"], ["group"]
        #: Names of the loops, outermost first.
        self.levels = ["y", "x", *(taps + group if order == "tap" else group + taps)]
        self._counts = {"y": self.out_size[0], "x": self.out_size[1], "ky": kh, "kx": kw, "group": self.groups}
        self._rows = {"y": sh, "x": 0, "ky": dh, "kx": 0, "group": 0}
        self._cols = {"y": 0, "x": sw, "ky": 0, "kx": dw, "group": 0}
        super().__init__({"i": In(signature(i)), "o": Out(signature(i))})

    @property
    def rows(self) -> int:
        """Rows of the map that the line buffer holds, the last one partly."""
        return -(-self.ring.pixels // self.width)

    @property
    def depth(self) -> int:
        """Beats that the line buffer holds."""
        return self.ring.pixels * self.groups

    @property
    def span(self) -> int:
        """Beats of the map from the first that the line buffer holds to the last."""
        return self.depth

    @property
    def frame_cycles(self) -> int:
        """Words that leave (counted RESTS times if tight), or beats that enter if those are more."""
        out_h, out_w = self.out_size
        times = RESTS if self.tight else 1
        return max(out_h * out_w * self.window.taps * self.groups * times, self.height * self.width * self.groups)

    def _moves(self, steps: dict[str, int], frame: int) -> list[int]:
        """What a position moves by when each level advances; the first entry is for the next frame."""
        return strides([Loop(1, frame), *(Loop(self._counts[n], steps[n]) for n in self.levels)])

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.slice = out = Fifo(self.lanes, 2)  # no path from the reader's ready to the counters
        wiring.connect(m, out.o, wiring.flipped(self.o))
        go, write = Signal(), Signal()  # the current tap's word is read, a beat is written in this cycle
        read, valid, step = Signal(), Signal(), Signal()  # a word is at the memory's output, in the register behind it; both move
        m.d.comb += [write.eq(self.i.valid & self.i.ready), step.eq(out.i.ready), out.i.valid.eq(valid)]
        walk = Walk(m, go, {name: self._counts[name] for name in self.levels})
        ends = walk.ready(m, go, "frame_ends", [1] + [0] * len(self.levels), 1)
        inside, waits = self._inside(m, go, walk, ends)
        m.d.comb += go.eq(step & (self._account(m, go, write, walk, ends) | ~waits))
        begun = self._begun(m, go, step)
        with m.If(step):
            m.d.sync += [read.eq(begun), valid.eq(read)]
        m.d.comb += out.i.payload.as_value().eq(self._word(m, go, write, step, walk, inside))
        return m

    def _inside(self, m: Module, go: Value, walk: Walk, ends: Value) -> tuple[Signal, Signal]:
        """Whether the current tap lies in the map; whether it waits for a beat: if it does, or is the frame's first."""
        flags, initially = [], True
        for name, size, steps, pad in (
            ("row", self.height, self._rows, self.window.pad[0]),
            ("col", self.width, self._cols, self.window.pad[1]),
        ):
            moves = self._moves(steps, 0)
            reach = sum((self._counts[n] - 1) * step for n, step in steps.items() if n in self._counts)
            bits = bits_for((-pad, reach - pad, size))
            position = Signal(signed(bits), init=moves[walk.first] - pad, name=name)  # of the next tap
            with m.If(go):
                m.d.sync += position.eq(position + walk.choose(m, f"{name}_move", moves, signed(bits)))
            flags.append((position >= 0) & (position < size))
            initially &= 0 <= -pad < size
        inside, waits = Signal(init=initially), Signal(init=1)
        with m.If(go):
            m.d.sync += [inside.eq(flags[0] & flags[1]), waits.eq(flags[0] & flags[1] | ends)]
        return inside, waits

    def _account(self, m: Module, go: Value, write: Value, walk: Walk, ends: Value) -> Value:
        """Counts what has arrived; returns whether the current tap's beat has.

        A frame's first tap, which may lie outside, counts as the frame's first beat: nothing leaves before that has come. The counts are
        kept one lower than what is counted, or as what is left, so that their signs alone decide.
        """
        groups, (top, left), size = self.groups, self.window.pad[:2], self.height * self.width * self.groups
        corner = (top * self.width + left) * groups
        # Taps and corners run ahead of what has come by at most a window or a move over what is never read, both less than the ring.
        counted = signed((2 * self.span).bit_length() + 1)
        ahead = Signal(counted, init=-1)  # beats written from the current tap's on, less 1
        beats = {n: (self._rows[n] * self.width + self._cols[n]) * groups + (n == "group") for n in self.levels}
        moves = [-n for n in self._moves(beats, size)]
        moves[0] -= corner
        leaves = moves[walk.first] + corner  # the first tap
        passed = Signal(ahead.shape(), init=leaves)
        with m.If(go):
            m.d.sync += passed.eq(Mux(ends, leaves, walk.choose(m, "passes", moves, counted)))
        room, after = self._room(m, go, write, walk, counted)
        m.d.sync += [ahead.eq(add_carry(ahead, Mux(go, passed, 0), write)), room.eq(after)]
        return ~ahead[-1]

    def _room(self, m: Module, go: Value, write: Value, walk: Walk, counted: Shape) -> tuple[Signal, Value]:
        """Takes input while there is room; returns the count of it and the next.

        The corner's beats are free when the first tap has been read, what else a window leaves behind at its end.
        """
        groups, (top, left) = self.groups, self.window.pad[:2]
        # Places free behind the beats from the window's corner on, less 1.
        room = Signal(counted, init=self.depth - 1 - (top * self.width + left) * groups)
        release = [n - self.ring.early for n in (self.ring.frame, self.ring.row, self.ring.pixel)]
        frees = [n * groups - 1 for n in release] + [-1] * (len(self.levels) - 2)
        first = Cat(walk.at[n] == 0 for n in ("ky", "kx") if n in walk.at).all() if self.ring.early else Const(0)  # of the next word
        freed = Signal(counted, init=0 if self.ring.early else frees[walk.first])
        with m.If(go):
            m.d.sync += freed.eq(Mux(first, 0, walk.choose(m, "frees", frees, counted)))
        m.d.comb += self.i.ready.eq(~room[-1])
        return room, add_carry(room, Mux(go, freed, -1), ~write)

    def _begun(self, m: Module, go: Value, step: Value) -> Value:
        """Whether a word is read in this step."""
        return go

    def _word(self, m: Module, go: Value, write: Value, step: Value, walk: Walk, inside: Value) -> Value:
        """The memory, its addresses, and the word two steps after its tap."""
        groups = self.groups
        size = ring_size(self.lanes.width, self.depth)
        m.submodules.rows = rows = ram(self.lanes.width, size)
        w_port, r_port = rows.write_port(), rows.read_port()
        corner = (self.window.pad[0] * self.width + self.window.pad[1]) * groups
        w_addr = Signal(len(w_port.addr), init=corner % size)
        beats = {n: (self._rows[n] * self.width + self._cols[n]) * groups + (n == "group") for n in self.levels}
        moves = self._moves(beats, self.height * self.width * groups)
        r_addr = ring_address(m, go, walk, moves, size)  # the tap at the window's first corner is beat 0 of the ring
        m.d.comb += [w_port.addr.eq(w_addr), w_port.data.eq(self.i.payload.as_value()), w_port.en.eq(write)]
        with m.If(write):
            m.d.sync += w_addr.eq(Mux(w_addr == size - 1, 0, w_addr + 1) if size & size - 1 else w_addr + 1)
        m.d.comb += [r_port.addr.eq(r_addr), r_port.en.eq(step)]
        outside, word = Signal(2), Signal(self.lanes.width, reset_less=True)  # block RAM is slow: nothing between it and a register
        with m.If(step):
            m.d.sync += [outside.eq(Cat(~inside, outside)), word.eq(r_port.data)]
        fill = self.o.payload.shape().const([self.fill] * self.lanes.lanes).as_bits()
        return Mux(outside[1], Const(fill, self.lanes.width), word)
