# amaranth: UnusedElaboratable=no
"""Matrix times vector, folded in both directions."""
from __future__ import annotations

from itertools import pairwise
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from hw.lib.arith import bits_for, wrap
from hw.lib.core import MatVecCore
from hw.lib.rom import Rom
from hw.lib.store import place_of, ram, rows_of
from hw.params import Ints, Ints3, Lanes, Multiplier, Range, RomKind
from hw.units.base import Unit, signature


class MatVec(Unit):
    """``o[r] = bias[r] + Σ_b Σ_n weights[r][b][n] · i[b][n]`` for one vector of beats after another.

    A vector comes in ``beats`` beats of SIMD = ``i.lanes`` elements. PE = ``o.lanes`` rows are computed at a time, a beat a
    cycle, so a vector takes ``folds · beats`` cycles with folds = ceil(rows / PE), and a beat of results leaves after each
    ``beats`` of them. With more than one fold the vector is kept in a ring of two vectors: the next comes in meanwhile, and
    the first fold starts as soon as its first beat is there.

    Throughput: a vector every ``vector_cycles``, back to back. Latency: ``latency`` cycles from the beat that completes a fold
    to its result. Ready is registered where the vector is kept.

    Parameters
    ----------
    weights: (rows, beats, SIMD); bias: (rows,)
    i: stream in; o: stream out, signed, wide enough for every result (partial sums may wrap)
    multiplier: kind of multipliers; memory: where the weights stand (auto: as the tools choose)

    Raises
    ------
    ValueError: if the sizes do not agree or the bias does not fit
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(
        self, *, weights: Ints3, bias: Ints, i: Lanes, o: Lanes, multiplier: Multiplier = "inferred", memory: RomKind = "auto"
    ) -> None:
        if not weights or len(weights) != len(bias):
            raise ValueError(f"weights and bias must have equal rows, not {len(weights)} and {len(bias)}")
        if len({len(row) for row in weights}) != 1 or any(len(beat) != i.lanes for row in weights for beat in row):
            raise ValueError(f"weights must be (rows, beats, {i.lanes})")
        if not o.signed or bits_for(bias) > o.bits:
            raise ValueError(f"o must be signed and hold the bias {min(bias)}..{max(bias)}, not {o!r}")
        self.i_lanes, self.o_lanes = i, o
        self.beats, self.folds = len(weights[0]), o.beats(len(weights))
        missing = self.folds * o.lanes - len(weights)
        rows = [*weights, *[[[0] * i.lanes] * self.beats] * missing]
        values = [w for row in weights for beat in row for w in beat]
        weight = Range(low=min(*values, 0), high=max(*values, 1))
        self.core = MatVecCore(pe=o.lanes, simd=i.lanes, weight=weight, i=i, bits=o.bits, kind=multiplier)
        self.memory = memory
        #: A row of the ROM for each cycle of a vector: PE × SIMD weights as the multipliers take them.
        folded = [rows[k : k + o.lanes] for k in range(0, len(rows), o.lanes)]
        self.rom = [self.core.dot.encode([row[b] for row in fold]) for fold in folded for b in range(self.beats)]
        # The accumulator starts below the bias by what the packed fields carry too much.
        padded = [wrap(v - self.beats * self.core.dot.offset, o.bits) for v in [*bias, *[0] * missing]]
        self.bias = [padded[k : k + o.lanes] for k in range(0, len(padded), o.lanes)]
        super().__init__({"i": In(signature(i)), "o": Out(signature(o))})

    @property
    def vector_cycles(self) -> int:
        """Cycles a vector takes."""
        return self.folds * self.beats

    @property
    def frame_cycles(self) -> int:
        return self.vector_cycles

    @property
    def latency(self) -> int:
        """Cycles from a fold's last step to its result: fetch, inner products, accumulate."""
        return 1 + self.late + self.core.latency

    @property
    def late(self) -> bool:
        """Whether vectors are kept in block RAM, which is slow: a register stands behind it."""
        return self.folds > 1 and place_of(self.i_lanes.width, 2 * self.beats) == "block"

    @property
    def multipliers(self) -> int:
        return self.i_lanes.lanes * self.o_lanes.lanes

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        step, issue = Signal(), Signal()
        done = Signal()  # the accumulators hold results; no register behind them, a wide row of results would be dear to keep twice
        m.d.comb += [step.eq(~done | self.o.ready), self.o.valid.eq(done)]
        beat, fold = Signal(range(self.beats)), Signal(range(self.folds))
        last, last_fold = beat == self.beats - 1, fold == self.folds - 1
        with m.If(issue):
            m.d.sync += beat.eq(Mux(last, 0, beat + 1))
            with m.If(last):
                m.d.sync += fold.eq(Mux(last_fold, 0, fold + 1))
        element = self.kept(m, step, issue, beat, fold, last_fold) if self.folds > 1 else self.passed(m, step, issue)
        m.submodules.core = core = self.core
        now: list[Value] = [issue, beat == 0, last]
        if self.late:
            held = Signal.like(Value.cast(element), name="element_late", reset_less=True)
            waiting = [Signal(name=f"{name}_late") for name in ("issue", "first", "end")]
            with m.If(step):
                m.d.sync += [held.eq(Value.cast(element)), *(a.eq(b) for a, b in zip(waiting, now, strict=True))]
            element, now = held, [waiting[0] & step, *waiting[1:]]
        m.d.comb += [Value.cast(core.x).eq(Value.cast(element)), core.w.eq(self.weights(m, step, now[0])), core.en.eq(step)]
        with m.If(step):
            m.d.sync += [core.valid.eq(now[0]), core.first.eq(now[1]), core.end.eq(now[2])]
        # The bias is read one cycle before the accumulators take it.
        folds = [Signal(range(self.folds), name=f"fold{k}", reset_less=True) for k in range(core.latency + self.late)]
        with m.If(step):
            m.d.sync += [b.eq(a) for a, b in pairwise([fold, *folds])]
        for k, value in enumerate(self.bias_row(m, step, folds[-2])):
            m.d.comb += core.bias[k].eq(value)
        m.d.comb += [done.eq(core.done), self.o.payload.as_value().eq(core.o.as_value())]
        return m

    def passed(self, m: Module, step: Signal, issue: Signal) -> Signal:
        """One fold: every beat is used once, as it comes. Returns the beat a cycle after its issue."""
        element = Signal(self.i.payload.shape(), reset_less=True)
        m.d.comb += [self.i.ready.eq(step), issue.eq(step & self.i.valid)]
        with m.If(step):
            m.d.sync += element.eq(self.i.payload)
        return element

    def kept(self, m: Module, step: Signal, issue: Signal, beat: Signal, fold: Signal, last_fold: Value) -> Any:
        """Several folds: beats go through a ring of two vectors. Returns the beat a cycle after its issue."""
        depth = 2 * self.beats
        m.submodules.vector = memory = ram(self.i.payload.shape(), depth)
        write, read = memory.write_port(), memory.read_port()
        # The first fold reads beats as they come; the others find them there; those that the last fold has read are free.
        fresh, used = Signal(range(depth + 1)), Signal(range(depth + 1))
        some, room = Signal(), Signal(init=1)  # fresh != 0, used != depth
        upper = Signal()  # the current vector lies in the upper half
        store, take, free, place = Signal(), Signal(), Signal(), Signal(range(depth))
        m.d.comb += [
            self.i.ready.eq(room),
            store.eq(self.i.valid & room),
            issue.eq(step & (some | (fold != 0))),
            take.eq(issue & (fold == 0)),
            free.eq(issue & last_fold),
            write.addr.eq(place),
            write.data.eq(self.i.payload),
            write.en.eq(store),
            read.addr.eq(Mux(upper, self.beats, 0) + beat),
            read.en.eq(step),
        ]
        with m.If(store):
            m.d.sync += place.eq(Mux(place == depth - 1, 0, place + 1))
        with m.If(free & (beat == self.beats - 1)):
            m.d.sync += upper.eq(~upper)
        with m.If(store & ~take):
            m.d.sync += [fresh.eq(fresh + 1), some.eq(1)]
        with m.Elif(take & ~store):
            m.d.sync += [fresh.eq(fresh - 1), some.eq(fresh != 1)]
        with m.If(store & ~free):
            m.d.sync += [used.eq(used + 1), room.eq(used != depth - 1)]
        with m.Elif(free & ~store):
            m.d.sync += [used.eq(used - 1), room.eq(1)]
        return read.data

    def weights(self, m: Module, step: Signal, issue: Signal) -> Value:
        """The weights of a step, a cycle after its issue: in LUTs, a table for each group of rows that share multipliers."""
        dot = self.core.dot
        bits = dot.row_bits // dot.groups
        together = 1 if self.memory == "lut" else dot.groups
        parts = []
        for k in range(0, dot.groups, together):
            rows = [row >> k * bits & (1 << bits * together) - 1 for row in self.rom]
            m.submodules[f"weights{k}"] = rom = Rom(rows, bits * together, self.memory)
            m.d.comb += [rom.en.eq(step), rom.next.eq(issue)]
            parts.append(rom.data)
        return Cat(parts)

    def bias_row(self, m: Module, step: Signal, fold: Signal) -> list[Any]:
        """The accumulators' start values, a cycle after ``fold``."""
        shape = signed(self.o_lanes.bits)
        if self.folds == 1:
            return [Const(v, shape) for v in self.bias[0]]
        found = rows_of(m, "bias", self.bias, self.o_lanes.bits, fold, step)
        return [found[k] for k in range(self.o_lanes.lanes)]
