# amaranth: UnusedElaboratable=no
"""A map held on chip and weights that come by stream, each read once a frame."""
from __future__ import annotations

from itertools import pairwise
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from hw.lib.arith import bits_for, wrap
from hw.lib.core import MatVecCore
from hw.lib.store import ram, rows_of
from hw.params import Ints, Ints2, Lanes, Multiplier, Range
from hw.units.base import Unit, signature


class HeldMatVec(Unit):
    """Pointwise convolution of a held map, output channels first: fold by fold, in each all pixels.

    The map lies in a ring of two, so that the next comes in while this one is computed; the weights of a fold lie in a ring of
    two as well and are used for every pixel, so that a frame reads each weight once. Results leave fold by fold, pixel by pixel,
    PE at a time: fold-major order, which :class:`Reorder` turns back. Meant for small maps with many channels.

    Throughput: an operand set a cycle, ``folds · pixels · beats`` cycles a frame, no bubbles as long as a row of weights comes
    every ``pixels`` cycles. Latency: that of the core after the first pixel and the first fold's weights are there.

    Parameters: ``pixels``, ``in_channels``; ``bias`` (OC,); ``weight``: range of the weights; ``i``: SIMD lanes; ``o``: PE lanes, signed,
    the exact accumulator; ``multiplier``: kind. Port ``w_i`` takes :meth:`encode` of each fold's beats in turn, lanes as ``w_lanes``.
    Raises ValueError if the bias does not fit ``o``.
    """

    i: stream.Interface
    w_i: stream.Interface
    o: stream.Interface

    def __init__(
        self, *, pixels: int, in_channels: int, bias: Ints, weight: Range, i: Lanes, o: Lanes, multiplier: Multiplier = "inferred"
    ) -> None:
        if not o.signed or bits_for(bias) > o.bits:
            raise ValueError(f"o must be signed and hold the bias {min(bias)}..{max(bias)}, not {o!r}")
        self.pixels, self.beats, self.folds = pixels, i.beats(in_channels), o.beats(len(bias))
        self.core = MatVecCore(pe=o.lanes, simd=i.lanes, weight=weight, i=i, bits=o.bits, kind=multiplier)
        dot = self.core.dot
        padded = [*bias, *[0] * (self.folds * o.lanes - len(bias))]
        start = [wrap(v - self.beats * dot.offset, o.bits) for v in padded]
        self.bias = [start[k : k + o.lanes] for k in range(0, len(start), o.lanes)]
        self.w_lanes = Lanes(lanes=dot.groups * dot.simd * dot.lanes, bits=max(dot.bits), signed=True)
        super().__init__({"i": In(signature(i)), "w_i": In(signature(self.w_lanes)), "o": Out(signature(o))})

    @property
    def frame_cycles(self) -> int:
        return self.folds * self.pixels * self.beats

    @property
    def multipliers(self) -> int:
        return self.core.multipliers

    def encode(self, weights: Ints2) -> list[list[int]]:
        """Weights (OC, IC) as a frame's beats of ``w_i``: fold by fold, in each the channel groups of the input."""
        simd, pe = self.core.dot.simd, self.core.pe
        rows = [[*row, *[0] * (self.beats * simd - len(row))] for row in weights]
        rows += [[0] * self.beats * simd] * (self.folds * pe - len(rows))
        folds = [rows[k : k + pe] for k in range(0, len(rows), pe)]
        return [self.core.dot.lanes_of([row[b * simd : (b + 1) * simd] for row in fold]) for fold in folds for b in range(self.beats)]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.core = core = self.core
        beat, pixel, fold = Signal(range(self.beats)), Signal(range(self.pixels)), Signal(range(self.folds))
        last, last_pixel, last_fold = beat == self.beats - 1, pixel == self.pixels - 1, fold == self.folds - 1
        step, issue, some, filled = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [step.eq(~core.done | self.o.ready), issue.eq(step & filled & (some | (fold != 0)))]
        with m.If(issue):
            m.d.sync += beat.eq(Mux(last, 0, beat + 1))
            with m.If(last):
                m.d.sync += pixel.eq(Mux(last_pixel, 0, pixel + 1))
                with m.If(last_pixel):
                    m.d.sync += fold.eq(Mux(last_fold, 0, fold + 1))
        element = self.ring(
            m, self.i, "map", self.pixels * self.beats, step, some, issue & (fold == 0), issue & last_fold, issue, issue & last & last_pixel
        )
        # A fold's weights: all there before it starts, read for every pixel, free after the last.
        done = issue & last & last_pixel
        weights = self.rows(m, step, filled, beat, done)
        # Block RAM is slow: nothing but a register behind it.
        word = Signal.like(core.w, name="word", reset_less=True)
        x = Signal(element.shape(), name="element", reset_less=True)
        control, control_1 = Signal(3), Signal(3)
        m.d.comb += [core.x.eq(x), core.w.eq(word), core.en.eq(step), Cat(core.valid, core.first, core.end).eq(control_1)]
        with m.If(step):
            m.d.sync += [x.eq(element), word.eq(self.core.dot.word_of(weights))]
            m.d.sync += [control.eq(Cat(issue, beat == 0, last)), control_1.eq(control)]
        folds = [Signal(range(self.folds), name=f"fold{k}", reset_less=True) for k in range(core.latency + 1)]
        with m.If(step):
            m.d.sync += [b.eq(a) for a, b in pairwise([fold, *folds])]
        for k, value in enumerate(self.bias_row(m, step, folds[-2])):
            m.d.comb += core.bias[k].eq(value)
        m.d.comb += [self.o.valid.eq(core.done), self.o.payload.as_value().eq(core.o.as_value())]
        return m

    def ring(
        self, m: Module, i: Any, name: str, size: int, step: Signal, some: Signal, take: Any, free: Any, read: Any, wrap_up: Any
    ) -> Any:
        """Two maps of ``size`` beats: ``some`` while a beat is there that the first fold has not read; the beat read a cycle ago."""
        depth = 2 * size
        m.submodules[name] = memory = ram(i.payload.shape(), depth)
        write, port = memory.write_port(), memory.read_port()
        fresh, used, room = Signal(range(depth + 1)), Signal(range(depth + 1)), Signal(init=1)
        place, index, upper = Signal(range(depth)), Signal(range(depth)), Signal()
        store = Signal()
        m.d.comb += [
            i.ready.eq(room), store.eq(i.valid & room), write.addr.eq(place), write.data.eq(i.payload), write.en.eq(store),
            port.addr.eq(index), port.en.eq(step),
        ]  # fmt: skip
        with m.If(store):
            m.d.sync += place.eq(Mux(place == depth - 1, 0, place + 1))
        at_end = (index == size - 1) | (index == depth - 1)
        with m.If(read):
            m.d.sync += index.eq(index + 1)
            with m.If(at_end):  # the map again, or the other one after its last fold
                other = upper ^ free
                m.d.sync += [index.eq(Mux(other, size, 0)), upper.eq(other)]
        with m.If(store & ~take):
            m.d.sync += [fresh.eq(fresh + 1), some.eq(1)]
        with m.Elif(take & ~store):
            m.d.sync += [fresh.eq(fresh - 1), some.eq(fresh != 1)]
        with m.If(store & ~free):
            m.d.sync += [used.eq(used + 1), room.eq(used != depth - 1)]
        with m.Elif(free & ~store):
            m.d.sync += [used.eq(used - 1), room.eq(1)]
        return port.data

    def rows(self, m: Module, step: Signal, filled: Signal, beat: Signal, done: Any) -> Any:
        """Two folds' weights; ``filled`` while the current one is whole."""
        m.submodules.rows = memory = ram(self.w_i.payload.shape(), 2 * self.beats)
        write, port = memory.write_port(), memory.read_port()
        place, into, current = Signal(range(self.beats)), Signal(), Signal()
        full = Signal(2)  # which halves are whole
        store, last = Signal(), place == self.beats - 1
        m.d.comb += [
            self.w_i.ready.eq(~full.bit_select(into, 1)), store.eq(self.w_i.valid & self.w_i.ready),
            write.addr.eq(Mux(into, self.beats, 0) + place), write.data.eq(self.w_i.payload), write.en.eq(store),
            filled.eq(full.bit_select(current, 1)), port.addr.eq(Mux(current, self.beats, 0) + beat), port.en.eq(step),
        ]  # fmt: skip
        with m.If(store):
            m.d.sync += place.eq(Mux(last, 0, place + 1))
            with m.If(last):
                m.d.sync += into.eq(~into)
        with m.If(done):
            m.d.sync += current.eq(~current)
        for half in range(2):
            with m.If(store & last & (into == half)):
                m.d.sync += full[half].eq(1)
            with m.Elif(done & (current == half)):
                m.d.sync += full[half].eq(0)
        return port.data

    def bias_row(self, m: Module, step: Signal, fold: Signal) -> list[Any]:
        """The accumulators' start values, a cycle after ``fold``."""
        shape = signed(self.core.bits)
        if self.folds == 1:
            return [Const(v, shape) for v in self.bias[0]]
        found = rows_of(m, "bias", self.bias, self.core.bits, fold, step)
        return [found[k] for k in range(self.core.pe)]


