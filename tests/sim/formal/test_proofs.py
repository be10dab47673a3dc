# amaranth: UnusedElaboratable=no
"""Stream rules and buffers, proved for every input and for all time."""
from __future__ import annotations

from typing import Any

import pytest
from amaranth.hdl import Const, Module, Mux, Signal, Value

from hw.lib.bump import Bump
from hw.lib.fifo import Fifo
from hw.lib.fork import Fork
from hw.lib.gather import GatherStage
from hw.lib.held import Reorder
from hw.lib.join import Join
from hw.lib.matvec import MatVec
from hw.lib.regroup import Regroup
from hw.lib.taps import WindowTaps
from hw.lib.top_k import TopK
from hw.lib.walk import Walk
from hw.lib.window import WindowStage
from hw.params import DeformRing, Lanes, Window
from hw.units.requant import RequantUnit
from sim.formal.gathers import Gathers
from sim.formal.harness import ForkOutput, OneToOne, Pixels
from sim.formal.parts import Best, Runs, Together
from sim.formal.prove import ProofFailed, prove
from sim.formal.windows import Words, window_taps, windows
from tests.hw.lib.test_paged import Exact

BIT = Lanes(lanes=1, bits=1, signed=False)
PAIR = Lanes(lanes=1, bits=2, signed=False)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_fifo_loses_and_doubles_nothing(depth: int) -> None:
    prove(OneToOne(Fifo(PAIR, depth), capacity=depth, patience=2), "prove")


def test_fifo_of_registers() -> None:
    prove(OneToOne(Fifo(PAIR, 3, "registers"), capacity=3, patience=2), "prove")


@pytest.mark.parametrize("output", [0, 1, 2])
def test_fork_gives_each_output_every_beat_once(output: int) -> None:
    prove(ForkOutput(Fork(PAIR, 3), output), "prove")


@pytest.mark.parametrize(("channels", "i", "o"), [(4, 2, 2), (3, 2, 3), (3, 1, 2), (5, 2, 3), (4, 1, 4), (4, 4, 1)])
def test_gearbox_keeps_every_channel_in_its_place(channels: int, i: int, o: int) -> None:
    prove(Pixels(Regroup(channels=channels, i=Lanes(lanes=i, bits=1, signed=False), o_lanes=o), 2, 4), "prove")


LINES: dict[str, Any] = {
    "row": {"height": 1, "width": 2, "channels": 1, "window": Window(kernel=(1, 2), pad=(0, 1, 0, 0)), "order": "tap"},
    "column": {"height": 2, "width": 1, "channels": 1, "window": Window(kernel=(2, 1), pad=(1, 0, 0, 0)), "order": "tap"},
}
MAPS: dict[str, Any] = {
    "groups": {"height": 1, "width": 2, "channels": 2, "window": Window(kernel=(1, 2)), "order": "group"},
    "strided": {"height": 1, "width": 3, "channels": 1, "window": Window(kernel=(1, 2), stride=(1, 2)), "order": "group"},
    "square": {"height": 2, "width": 2, "channels": 1, "window": Window(kernel=(2, 2), pad=(1, 1, 0, 0)), "order": "tap"},
}


TAPS: dict[str, Any] = {
    "row": {"height": 1, "width": 3, "window": Window(kernel=(1, 3), pad=(0, 1, 0, 1))},
    "column": {"height": 3, "width": 1, "window": Window(kernel=(2, 1), pad=(1, 0, 0, 0))},
    "strided": {"height": 2, "width": 4, "window": Window(kernel=(1, 2), stride=(1, 2))},
    "square": {"height": 2, "width": 2, "window": Window(kernel=(2, 2), pad=(1, 1, 0, 0))},
}


@pytest.mark.parametrize("name", LINES)
def test_line_buffer_reads_what_has_come_and_has_not_been_overwritten(name: str) -> None:
    prove(windows(WindowStage(i=BIT, **LINES[name]), patience=8), "prove rings")


