# amaranth: UnusedElaboratable=no
"""Runs of words in one memory: none overlap, none go over the end, and room is found wherever a model finds it, spent words included."""
import random
from typing import Any

import pytest
from amaranth.sim import Simulator

from hw.lib.bump import PIECES, Bump


@pytest.mark.parametrize("depth", [7, 16, 40])
def test_runs_never_overlap_and_room_is_found(depth: int) -> None:
    dut, rng = Bump(depth), random.Random(depth)
    out: list[tuple[int, int, int]] = []  # first word, words, spent ones
    given = early = 0

    async def bench(ctx: Any) -> None:
        nonlocal given, early
        for _ in range(1500):
            size = rng.randint(1, depth if rng.random() < 0.2 else max(depth // 3, 1))
            free = bool(out) and rng.random() < 0.3
            spent = bool(out) and rng.random() < 0.5 and (free or out[0][2] + 1 < out[0][1])
            ctx.set(dut.size, size)
            ctx.set(dut.free, free)
            ctx.set(dut.spent, spent)
            room, first = ctx.get(dut.room), ctx.get(dut.next)
            if out:
                assert ctx.get(dut.oldest) == out[0][0]
            assert room == expected(out, size, depth)
            take = bool(room) and rng.random() < 0.7
            ctx.set(dut.take, take)
            await ctx.tick()
            if take:
                assert first + size <= depth
                assert all(first + size <= a + gone or a + n <= first for a, n, gone in out)
                early += any(first < a + gone and a < first + size for a, _, gone in out)
                out.append((first, size, 0))
                given += 1
            if free:
                out.pop(0)
            elif spent:
                out[0] = (out[0][0], out[0][1], out[0][2] + 1)
        assert given > 200 and early > 5

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def expected(out: list[tuple[int, int, int]], size: int, depth: int) -> bool:
    """Whether a run of ``size`` words fits behind the last one, or at the start, without touching the oldest."""
    if len(out) == PIECES:
        return False
    if not out:
        return True
    head, (last, count, _) = out[0][0] + out[0][2], out[-1]
    tail = last + count
    if tail > head:
        return tail + size <= depth or size <= head
    return tail + size <= head


def test_refuses_no_words() -> None:
    with pytest.raises(ValueError, match="depth must be a positive integer, not 0"):
        Bump(0)
