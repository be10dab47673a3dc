"""Inner products with every kind of multiplier against plain sums."""
import itertools
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.lib.core import StreamedMatVec
from hw.lib.dot import Dot
from hw.params import Lanes, Multiplier, Range
from sim.run import Case, run_cases

KINDS: tuple[Multiplier, ...] = get_args(Multiplier)
NARROW = Range(low=-7, high=7)


def check(dot: Dot, seed: int, cycles: int = 300) -> None:
    """Random and extreme operands every cycle, with pauses of ``en``."""
    rng, pending = random.Random(seed), []

    def pick(low: int, high: int) -> int:
        return rng.choice([low, high, rng.randint(low, high), rng.randint(low, high)])

    async def bench(ctx: Any) -> None:
        for _ in range(cycles):
            x = [pick(dot.i.lowest, dot.i.highest) for _ in range(dot.simd)]
            w = [[pick(dot.weight.low, dot.weight.high) for _ in range(dot.simd)] for _ in range(dot.pe)]
            ctx.set(dot.x, x)
            ctx.set(dot.w, dot.encode(w))
            ctx.set(dot.en, 1)
            pending.append([sum(a * b for a, b in zip(row, x, strict=True)) + dot.offset for row in w])
            await ctx.tick()
            if rng.random() < 0.2:
                ctx.set(dot.en, 0)
                await ctx.tick()
            if len(pending) >= dot.latency:
                want = pending.pop(0)
                assert [ctx.get(dot.o[p]) for p in range(dot.pe)] == want

    sim = Simulator(dot)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pe, simd", [(1, 1), (3, 4), (5, 6)])
def test_dot(kind: Multiplier, pe: int, simd: int) -> None:
    check(Dot(pe=pe, simd=simd, weight=NARROW, i=Lanes(lanes=simd, bits=8, signed=False), kind=kind), seed=pe)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "weight, bits, signed",
    [
        (Range(low=-8, high=7), 8, False), (Range(low=-8, high=7), 8, True), (Range(low=-128, high=127), 8, False), (NARROW, 3, True),
        (Range(low=-1, high=1), 8, True), (Range(low=-2, high=1), 2, False), (Range(low=-31, high=31), 5, True),
        (Range(low=0, high=3), 8, False), (Range(low=-128, high=127), 8, True),
    ],
)  # fmt: skip
def test_operand_ranges(kind: Multiplier, weight: Range, bits: int, signed: bool) -> None:
    check(Dot(pe=4, simd=5, weight=weight, i=Lanes(lanes=5, bits=bits, signed=signed), kind=kind), seed=bits, cycles=150)


@pytest.mark.rtl
@pytest.mark.parametrize(("kind", "lanes"), [("packed27", 3), ("dsp48e2", 3), ("packed18", 2), ("mult18x18d", 2)])
def test_packing_exhaustively(kind: Multiplier, lanes: int, tmp_path: Path) -> None:
    """Every activation with every tuple of packed weights, in Verilator: 256 · 15^3 (or 15^2) words."""
    tuples = list(itertools.product(range(-7, 8), repeat=lanes))
    groups = 75
    unit = StreamedMatVec(pe=groups * lanes, steps=1, weight=NARROW, i=Lanes(lanes=1, bits=8, signed=False), bits=13, kind=kind)
    assert unit.core.dot.lanes == lanes
    rows = [list(itertools.chain(*tuples[k : k + groups])) for k in range(0, len(tuples), groups)]
    words = np.array([unit.encode([[w] for w in row]) for row in rows])
    x = np.repeat(np.arange(256), len(rows)).reshape(-1, 1, 1, 1)
    w = np.tile(words, (256, 1)).reshape(len(x), 1, 1, -1)
    products = x * np.tile(np.array(rows), (256, 1)).reshape(len(x), 1, 1, -1)
    case = Case(name=kind, unit=unit, op=SimpleNamespace(golden=lambda *_: (products,)), inputs=(x, w))  # type: ignore[arg-type]
    run_cases([case], tmp_path, runs=((False, False),))
