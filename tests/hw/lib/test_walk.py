"""A walked loop nest against loops in Python."""
from __future__ import annotations

import itertools
from typing import Any

import pytest
from amaranth import Module, Signal
from amaranth.sim import Simulator

from hw.lib.ring import Loop, strides
from hw.lib.walk import Walk, ring_address


@pytest.mark.parametrize("counts", [(2, 3, 2), (1, 2, 1), (1, 1), (3, 1, 4)])
@pytest.mark.parametrize("depth", [1, 2, 7, 16])
def test_registers_hold_what_the_end_of_the_current_iteration_moves(counts: tuple[int, ...], depth: int) -> None:
    m, go = Module(), Signal()
    walk = Walk(m, go, {f"level{k}": count for k, count in enumerate(counts)})
    level = walk.ready(m, go, "level", range(len(counts) + 1), 4)
    moves = strides([Loop(1, 5), *(Loop(count, 3 * k + 1) for k, count in enumerate(counts))])
    address = ring_address(m, go, walk, moves, depth)
    iterations = list(itertools.product(*map(range, counts))) * 3
    at = 0

    async def bench(ctx: Any) -> None:
        nonlocal at
        for now, after in itertools.pairwise(iterations):
            advanced = next((k for k, (a, b) in enumerate(zip(now, after, strict=True), 1) if b > a), 0)
            assert (ctx.get(level), ctx.get(address)) == (advanced, at)
            await ctx.tick()  # nothing moves without go
            assert (ctx.get(level), ctx.get(address)) == (advanced, at)
            at = (at + moves[advanced]) % depth
            ctx.set(go, 1)
            await ctx.tick()
            ctx.set(go, 0)

    sim = Simulator(m)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
