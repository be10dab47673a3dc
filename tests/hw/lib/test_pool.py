# amaranth: UnusedElaboratable=no
"""The pool behind the shared engine: every byte that was written leaves, in order, whatever memories the pool is made of."""
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.lib.pool import OutPool, Region
from hw.lib.store import banks_of, block_shape
from hw.params import Lanes


@pytest.mark.parametrize(("width", "depth", "banks"), [
    (64, 512, [512]), (64, 640, [640]), (64, 1200, [512, 512, 176]), (128, 2560, [512] * 5), (16, 3000, [1024, 1024, 952]), (8, 40, [40]),
])  # fmt: skip
def test_as_many_banks_as_block_rams_stand_behind_each_other(width: int, depth: int, banks: list[int]) -> None:
    assert banks_of(width, depth) == banks
    if len(banks) > 1:
        assert sum(block_shape(width, bank)[0] for bank in banks) <= block_shape(width, depth)[0], "and they cost no more"


@pytest.mark.parametrize("regions", [((5, 3), (40, 2)), ((450, 2), (100, 2), (7, 1))], ids=["one memory", "three banks"])
def test_tiles_leave_as_they_were_written(regions: tuple[tuple[int, int], ...]) -> None:
    lanes = Lanes(lanes=8, bits=8, signed=False)
    dut = OutPool([Region(lanes=lanes, tile=tile, slots=slots) for tile, slots in regions])
    assert len(banks_of(64, dut.depth)) == (3 if dut.depth > 1024 else 1)
    rng = np.random.default_rng(3)
    turns = rng.permutation([k for k, (_, slots) in enumerate(regions) for _ in range(slots + 1)]).tolist()
    sent: list[list[list[int]]] = [[] for _ in regions]
    got: list[list[list[int]]] = [[] for _ in regions]

    async def fill(ctx: Any) -> None:
        """A tile at a time: its words in any order, half of the bytes of each at once."""
        for k in turns:
            while not ctx.get(dut.room) >> k & 1:
                await ctx.tick()
            ctx.set(dut.reserve, 1)
            ctx.set(dut.reserved, k)
            ctx.set(dut.begin, 1)
            ctx.set(dut.filling, k)
            await ctx.delay(1e-9)
            first, words = ctx.get(dut.first), rng.integers(0, 256, (regions[k][0], 8))
            await ctx.tick()
            ctx.set(dut.reserve, 0)
            ctx.set(dut.begin, 0)
            for n, mask in rng.permutation([(n, mask) for n in range(len(words)) for mask in (0x35, 0xCA)]).tolist():
                ctx.set(dut.addr, first + n)
                ctx.set(dut.mask, mask)
                ctx.set(dut.data, sum(int(v) << 8 * j for j, v in enumerate(words[n])))
                await ctx.tick()
            ctx.set(dut.mask, 0)
            ctx.set(dut.finish, 1)
            ctx.set(dut.finished, k)
            await ctx.tick()
            ctx.set(dut.finish, 0)
            sent[k].extend(words.tolist())

    async def take(ctx: Any) -> None:
        """All streams, none of them always ready."""
        want = sum(tile * (slots + 1) for tile, slots in regions)
        while sum(map(len, got)) < want:
            ready = rng.integers(0, 2, len(regions)).tolist()
            for k, r in enumerate(ready):
                ctx.set(getattr(dut, f"o{k}").ready, r)
            for k, r in enumerate(ready):
                if r and ctx.get(getattr(dut, f"o{k}").valid):
                    got[k].append([ctx.get(getattr(dut, f"o{k}").payload[j]) for j in range(8)])
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(fill)
    sim.add_testbench(take)
    sim.run_until(0.2)
    assert got == sent
