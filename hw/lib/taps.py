"""Sliding windows, all taps at once: a line buffer of delay lines."""
from __future__ import annotations

from typing import Any

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.delay import delay_line, delayed
from hw.lib.ring import Loop, counter, strides
from hw.params import Lanes, Window
from hw.units.base import signature


class WindowTaps(wiring.Component):
    """For every output pixel and channel group in raster order, the words of all its taps in one beat.

    Lane ``tap · i.lanes + k`` is lane k of the word at ``tap`` (row by row); ``fill`` outside the map. The line buffer holds
    (KH - 1)·dilation rows and (KW - 1)·dilation pixels, as delays: every beat of input is a step, and an output leaves with
    the step that would bring the last beat of its window if the rows went on. What a frame still owes when its last beat
    has come leaves with the next frame's first steps, or, before that has begun, with idle ones: a frame never
    waits for the next to begin, but once that has begun it keeps pace with it.

    Throughput: one beat a cycle, without bubbles at borders or between frames; see :func:`taps_cycles`. Latency: 1 cycle.

    Parameters: ``height``, ``width``, ``channels`` of the map; ``window``; ``i``; ``fill``.
    Raises ValueError if the window does not fit, or is padded so much that outputs outnumber the steps that are there for them.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, height: int, width: int, channels: int, window: Window, i: Lanes, fill: int = 0) -> None:
        if min(height, width, channels) < 1:
            raise ValueError(f"height, width and channels must be positive, not {(height, width, channels)!r}")
        if not i.lowest <= fill <= i.highest:
            raise ValueError(f"fill must be in {i.lowest}..{i.highest}, not {fill!r}")
        self.height, self.width, self.window, self.lanes, self.fill = height, width, window, i, fill
        self.groups = i.beats(channels)
        self.first, self.gaps = step_gaps(height, width, self.groups, window)
        self.rows, self.cols = _kept((height, width), 0, window), _kept((height, width), 1, window)
        self.out = Lanes(lanes=i.lanes * window.taps, bits=i.bits, signed=i.signed)
        super().__init__({"i": In(signature(i)), "o": Out(signature(self.out))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        step, due, emit = Signal(), Signal(), Signal()
        free = Signal()
        m.d.comb += free.eq(~self.o.valid | self.o.ready)
        inside = self._schedule(m, step, due, free, emit)
        words = self._line_buffer(m, step)
        shape = data.ArrayLayout(self.i.payload.shape().elem_shape, self.lanes.lanes)
        fill = Const(shape.const([self.fill] * self.lanes.lanes).as_bits(), self.lanes.width)
        with m.If(free):
            m.d.sync += self.o.valid.eq(emit)
        kept = [i * self.window.kernel[1] + j for i in self.rows for j in self.cols]
        found = {tap: Mux(ok, word, fill) for tap, ok, word in zip(kept, inside, words, strict=True)}
        with m.If(emit):
            m.d.sync += self.o.payload.as_value().eq(Cat(found.get(tap, fill) for tap in range(self.window.taps)))
        return m

    def _schedule(self, m: Module, step: Signal, due: Signal, free: Value, emit: Value) -> list[Value]:
        """Which steps are taken and which of them give an output; returns which of its taps lie in the map."""
        beats = self.height * self.width * self.groups
        index = counter(beats, "index")  # of the beat that comes in; what is asked of it stands in registers beside it
        first, start, end = Signal(init=self.first == 0), Signal(init=1), Signal(init=beats == 1)
        active = Signal()  # outputs of the frame are under way; `wait` + 1 steps pass before the next
        wait = Signal(signed(max(self.gaps).bit_length() + 1), name="wait")
        begin, idle = Signal(), Signal()
        m.d.comb += begin.eq(~active & first)
        m.d.comb += idle.eq(active & start & ~self.i.valid)
        m.d.comb += due.eq(Mux(active, wait[-1], begin))
        m.d.comb += self.i.ready.eq(free | ~due)
        m.d.comb += [step.eq((free | ~due) & (self.i.valid | idle)), emit.eq(free & due & (self.i.valid | idle))]
        with m.If(step & ~idle):
            m.d.sync += [index.eq(Mux(end, 0, index + 1)), start.eq(end)]
            m.d.sync += [first.eq(index == (self.first - 1) % beats), end.eq(index == (beats - 2) % beats)]
        wraps = self._loops(m, emit)
        with m.If(emit):
            m.d.sync += active.eq(~wraps[0])
            for k, gap in enumerate(self.gaps):
                with m.If(wraps[k + 1]) if k == 0 else m.Elif(wraps[k + 1]):
                    m.d.sync += wait.eq(gap - 2)
        with m.Elif(step & active):
            m.d.sync += wait.eq(wait - 1)
        return self._inside(m, emit, wraps)

    def _loops(self, m: Module, emit: Value) -> list[Value]:
        """Whether the next output is in another frame, row, pixel, group; outermost first, the last always true."""
        ends: list[Value] = [Const(1)]
        out_h, out_w = self.window.out_size(self.height, self.width)
        for name, count in (("group", self.groups), ("x", out_w), ("y", out_h)):
            at, last = counter(count, name), Signal(name=f"{name}_last")
            m.d.comb += last.eq(ends[-1] & (at == count - 1))
            with m.If(emit & ends[-1]):
                m.d.sync += at.eq(Mux(at == count - 1, 0, at + 1))
            ends.append(last)
        return ends[::-1]

    def _inside(self, m: Module, emit: Value, wraps: list[Value]) -> list[Value]:
        """Whether each tap of the output that is due lies in the map."""
        window, flags = self.window, []
        out_h, out_w = window.out_size(self.height, self.width)
        for axis, (name, size, count) in enumerate((("row", self.height, out_h), ("col", self.width, out_w))):
            stride, pad, advances = window.stride[axis], window.pad[axis], wraps[axis + 1]
            bits = (2 * size + pad + stride + window.kernel[axis] * window.dilation[axis]).bit_length() + 1
            # The corner of the output behind the one that is due: what is asked of it stands in registers when its turn comes.
            corner = Signal(signed(bits), init=-pad + stride * (count > 1), name=f"{name}_corner")
            of_tap = []
            with m.If(emit & advances):
                m.d.sync += corner.eq(Mux(corner == (count - 1) * stride - pad, -pad, corner + stride))
            for k in range(window.kernel[axis]):
                at = k * window.dilation[axis]
                of_tap.append(Signal(init=0 <= at - pad < size, name=f"{name}_inside{k}"))
                with m.If(emit & advances):
                    m.d.sync += of_tap[-1].eq((corner >= -at) & (corner < size - at))
            flags.append(of_tap)
        return [flags[0][i] & flags[1][j] for i in self.rows for j in self.cols]

    def _line_buffer(self, m: Module, step: Value) -> list[Value]:
        """The words of all taps that are kept, row by row, in the step that brings the last of them."""
        (kh, kw), (dh, dw) = (len(self.rows), len(self.cols)), self.window.dilation
        across, down = dw * self.groups, dh * self.width * self.groups
        rest = down - (kw - 1) * across
        fits = rest >= 0  # the pixels of a row are part of the delay of that row, unless the map is narrower than the window
        size = self.lanes.width
        heads = Signal(size * kh, name="heads")  # newest word of each row, the newest row first
        every = delay_line(m, heads, kw, across, step, "pixels")
        lines = [[word[k * size : (k + 1) * size] for word in every] for k in range(kh)]
        tails = Cat(line[-1] if fits else line[0] for line in lines[:-1])
        late = delayed(m, tails, rest if fits else down, step, "rows") if kh > 1 else Cat()
        m.d.comb += heads.eq(Cat(self.i.payload.as_value(), late))
        return [lines[kh - 1 - i][kw - 1 - j] for i in range(kh) for j in range(kw)]


def _kept(sizes: tuple[int, int], axis: int, window: Window) -> range:
    """Rows (columns) of the window from the first to the last that ever lie in the map: on a small map padding covers the rest."""
    size, count = sizes[axis], window.out_size(*sizes)[axis]
    stride, pad, dilation = window.stride[axis], window.pad[axis], window.dilation[axis]
    seen = [k for k in range(window.kernel[axis]) if any(0 <= n * stride - pad + k * dilation < size for n in range(count))]
    if not seen:
        raise ValueError(f"pad must leave the window something of the map, not {window.pad!r}")
    return range(seen[0], seen[-1] + 1)


def step_gaps(height: int, width: int, groups: int, window: Window) -> tuple[int, list[int]]:
    """Steps before the first output of a frame, and from one output to the next when its row, pixel or group advances."""
    out_h, out_w = window.out_size(height, width)
    sh, sw = window.stride
    ahead = [_kept((height, width), axis, window)[-1] * window.dilation[axis] - window.pad[axis] for axis in (0, 1)]
    first = (ahead[0] * width + ahead[1]) * groups
    moves = strides([Loop(out_h, sh * width * groups), Loop(out_w, sw * groups), Loop(groups, 1)])
    length = (out_h - 1) * sh * width * groups + (out_w - 1) * sw * groups + groups  # steps from first to last output, both included
    if first < 0 or min(moves) < 1 or length > height * width * groups:
        raise ValueError(f"pad must leave a step for every output of all taps at once, not {window.pad!r} on {height}x{width}")
    return first, moves


def taps_cycles(height: int, width: int, groups: int, window: Window, cycles: int) -> int:
    """Steady interval of back-to-back frames where every output of :class:`WindowTaps` keeps its reader busy for ``cycles`` cycles.

    Steps without an output pass meanwhile, so each output takes the greater of ``cycles`` and the steps up to the next.
    """
    out_h, out_w = window.out_size(height, width)
    _, (row, pixel, group) = step_gaps(height, width, groups, window)
    length = (out_h - 1) * row + out_h * ((out_w - 1) * pixel + out_w * (groups - 1) * group) + 1
    last = height * width * groups - length + 1
    counts = ((row, out_h - 1), (pixel, out_h * (out_w - 1)), (group, out_h * out_w * (groups - 1)), (last, 1))
    return sum(count * max(gap, cycles) for gap, count in counts)
