"""Memories and tables: the rule, and that a table gives its rows wherever it stands."""
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from hw.lib.store import LUTS_A_BLOCK, block_shape, distinct_columns, mux_luts, place_of, ram_luts, rows_of, table, table_luts
from hw.params import RomKind


@pytest.mark.parametrize(("width", "depth", "luts", "blocks", "place"), [
    (8, 2, 8, 1, "lut"), (15, 32, 16, 1, "lut"), (8, 64, 16, 1, "lut"), (7, 128, 23, 1, "lut"), (36, 128, 132, 1, "block"),
    (8, 2048, 640, 1, "block"), (16, 27000, 13504, 28, "block"), (128, 65, 432, 4, "block"), (120, 64, 144, 4, "lut"),
])  # fmt: skip
def test_what_a_memory_takes_and_where_it_stands(width: int, depth: int, luts: int, blocks: int, place: str) -> None:
    assert (ram_luts(width, depth), block_shape(width, depth)[0], place_of(width, depth)) == (luts, blocks, place)
    assert (luts <= LUTS_A_BLOCK * blocks) == (place == "lut")


def test_luts_of_tables_and_multiplexers() -> None:
    assert [mux_luts(n) for n in (1, 2, 4, 5, 8, 24)] == [0, 1, 1, 2, 3, 12]
    assert [table_luts(10, n) for n in (1, 64, 65, 285)] == [0, 10, 30, 70]


class Reader(wiring.Component):
    """A table of rows by address."""

    def __init__(self, rows: list[list[int]], bits: int, kind: RomKind) -> None:
        self.rows, self.bits, self.kind = rows, bits, kind
        super().__init__({"addr": In(range(max(len(rows), 2))), "en": In(1), "data": Out(bits * len(rows[0]))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += self.data.eq(rows_of(m, "rows", self.rows, self.bits, self.addr, self.en, self.kind).as_value())
        return m


@pytest.mark.parametrize("kind", ["auto", "lut", "block"])
@pytest.mark.parametrize("depth", [1, 2, 63, 64, 65, 200, 300])
def test_every_row_comes_a_cycle_later_and_is_held(kind: RomKind, depth: int) -> None:
    rng = np.random.default_rng(depth)
    rows = [[int(a), 0, int(a), -1, int(b)] for a, b in rng.integers(-8, 8, (depth, 2))]  # equal and constant columns among them
    wanted = [sum((v & 15) << 4 * k for k, v in enumerate(row)) for row in rows]
    dut = Reader(rows, 4, kind)
    order = [*rng.permutation(depth).tolist(), 0, depth - 1]

    async def check(ctx: Any) -> None:
        for at in order:
            ctx.set(dut.addr, at)
            ctx.set(dut.en, 1)
            await ctx.tick()
            assert ctx.get(dut.data) == wanted[at]
            ctx.set(dut.addr, 0)
            ctx.set(dut.en, 0)
            await ctx.tick()
            assert ctx.get(dut.data) == wanted[at], "held without the enable"

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(check)
    sim.run()


def test_equal_columns_are_kept_once_and_zeros_not_at_all() -> None:
    rows, order = distinct_columns([0b0110, 0b0101, 0b0011], 4)
    assert order == [0, 1, 2, None] and rows == [0b110, 0b101, 0b011]
    rows, order = distinct_columns([0b1101, 0b0001, 0b1101], 4)
    assert order == [0, None, 1, 1] and rows == [0b11, 0b01, 0b11]


def test_a_table_in_luts_is_cut_into_64_rows() -> None:
    m = Module()
    dut = Reader([[k] for k in range(130)], 9, "lut")
    table(m, "t", list(range(130)), 8, dut.addr, dut.en, "lut")
    names = [name for name in m._named_submodules if "lut_table" in name]
    assert names == ["t_lut_table0", "t_lut_table1", "t_lut_table2"]