PAGED: dict[str, Any] = {
    "row": LINES["row"],
    "column": LINES["column"],
    "groups": {"height": 2, "width": 1, "channels": 2, "window": Window(kernel=(2, 1), stride=(2, 1)), "order": "group"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGED)
def test_paged_line_buffer_gives_no_place_twice(name: str) -> None:
    prove(windows(Exact(i=BIT, **PAGED[name]), patience=16), "prove rings")


@pytest.mark.slow
def test_paged_line_buffer_whose_rows_leave_side_by_side() -> None:
    """Pixels leave in another order than they came: for all runs of 20 cycles, more than three frames; reachability finds no end there."""
    columns = {"height": 2, "width": 2, "channels": 1, "window": Window(kernel=(2, 1), stride=(2, 1)), "order": "tap"}
    prove(windows(Exact(i=BIT, **columns), patience=16), "bmc", 20)


@pytest.mark.parametrize("name", TAPS)
def test_line_buffer_of_all_taps(name: str) -> None:
    prove(window_taps(WindowTaps(i=BIT, channels=1, **TAPS[name]), patience=8), "prove")


def test_reordering_of_held_maps() -> None:
    prove(Words(Reorder(outer=2, inner=2, i=BIT), 4, [[0], [2], [1], [3]], 0, 3, patience=8), "prove rings")


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_larger_line_buffers(name: str) -> None:
    prove(windows(WindowStage(i=BIT, **MAPS[name]), patience=8), "prove rings")


def gather(height: int) -> GatherStage:
    """Dilations 0 and 1, a column of pixels."""
    offset = Lanes(lanes=1, bits=1, signed=True)
    return GatherStage(height=height, width=1, channels=1, size=3, frac_bits=0, low=-1, high=0, i=BIT, offset=offset)


@pytest.mark.slow
@pytest.mark.parametrize("height", [1, 2])
def test_deformable_ring(height: int) -> None:
    prove(Gathers(gather(height), frames=3, pixels=3), "prove rings")


@pytest.mark.parametrize("depth", [2, 3])
def test_runs_of_words_do_not_overlap(depth: int) -> None:
    prove(Runs(Bump(depth)), "prove")


def test_join_takes_beats_together() -> None:
    prove(Together(Join(PAIR, 3)), "prove")


@pytest.mark.parametrize(("depth", "cells"), [(2, 2), (2, 1)])
def test_sorter_puts_every_entry_in_its_place(depth: int, cells: int) -> None:
    prove(Best(TopK(depth=depth, cells=cells, key_bits=1, data_bits=1)), "prove rings")


def test_vector_ring_neither_loses_nor_doubles_a_beat() -> None:
    """The identity matrix, one row at a time: what comes out is what went in, so the ring's order and room can be seen."""
    unit = MatVec(weights=[[[1], [0]], [[0], [1]]], bias=[0, 0], i=BIT, o=Lanes(lanes=1, bits=2, signed=True))
    prove(OneToOne(unit, capacity=16, patience=12, expected=lambda payload, _: payload, period=2, whole=True), "prove rings")


def rescaled(payload: Value, place: Value) -> Value:
    """What RequantUnit(multiplier=[3, 1], shift=[2, 1], clamp -2..1) makes of a 3-bit accumulator, as a table."""
    m = [[max(-2, min(1, ((v - 8 * (v >= 4)) * mult + (1 << shift - 1)) >> shift)) for v in range(8)] for mult, shift in ((3, 2), (1, 1))]

    def select(row: list[int]) -> Value:
        value: Value = Const(0, 2)
        for k, y in enumerate(row):
            value = Mux(payload == k, Const(y & 3, 2), value)
        return value

    return Mux(place, select(m[1]), select(m[0]))


def test_requantizer_keeps_order_and_channels() -> None:
    i, o = Lanes(lanes=1, bits=3, signed=True), Lanes(lanes=1, bits=2, signed=True)
    unit = RequantUnit(channels=2, multiplier=[3, 1], shift=[2, 1], low=-2, high=1, i=i, o=o)
    prove(OneToOne(unit, capacity=16, patience=12, expected=rescaled, period=2), "prove rings")


class DropsBeat(Fifo):
    """Forgets that the spare register is full when the payload is 3."""

    def two(self, m: Module) -> None:
        valid, full, payload, spare = Signal(), Signal(), Signal(2), Signal(2)
        i, o = self.i, self.o
        m.d.comb += [o.valid.eq(valid), o.payload.as_value().eq(payload), i.ready.eq(~full)]
        with m.If(~valid | o.ready):
            m.d.sync += [valid.eq(full | i.valid), payload.eq(Mux(full, spare, i.payload.as_value())), full.eq(0)]
        with m.Elif(~full):
            m.d.sync += [spare.eq(i.payload.as_value()), full.eq(i.valid & (i.payload.as_value() != 3))]


class GivesTwice(Fork):
    """Does not remember which outputs have been served."""

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        outputs = [getattr(self, f"o{k}") for k in range(self.outputs)]
        m.d.comb += [self.i.ready.eq(outputs[0].ready & outputs[1].ready)]
        m.d.comb += [o.valid.eq(self.i.valid) for o in outputs] + [o.payload.eq(self.i.payload) for o in outputs]
        return m


class ShortRing(WindowStage):
    """A line buffer one beat too short, that believes to be as long as it must be."""

    def _account(self, *args: Any) -> Any:
        self.ring = self.whole
        try:
            return super()._account(*args)
        finally:
            self.ring = self.short


def short_ring() -> WindowStage:
    unit = ShortRing(i=BIT, **LINES["row"])
    unit.whole, unit.short = unit.ring, type(unit.ring)(unit.ring.pixel, unit.ring.row, unit.ring.frame, unit.ring.pixels - 1)
    unit.ring = unit.short
    return unit


class Mirrored(WindowTaps):
    """Gives the taps in the opposite order."""

    def _line_buffer(self, m: Module, step: Value) -> list[Value]:
        return super()._line_buffer(m, step)[::-1]


class ShortSighted(GatherStage):
    """Does not wait for the rows around a pixel."""

    @property
    def ring(self) -> DeformRing:
        return DeformRing(height=self.height, reach=0)


def short_sighted() -> GatherStage:
    offset = Lanes(lanes=1, bits=1, signed=True)
    return ShortSighted(height=2, width=1, channels=1, size=3, frac_bits=0, low=-1, high=0, i=BIT, offset=offset)


class FreesEarly(Exact):
    """Gives a place back with the first tap that reads it."""

    def _leaves(self, m: Module, go: Value, walk: Walk) -> Signal:
        super()._leaves(m, go, walk)
        return Signal(init=1)


class OverTheEnd(Bump):
    """Believes that the memory has a word more."""

    def elaborate(self, platform: Any) -> Module:
        self.depth += 1
        m = super().elaborate(platform)
        self.depth -= 1
        return m


class Remembers(TopK):
    """Does not forget how many entries the frame before had."""

    def _count(self, m: Module, clear: Value, at: Value, on: Value) -> Any:
        return super()._count(m, Const(0), at, on)


PLANTED: dict[str, Any] = {
    "runs that go over the end": lambda: Runs(OverTheEnd(3)),
    "a sorter that remembers": lambda: Best(Remembers(depth=2, cells=1, key_bits=1, data_bits=1)),
    "a paged line buffer that frees too early": lambda: windows(FreesEarly(i=BIT, **PAGED["row"]), patience=16),
    "a line buffer that turns windows round": lambda: window_taps(Mirrored(i=BIT, channels=1, **TAPS["row"]), patience=8),
    "a FIFO that drops a beat": lambda: OneToOne(DropsBeat(PAIR, 2), capacity=2, patience=2),
    "a FIFO said to be smaller than it is": lambda: OneToOne(Fifo(PAIR, 3), capacity=2, patience=2),
    "a fork that gives a beat twice": lambda: ForkOutput(GivesTwice(PAIR, 2), 0),
    "a gearbox of other lanes": lambda: Pixels(Shuffled(channels=4, i=Lanes(lanes=2, bits=1, signed=False), o_lanes=4), 2, 4),
    "a line buffer that is too short": lambda: windows(short_ring(), patience=8),
    "a requantizer of another channel": lambda: OneToOne(
        RequantUnit(channels=2, multiplier=[1, 3], shift=[1, 2], low=-2, high=1, i=Lanes(lanes=1, bits=3, signed=True),
                    o=Lanes(lanes=1, bits=2, signed=True)), capacity=16, patience=12, expected=rescaled, period=2),
    "a matrix that swaps": lambda: OneToOne(
        MatVec(weights=[[[0], [1]], [[1], [0]]], bias=[0, 0], i=BIT, o=Lanes(lanes=1, bits=2, signed=True)), capacity=16, patience=12,
        period=2, whole=True),
}  # fmt: skip


class Shuffled(Regroup):
    """Clears one lane too many."""

    def arrived(self, m: Module, last: Any) -> Signal:
        clean = super().arrived(m, last)
        worse = Signal.like(clean)
        m.d.comb += worse.eq(Mux(last, clean & 1, clean))
        return worse


@pytest.mark.slow
def test_planted_bug_of_a_deformable_ring() -> None:
    with pytest.raises(ProofFailed, match="Assert failed in top"):
        prove(Gathers(short_sighted(), frames=3, pixels=3), "bmc", 40)


@pytest.mark.parametrize("flaw", PLANTED)
def test_planted_bugs_are_found(flaw: str) -> None:
    """The engine's word counts where no trace can be shown: SymbiYosys cannot write one of memories that are read without a clock."""
    with pytest.raises(ProofFailed, match=r"Assert failed in top|\(abc bmc3\) returned FAIL"):
        prove(PLANTED[flaw](), "bmc", 30)
