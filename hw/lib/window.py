"""Sliding windows: a line buffer that emits the words of every window."""
from __future__ import annotations

from typing import Literal

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.arith import add_carry
from hw.lib.fifo import Fifo
from hw.lib.ring import Loop, strides, window_ring
from hw.lib.walk import Walk, ring_address
from hw.params import Lanes, Window
from hw.units.base import signature


class WindowStage(wiring.Component):
    """For every output pixel in raster order, the words of its taps; ``fill`` in every lane outside the map.

    Order "tap": for each tap (row by row) all channel groups; order "group": for each channel group all taps.

    Throughput: one word a cycle, back to back across pixels, rows and frames. Latency: a word leaves four cycles after
    the beat that it repeats was taken, if the reader waits for it; ready is registered. A word waits only for its own beat. The line buffer
    is one memory, a ring of ``depth`` beats (:func:`hw.lib.ring.window_ring`) shared by consecutive frames; input is
    taken whenever it has room. Unused lanes of the last group pass through.

    Parameters: ``height``, ``width``, ``channels`` of the map; ``window``; ``i`` lanes of both streams; ``order``; ``fill``.
    Members: ``i``, ``o``: streams of ``i``. Raises ValueError if the window does not fit or an argument is out of range.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(
        self, *, height: int, width: int, channels: int, window: Window, i: Lanes, order: Literal["tap", "group"], fill: int = 0
    ) -> None:
        if min(height, width, channels) < 1:
            raise ValueError(f"height, width and channels must be positive, not {(height, width, channels)!r}")
        if order not in ("tap", "group"):
            raise ValueError(f'order must be "tap" or "group", not {order!r}')
        if not i.lowest <= fill <= i.highest:
            raise ValueError(f"fill must be in {i.lowest}..{i.highest}, not {fill!r}")
        self.height, self.width, self.window, self.lanes, self.fill = height, width, window, i, fill
        self.out_size = window.out_size(height, width)
        self.groups = i.beats(channels)
        self.ring = window_ring(height, width, window)
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
    def frame_cycles(self) -> int:
        """Words that leave, or beats that enter if those are more."""
        out_h, out_w = self.out_size
        return max(out_h * out_w * self.window.taps * self.groups, self.height * self.width * self.groups)

    def _moves(self, steps: dict[str, int], frame: int) -> list[int]:
        """What a position moves by when each level advances; the first entry is for the next frame."""
        return strides([Loop(1, frame), *(Loop(self._counts[n], steps[n]) for n in self.levels)])

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.slice = out = Fifo(self.lanes, 2)  # no path from the reader's ready to the counters
        wiring.connect(m, out.o, wiring.flipped(self.o))
        go, write = Signal(), Signal()  # the current tap's word is read, a beat is written in this cycle
        read, valid, step = Signal(), Signal(), Signal()  # a word is at the memory's output, in the register behind it; both move
        m.d.comb += [write.eq(self.i.valid & self.i.ready), step.eq(~valid | out.i.ready), out.i.valid.eq(valid)]
        walk = Walk(m, go, {name: self._counts[name] for name in self.levels})
        inside = self._inside(m, go, walk)
        arrived = self._account(m, go, write, walk, inside)
        m.d.comb += go.eq(step & arrived)
        with m.If(step):
            m.d.sync += [read.eq(go), valid.eq(read)]
        m.d.comb += out.i.payload.as_value().eq(self._word(m, go, write, step, walk, inside))
        return m

    def _inside(self, m: Module, go: Value, walk: Walk) -> Signal:
        """Whether the current tap lies in the map."""
        flags, initially = [], True
        for name, size, steps, pad in (
            ("row", self.height, self._rows, self.window.pad[0]),
            ("col", self.width, self._cols, self.window.pad[1]),
        ):
            moves = self._moves(steps, 0)
            bits = (2 * size + sum(abs(v) for v in moves) + pad).bit_length() + 1
            position = Signal(signed(bits), init=moves[walk.first] - pad, name=name)  # of the next tap
            with m.If(go):
                m.d.sync += position.eq(position + walk.choose(m, f"{name}_move", moves, signed(bits)))
            flags.append((position >= 0) & (position < size))
            initially &= 0 <= -pad < size
        inside = Signal(init=initially)
        with m.If(go):
            m.d.sync += inside.eq(flags[0] & flags[1])
        return inside

    def _account(self, m: Module, go: Value, write: Value, walk: Walk, inside: Value) -> Value:
        """Counts what the ring holds and takes input while there is room; returns whether the current tap can be read.

        It can if its beat has arrived or if it is outside; a frame's first tap also waits for the frame's first beat. The counts are
        kept one lower than what is counted, or as what is left, so that their signs alone decide.
        """
        groups, (top, left), size = self.groups, self.window.pad[:2], self.height * self.width * self.groups
        bits = (size + self.depth).bit_length() + 2
        corner = (top * self.width + left) * groups
        ahead = Signal(signed(bits), init=corner - 1)  # beats written from the current tap's on, less 1
        fresh = Signal(signed(bits), init=-1)  # beats written from the current frame's first on, less 1
        room = Signal(signed(bits), init=self.depth - 1 - corner)  # places free behind the beats from the window's corner on, less 1
        beats = {n: (self._rows[n] * self.width + self._cols[n]) * groups + (n == "group") for n in self.levels}
        release = [self.ring.frame, self.ring.row, self.ring.pixel]
        passed = walk.ready(m, go, "passed", [-n for n in self._moves(beats, size)], signed(bits))
        freed = walk.ready(m, go, "freed", [n * groups - 1 for n in release] + [-1] * (len(self.levels) - 2), signed(bits))
        ends = walk.ready(m, go, "frame_ends", [1] + [0] * len(self.levels), 1)
        m.d.comb += self.i.ready.eq(~room[-1])
        m.d.sync += [
            ahead.eq(add_carry(ahead, Mux(go, passed, 0), write)),
            fresh.eq(add_carry(fresh, Mux(go & ends, -size, 0), write)),
            room.eq(add_carry(room, Mux(go, freed, -1), ~write)),
        ]
        first = Signal(init=1)  # tap of the frame
        with m.If(go):
            m.d.sync += first.eq(ends)
        return Mux(first, ~fresh[-1], ~ahead[-1] | ~inside)

    def _word(self, m: Module, go: Value, write: Value, step: Value, walk: Walk, inside: Value) -> Value:
        """The memory, its addresses, and the word two steps after its tap."""
        depth, groups = self.depth, self.groups
        m.submodules.rows = rows = memory.Memory(shape=self.lanes.width, depth=depth, init=[])
        w_port, r_port = rows.write_port(), rows.read_port()
        corner = (self.window.pad[0] * self.width + self.window.pad[1]) * groups
        w_addr = Signal(len(w_port.addr), init=corner % depth)
        beats = {n: (self._rows[n] * self.width + self._cols[n]) * groups + (n == "group") for n in self.levels}
        moves = self._moves(beats, self.height * self.width * groups)
        r_addr = ring_address(m, go, walk, moves, depth)  # the tap at the window's first corner is beat 0 of the ring
        m.d.comb += [w_port.addr.eq(w_addr), w_port.data.eq(self.i.payload.as_value()), w_port.en.eq(write)]
        with m.If(write):
            m.d.sync += w_addr.eq(Mux(w_addr == depth - 1, 0, w_addr + 1))
        m.d.comb += [r_port.addr.eq(r_addr), r_port.en.eq(step)]
        outside, word = Signal(2), Signal(self.lanes.width, reset_less=True)  # block RAM is slow: nothing between it and a register
        with m.If(step):
            m.d.sync += [outside.eq(Cat(~inside, outside)), word.eq(r_port.data)]
        fill = self.o.payload.shape().const([self.fill] * self.lanes.lanes).as_bits()
        return Mux(outside[1], Const(fill, self.lanes.width), word)
