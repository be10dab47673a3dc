# amaranth: UnusedElaboratable=no
"""The sorter against sorted lists, and the cycles that it takes for every entry."""
import random
from itertools import pairwise
from typing import Any

import pytest
from amaranth.sim import Simulator

from hw.lib.top_k import TopK, insert_cycles, sorter_rows
from hw.testing import until

#: (key, data, present)
Entry = tuple[int, int, int]


def best(entries: list[Entry], depth: int) -> list[tuple[int, int]]:
    """The best entries that are present, best first."""
    return sorted(((key, word) for key, word, present in entries if present), key=lambda entry: -entry[0])[:depth]


def cycles(entries: list[Entry], depth: int, cells: int) -> int:
    """What the sorter takes for a frame: those that are among the best so far, the others, the records."""
    room, good = sorter_rows(depth, cells) * cells, 0
    for k, (key, _, present) in enumerate(entries):
        kept = best(entries[:k], room)
        good += bool(present) and (len(kept) < room or key > kept[-1][0])
    return good * insert_cycles(depth, cells) + len(entries) - good + depth


@pytest.mark.parametrize(("depth", "cells"), [(1, 1), (5, 1), (5, 2), (6, 3), (7, 8), (9, 4)])
@pytest.mark.parametrize("p_out", [1, 0.5])
def test_keeps_the_best_in_order_and_takes_the_stated_cycles(depth: int, cells: int, p_out: float) -> None:
    rng = random.Random(f"{depth} {cells}")
    frames: list[list[Entry]] = [
        [(rng.randint(0, highest), rng.getrandbits(6), rng.random() < 0.8) for _ in range(count)]
        for count, highest in ((1, 15), (40, 15), (40, 3), (3, 15), (60, 15), (60, 1))
    ]
    frames += [[(key, key, 1) for key in keys] for keys in (range(16), range(15, -1, -1))]
    dut, starts = TopK(depth=depth, cells=cells, key_bits=4, data_bits=6), []

    async def feed(ctx: Any) -> None:
        now = 0
        for frame in [*frames, frames[0]]:
            for k, (key, word, present) in enumerate(frame):
                ctx.set(dut.i.payload, {"entry": {"key": key, "data": word}, "present": present, "end": k == len(frame) - 1})
                ctx.set(dut.i.valid, 1)
                taken = False
                while not taken:
                    *_, taken = await ctx.tick().sample(dut.i.ready)
                    now += 1
                if k == 0:
                    starts.append(now)
        ctx.set(dut.i.valid, 0)

    async def read(ctx: Any) -> None:
        for frame in frames:
            want = best(frame, depth)
            for k in range(depth):
                while rng.random() >= p_out:
                    await ctx.tick()
                ctx.set(dut.o.ready, 1)
                got = await until(ctx, dut.o.valid, dut.o.payload)
                ctx.set(dut.o.ready, 0)
                assert (got.valid, got.last) == (k < len(want), k == depth - 1)
                assert not got.valid or (got.entry.key, got.entry.data) == want[k]

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(feed)
    sim.add_testbench(read)
    sim.run()
    if p_out == 1:
        taken = [after - before for before, after in pairwise(starts)]
        assert taken == [cycles(frame, depth, cells) + 1 for frame in frames]


def test_refuses_no_cells() -> None:
    with pytest.raises(ValueError, match="cells must be a positive integer, not 0"):
        TopK(depth=3, cells=0, key_bits=4, data_bits=6)
