"""The ring of weights: however slowly it is emptied, no row and no parameter is overwritten while it may still be read."""
import itertools
from typing import Any

import pytest
from amaranth.sim import Simulator

from hw.lib.slab import FINISHING, PARAMETER_SLOTS, Blocks, SlabLoader, slab_depth

COLUMNS, WORDS = 2, 2


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_nothing_is_overwritten_while_it_may_be_read(rows: int) -> None:
    folds = 24
    layers = [Blocks(address=0, folds=folds, rows=rows), Blocks(address=0, folds=1, rows=16)]
    dut = SlabLoader(layers, row_bits=60, parameter_words=WORDS, data_bits=32, address_bits=16)
    assert slab_depth(16) == 32 and slab_depth(135) == 512
    size = rows * COLUMNS + WORDS

    async def memory(ctx: Any) -> None:
        """The n-th word is n, as fast as it is taken."""
        ctx.set(dut.memory.command.ready, 1)
        ctx.set(dut.memory.data.valid, 1)
        for n in range(folds * size):
            ctx.set(dut.memory.data.payload, n)
            await ctx.tick().until(dut.memory.data.ready)

    async def parameters(ctx: Any, block: int) -> None:
        ctx.set(dut.slot, block % PARAMETER_SLOTS)
        for k in range(WORDS):
            ctx.set(dut.word, k)
            await ctx.tick()
            assert ctx.get(dut.parameters) == block * size + rows * COLUMNS + k, f"parameters of block {block}"

    async def engine(ctx: Any) -> None:
        for port in (dut.fetch, dut.fill):
            ctx.set(port.valid, 1)
        await ctx.tick()
        for port in (dut.fetch, dut.fill):
            ctx.set(port.valid, 0)
        ctx.set(dut.en, 1)
        for block in range(folds):
            await ctx.tick().repeat(300)  # what can come has come
            assert ctx.get(dut.filled)
            for turn, row in itertools.product(range(2), range(rows)):  # a tile of two pixels
                again = row == rows - 1 and not turn
                done = row == rows - 1 and turn
                for port, value in ((dut.row, row), (dut.step, 1), (dut.again, again), (dut.done, done)):
                    ctx.set(port, value)
                await ctx.tick()
                first = block * size + row * COLUMNS
                assert ctx.get(dut.data) == first | (first + 1 & (1 << 28) - 1) << 32, f"row {row} of block {block}"
            for port in (dut.step, dut.done):
                ctx.set(port, 0)
            await ctx.tick().repeat(4 * size)
            for finishing in range(max(block + 1 - FINISHING, 0), block + 1):  # whose rows have been given up
                await parameters(ctx, finishing)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(engine)
    sim.add_testbench(memory, background=True)
    sim.run()
