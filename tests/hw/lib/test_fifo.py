# amaranth: UnusedElaboratable=no
"""Queues keep every beat in order, hold what they promise and keep up."""
from __future__ import annotations

import re
from typing import Any

import pytest
from amaranth.sim import Simulator

from hw.lib.fifo import Fifo, Kind
from hw.params import Lanes
from hw.testing import run_streams
from hw.verilog import convert

LANES = Lanes(lanes=2, bits=5, signed=True)
BEATS = [[k % 31 - 15, -(k * 7 % 16)] for k in range(120)]


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7, 16, 33])
@pytest.mark.parametrize(("p_in", "p_out"), [(0.5, 0.5), (1, 0.3), (0.3, 1)])
def test_keeps_order(depth: int, p_in: float, p_out: float) -> None:
    run_streams(Fifo(LANES, depth), {"i": BEATS}, {"o": BEATS}, p_in=p_in, p_out=p_out)


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_passes_a_beat_a_cycle(depth: int) -> None:
    assert run_streams(Fifo(LANES, depth), {"i": BEATS}, {"o": BEATS}, p_in=1, p_out=1) <= len(BEATS) + 3


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 17])
def test_holds_its_depth(depth: int) -> None:
    dut = Fifo(LANES, depth)

    async def fill(ctx: Any) -> None:
        ctx.set(dut.i.valid, 1)
        taken = 0
        for _ in range(depth + 10):
            *_, ready = await ctx.tick().sample(dut.i.ready)
            taken += ready
        assert taken == depth

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(fill)
    sim.run()


@pytest.mark.parametrize("kind", ["registers", "lut", "block"])
@pytest.mark.parametrize("depth", [3, 6])
def test_every_kind_keeps_order_depth_and_rate(kind: Kind, depth: int) -> None:
    run_streams(Fifo(LANES, depth, kind), {"i": BEATS}, {"o": BEATS}, p_in=0.6, p_out=0.4)
    assert run_streams(Fifo(LANES, depth, kind), {"i": BEATS}, {"o": BEATS}, p_in=1, p_out=1) <= len(BEATS) + 3


def test_the_kind_is_what_synthesis_reads() -> None:
    assert 'ram_style = "block"' in convert(Fifo(LANES, 64, "block"), "queue")
    assert 'ram_style = "distributed"' in convert(Fifo(LANES, 64, "lut"), "queue")
    # Left to the rule: a few words are LUT RAM, what fills a third of a block is one.
    assert 'ram_style = "distributed"' in convert(Fifo(LANES, 17), "queue")
    assert 'ram_style = "block"' in convert(Fifo(LANES, 1025), "queue")
    assert not re.search(r"reg \[\d+:0\] \S+ \[\d+:0\];", convert(Fifo(LANES, 16, "registers"), "queue"))  # no memory


def test_needs_a_kind_that_exists() -> None:
    with pytest.raises(ValueError, match="kind must be one of auto, registers, lut, block, not 'ultra'"):
        Fifo(LANES, 4, "ultra")  # type: ignore[arg-type]


def test_needs_a_depth() -> None:
    with pytest.raises(ValueError, match="depth must be a positive integer, not 0"):
        Fifo(LANES, 0)
