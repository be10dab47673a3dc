"""Estimates beside Yosys: memories exactly, parts that move beats closely, everything within the promised bounds."""
from typing import Any

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lib.store import ram
from sw import estimate
from sw.bench.estimates import bench_estimates, moves, parts
from sw.estimate import Area
from sw.estimate.area import Store, store_area
from sw.synth import area
from sw.synth.network import compare, measured

#: Within which share of the measurement an estimate lies: of the sum over a kind of unit, of all.
KIND, ALL = 0.15, 0.10


class Memory(wiring.Component):
    """One memory, nothing else."""

    def __init__(self, width: int, depth: int) -> None:
        self.width, self.depth = width, depth
        bits = range(depth)
        super().__init__({"to": In(bits), "at": In(bits), "put": In(width), "got": Out(width), "en": In(1)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.words = words = ram(self.width, self.depth)
        w_port, r_port = words.write_port(), words.read_port()
        m.d.comb += [w_port.addr.eq(self.to), w_port.data.eq(self.put), w_port.en.eq(self.en), r_port.en.eq(Signal(init=1))]
        m.d.comb += [r_port.addr.eq(self.at), self.got.eq(r_port.data)]
        return m


@pytest.mark.parametrize(("width", "depth"), [(14, 20), (7, 64), (36, 700), (16, 1100)])
def test_memories_take_what_the_rule_counts(width: int, depth: int) -> None:
    counted, real = estimate.memory(width, depth), area(Memory(width, depth))
    assert counted.bram36 == real.bram36 and counted.ff == real.ff
    assert counted.lut == real.lut if depth <= 64 else abs(counted.lut - real.lut) <= width + 2  # what chooses among blocks


def test_memories_of_ecp5_have_their_own_blocks() -> None:
    assert store_area(Store(4, 16, True, "lut"), "ecp5") == Area(lut=6, ff=4)
    assert store_area(Store(4, 16, True, "lut"), "xcup") == Area(lut=8, ff=4)
    assert store_area(Store(36, 512, True, "block"), "ecp5") == Area(bram36=0.5)


def test_areas_add() -> None:
    assert Area(lut=1, ff=2, dsp=3, bram36=0.5) + Area(lut=1, bram36=0.5) == Area(lut=2, ff=2, dsp=3, bram36=1.0)


def test_what_joins_units_is_close() -> None:
    found = list(moves("xcup"))
    record = compare(found, measured(found, "xcup"))
    for row in record["kinds"]:
        assert abs(row["error"]["lut"]) <= KIND and abs(row["error"]["ff"]) <= KIND, row
    assert record["total"]["estimate"]["bram36"] == record["total"]["measured"]["bram36"]


def test_units_are_named_once_and_every_kind_is_there() -> None:
    found = list(parts("xcup"))
    assert len({p.name for p in found}) == len(found)
    moved = {"max_pool", "upsample", "split", "concat", "shuffle", "add", "fifo", "regroup", "fork"}
    assert {p.kind for p in found} == {"conv", "depthwise", "deform", "requant"} | moved


@pytest.mark.slow
def test_units_that_nothing_was_fitted_to_are_within_the_bounds() -> None:
    record = bench_estimates("xcup")
    for row in record["kinds"]:
        for name in ("lut", "ff", "dsp", "bram36"):
            real, guess = row["measured"][name], row["estimate"][name]
            assert abs(guess - real) <= KIND * real + 0.5, (row["kind"], name, guess, real)
    assert all(abs(record["total"]["error"][name]) <= ALL for name in ("lut", "ff", "dsp", "bram36"))
