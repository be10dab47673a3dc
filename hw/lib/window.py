"""Sliding windows: a line buffer that emits the words of every window."""
from __future__ import annotations

from typing import Literal

from amaranth import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.ring import Loop, counter, strides, window_ring, wrap_add
from hw.params import Lanes, Window
from hw.units.base import signature


class WindowStage(wiring.Component):
    """For every output pixel in raster order, the words of its taps; ``fill`` in every lane outside the map.

    Order "tap": for each tap (row by row) all channel groups; order "group": for each channel group all taps.

    Throughput: one word a cycle, back to back across pixels, rows and frames. Latency: a word leaves three cycles after
    the beat that it repeats was taken, if the reader waits for it. A word waits only for its own beat. The line buffer
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
        step = Signal()
        m.d.comb += step.eq(~self.o.valid | self.o.ready)
        go, write = Signal(), Signal()  # the current tap's word is read, a beat is written in this cycle
        m.d.comb += write.eq(self.i.valid & self.i.ready)
        beats = {n: (self._rows[n] * self.width + self._cols[n]) * self.groups + (n == "group") for n in self.levels}
        wraps = self._loops(m, go)
        move = list(zip(wraps, self._moves(beats, self.height * self.width * self.groups), strict=True))
        inside = self._inside(m, go, wraps)
        m.d.comb += go.eq(step & self._arrived(m, go, write, move, inside))
        self._memory(m, go, write, step, inside, move)
        return m

    def _loops(self, m: Module, go: Value) -> list[Value]:
        """The loops' counters; returns whether the next tap is in another frame, row, pixel..., innermost level last."""
        ends: list[Value] = [Const(1)]  # all levels inside this one are at their last iteration, innermost first
        for name in reversed(self.levels):
            count = self._counts[name]
            last = Signal(name=f"{name}_last")
            if count == 1:
                m.d.comb += last.eq(ends[-1])
            else:
                index = counter(count, name)
                m.d.comb += last.eq(ends[-1] & (index == count - 1))
                with m.If(go & ends[-1]):
                    m.d.sync += index.eq(Mux(index == count - 1, 0, index + 1))
            ends.append(last)
        return ends[::-1]

    @staticmethod
    def _choose(m: Module, name: str, choices: list[tuple[Value, int]], bits: int) -> Signal:
        """The constant of the outermost level that advances."""
        chosen = Signal(signed(bits), name=name)
        for k, (advances, value) in enumerate(choices):
            with m.If(advances) if k == 0 else m.Elif(advances):
                m.d.comb += chosen.eq(value)
        return chosen

    def _inside(self, m: Module, go: Value, wraps: list[Value]) -> Value:
        """Whether the current tap lies in the map."""
        flags = []
        for name, size, steps, pad in (
            ("row", self.height, self._rows, self.window.pad[0]),
            ("col", self.width, self._cols, self.window.pad[1]),
        ):
            moves = self._moves(steps, 0)
            bits = (2 * size + sum(abs(v) for v in moves) + pad).bit_length() + 1
            position = Signal(signed(bits), init=-pad, name=name)
            with m.If(go):
                m.d.sync += position.eq(position + self._choose(m, f"{name}_move", list(zip(wraps, moves, strict=True)), bits))
            flags.append((position >= 0) & (position < size))
        return flags[0] & flags[1]

    def _arrived(self, m: Module, go: Value, write: Value, move: list[tuple[Value, int]], inside: Value) -> Value:
        """Counts what the ring holds and takes input while there is room; returns whether the current tap can be read.

        It can if its beat has arrived or if it is outside; a frame's first tap also waits for the frame's first beat.

        Both counts may fall below 0: the window runs ahead of the input where it needs nothing of it.
        """
        groups, (top, left) = self.groups, self.window.pad[:2]
        bits = (self.height * self.width * groups + self.depth).bit_length() + 2
        corner = (top * self.width + left) * groups
        ahead = Signal(signed(bits), init=corner)  # beats written from the current tap's on
        held = Signal(signed(bits), init=corner)  # beats written from the window's corner on
        release = zip((wraps for wraps, _ in move), (self.ring.frame, self.ring.row, self.ring.pixel), strict=False)
        m.d.comb += self.i.ready.eq(held < self.depth)
        moved = self._choose(m, "ahead_move", move, bits)
        released = self._choose(m, "released", [(w, n * groups) for w, n in release], bits)
        m.d.sync += ahead.eq(ahead + write - Mux(go, moved, 0))
        m.d.sync += held.eq(held + write - Mux(go, released, 0))
        first = Signal(init=1)  # tap of the frame
        with m.If(go):
            m.d.sync += first.eq(move[0][0])
        return Mux(first, ahead > corner, (ahead > 0) | ~inside)

    def _memory(self, m: Module, go: Value, write: Value, step: Value, inside: Value, move: list[tuple[Value, int]]) -> None:
        """The memory, its addresses, and the two stages behind it."""
        depth, groups = self.depth, self.groups
        m.submodules.rows = rows = memory.Memory(shape=self.lanes.width, depth=depth, init=[])
        w_port, r_port = rows.write_port(), rows.read_port()
        corner = (self.window.pad[0] * self.width + self.window.pad[1]) * groups
        w_addr = Signal(len(w_port.addr), init=corner % depth)
        r_addr = counter(depth, "r_addr")  # the tap at the window's first corner is beat 0 of the ring
        m.d.comb += [w_port.addr.eq(w_addr), w_port.data.eq(self.i.payload.as_value()), w_port.en.eq(write)]
        with m.If(write):
            m.d.sync += w_addr.eq(Mux(w_addr == depth - 1, 0, w_addr + 1))
        m.d.comb += [r_port.addr.eq(r_addr), r_port.en.eq(step)]
        bits = depth.bit_length() + 1
        with m.If(go):
            m.d.sync += r_addr.eq(wrap_add(r_addr, self._choose(m, "r_move", [(w, n % depth) for w, n in move], bits), depth))
        valid, outside = Signal(), Signal()
        shape = self.o.payload.shape()
        fill = Const(shape.const([self.fill] * self.lanes.lanes).as_bits(), self.lanes.width)
        with m.If(step):
            m.d.sync += [valid.eq(go), outside.eq(~inside), self.o.valid.eq(valid)]
            m.d.sync += self.o.payload.as_value().eq(Mux(outside, fill, r_port.data))