class Reorder(Unit):
    """``outer`` × ``inner`` beats a frame to ``inner`` × ``outer``: fold-major results to whole pixels.

    Two frames are held, so that one fills while the other empties. Throughput one beat a cycle; latency a frame.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, outer: int, inner: int, i: Lanes) -> None:
        if outer < 1 or inner < 1:
            raise ValueError(f"outer and inner must be positive integers, not {outer!r} and {inner!r}")
        self.outer, self.inner, self.lanes = outer, inner, i
        super().__init__({"i": In(signature(i)), "o": Out(signature(i))})

    @property
    def frame_cycles(self) -> int:
        return self.outer * self.inner

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        size = self.outer * self.inner
        m.submodules.frames = memory = ram(self.i.payload.shape(), 2 * size)
        write, port = memory.write_port(), memory.read_port()
        place, into, full = Signal(range(size)), Signal(), Signal(2)
        out, inn, base, current = Signal(range(self.outer)), Signal(range(self.inner)), Signal(range(size + self.inner)), Signal()
        store, read = Signal(), Signal()
        stored, ended = place == size - 1, (out == self.outer - 1) & (inn == self.inner - 1)
        m.d.comb += [
            self.i.ready.eq(~full.bit_select(into, 1)), store.eq(self.i.valid & self.i.ready),
            write.addr.eq(Cat(place, Const(0)) + Mux(into, size, 0)), write.data.eq(self.i.payload), write.en.eq(store),
            read.eq(full.bit_select(current, 1) & (~self.o.valid | self.o.ready)),
            port.addr.eq(base + inn + Mux(current, size, 0)), port.en.eq(read), self.o.payload.eq(port.data),
        ]  # fmt: skip
        with m.If(store):
            m.d.sync += place.eq(Mux(stored, 0, place + 1))
            with m.If(stored):
                m.d.sync += into.eq(~into)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(read):
            m.d.sync += [self.o.valid.eq(1), out.eq(Mux(out == self.outer - 1, 0, out + 1))]
            m.d.sync += base.eq(Mux(out == self.outer - 1, 0, base + self.inner))
            with m.If(out == self.outer - 1):
                m.d.sync += inn.eq(Mux(inn == self.inner - 1, 0, inn + 1))
            with m.If(ended):
                m.d.sync += current.eq(~current)
        for half in range(2):
            with m.If(store & stored & (into == half)):
                m.d.sync += full[half].eq(1)
            with m.Elif(read & ended & (current == half)):
                m.d.sync += full[half].eq(0)
        return m
