"""Adder trees: exact, as late as stated, and stopped by their enable."""
from __future__ import annotations

import random
from typing import Any

import pytest
from amaranth.hdl import Module, Signal, signed
from amaranth.sim import Simulator

from hw.lib.arith import adder_tree, bits_for, pack_row, tree_stages


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("terms", [1, 2, 3, 5, 8, 13, 17])
def test_tree_adds_after_its_stages(terms: int, every: int) -> None:
    rng = random.Random(terms)
    stages = tree_stages(terms, every)
    vectors = [[-8] * terms, [7] * terms, *([rng.randrange(-8, 8) for _ in range(terms)] for _ in range(20))]
    inputs = [Signal(signed(4), name=f"x{k}") for k in range(terms)]
    en = Signal()
    m = Module()
    total = adder_tree(m, inputs, en, "t", every)
    out = Signal(total.shape())
    m.d.comb += out.eq(total)
    assert len(out) == 4 + (terms - 1).bit_length()

    async def check(ctx: Any) -> None:
        seen = []
        for vector in vectors + [[0] * terms] * stages:
            for signal, value in zip(inputs, vector, strict=True):
                ctx.set(signal, value)
            seen.append(ctx.get(out))
            ctx.set(en, 1)
            await ctx.tick()
            ctx.set(en, 0)
            if stages:
                before = ctx.get(out)
                for signal in inputs:
                    ctx.set(signal, 3)
                await ctx.tick()
                assert ctx.get(out) == before, "moved without enable"
        assert seen[stages:] == [sum(v) for v in vectors]

    # A tree of one term has no registers, so the simulator needs a clock domain of its own.
    m.d.sync += Signal(name="tick").eq(1)
    sim = Simulator(m)
    sim.add_clock(1e-6)
    sim.add_testbench(check)
    sim.run()


def test_rows_are_packed_lowest_first() -> None:
    assert pack_row([1, -1, 0, -4], 3) == 0b100_000_111_001


def test_bits_for_is_the_smallest_type() -> None:
    assert [bits_for(v) for v in ([0], [-1], [1], [-8, 7], [8], [-9])] == [1, 1, 2, 4, 5, 5]
