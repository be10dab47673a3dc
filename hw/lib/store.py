# amaranth: UnusedElaboratable=no
"""Memories, and where they stand: the one rule that hardware and estimates share.

A memory goes to LUTs unless that takes more than :data:`LUTS_A_BLOCK` of them for each block RAM of 18 kbit that they save: one
that would leave its blocks mostly empty is LUT RAM, or a table in LUTs if it is never written. The choice stands in the Verilog
(``ram_style``, ``rom_style``), so that no tool makes another.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.lib.arith import pack_row
from hw.params import RomKind

Place = Literal["lut", "block"]
#: What synthesis calls the places, of memories and of tables (Yosys and the vendors' tools read these attributes).
RAM_STYLES: dict[Place, str] = {"lut": "distributed", "block": "block"}
ROM_STYLES: dict[Place, str] = {"lut": "logic", "block": "block"}
#: LUTs that a block RAM of 18 kbit is worth: about a third of one in LUT RAM. A ZU3EG has 163 LUTs for each.
LUTS_A_BLOCK = 100
#: Words in one LUT of six inputs.
LUT_WORDS = 64
#: (width, depth) of a block RAM of 18 kbit with a port to write and a port to read.
ASPECTS = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))


def mux_luts(words: int) -> int:
    """LUTs of six inputs for a bit that is one of ``words``: four to one in each, three to one where there are many."""
    return -(-(words - 1) // (3 if words <= 8 else 2))


def table_luts(width: int, depth: int) -> int:
    """LUTs of a table that is never written, without the register behind it."""
    tables = -(-depth // LUT_WORDS)
    return width * (tables + mux_luts(tables)) if depth > 1 else 0


def ram_luts(width: int, depth: int) -> int:
    """LUTs of a memory in LUT RAM, one port to write and one to read: 14 bits of 32 words or 7 of 64 take eight LUTs."""
    if depth <= 32:
        return 8 * -(-width // 14)
    banks = -(-depth // LUT_WORDS)
    return banks * 8 * -(-width // 7) + width * mux_luts(banks)


@cache
def block_shape(width: int, depth: int) -> tuple[int, int]:
    """(block RAMs of 18 kbit, how many stand behind each other) in the cheapest shape, what chooses among them counted in; looked up,
    since a search asks hundreds of thousands of times."""
    shapes = [(-(-width // w) * -(-depth // d), -(-depth // d)) for w, d in ASPECTS]
    return min(shapes, key=lambda shape: (shape[0] + width * mux_luts(shape[1]) / LUTS_A_BLOCK, shape[1]))


@cache
def place_of(width: int, depth: int, *, written: bool = True) -> Place:
    """Where a memory of ``depth`` words stands: the rule."""
    luts = ram_luts(width, depth) if written else table_luts(width, depth)
    return "lut" if luts <= LUTS_A_BLOCK * block_shape(width, depth)[0] else "block"


def memory_price(width: int, depth: int) -> tuple[Place, int]:
    """Where a memory that is written stands, and how many block RAMs of 18 kbit or LUTs it takes there: depths of one price are one
    memory."""
    place = place_of(width, depth)
    return place, block_shape(width, depth)[0] if place == "block" else ram_luts(width, depth)


def ram(shape: Any, depth: int, place: Place | None = None) -> Memory:
    """A memory of ``depth`` words, in LUT or block RAM as ``place`` says or the rule does."""
    place = place or place_of(Shape.cast(shape).width, depth)
    return Memory(shape=shape, depth=depth, init=[], attrs={"ram_style": RAM_STYLES[place]})


def banks_of(width: int, depth: int) -> list[int]:
    """Depths of the memories that one of ``depth`` words is best made of, so that a register fits behind each before one is chosen: as
    deep as its block RAMs are; a single one where none stand behind each other. All but the last are a power of two."""
    deep = block_shape(width, depth)[1] if place_of(width, depth) == "block" else 1
    size = min(d for _, d in ASPECTS if d * deep >= depth) if deep > 1 else depth
    return [min(size, depth - k) for k in range(0, depth, size)]


class LutTable(wiring.Component):
    """At most 64 rows of constants without a clock, a LUT a bit. A module of its own, so that synthesis maps it apart.

    Mapped with what is around them, ABC takes tables of many rows to pieces and builds them from three times the LUTs.
    """

    addr: Signal
    data: Signal

    def __init__(self, rows: Sequence[int], bits: int) -> None:
        self.rows, self.bits = rows, bits
        super().__init__({"addr": In(range(max(len(rows), 2))), "data": Out(bits)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.rows = rows = Memory(shape=self.bits, depth=len(self.rows), init=self.rows, attrs={"rom_style": "logic"})
        port = rows.read_port(domain="comb")
        m.d.comb += [port.addr.eq(self.addr), self.data.eq(port.data)]
        return m


def distinct_columns(rows: Sequence[int], bits: int) -> tuple[list[int], list[int | None]]:
    """(rows of the columns that differ, which of them each bit is, None: always 0): what a sign repeats is kept once."""
    columns = [sum((row >> k & 1) << n for n, row in enumerate(rows)) for k in range(bits)]
    kept = list(dict.fromkeys(column for column in columns if column))
    narrow = [sum((column >> n & 1) << k for k, column in enumerate(kept)) for n in range(len(rows))]
    return narrow, [kept.index(column) if column else None for column in columns]


def table(m: Module, name: str, rows: Sequence[int], bits: int, addr: Value, en: Value, kind: RomKind = "auto") -> Value:
    """Row ``addr`` of constants, fetched with ``en`` and there a cycle later; in LUTs or block RAM as ``kind`` or the rule says.

    In LUTs, 64 rows are a table and the upper bits of ``addr`` choose among them.
    """
    place: Place = place_of(bits, len(rows), written=False) if kind == "auto" else kind
    if place == "block":
        m.submodules[name] = memory = Memory(shape=bits, depth=len(rows), init=rows, attrs={"rom_style": ROM_STYLES[place]})
        port = memory.read_port()
        m.d.comb += [port.addr.eq(addr), port.en.eq(en)]
        return port.data
    kept, order = distinct_columns(rows, bits)
    width, words = max(max(kept).bit_length(), 1), []
    for k in range(0, len(rows), LUT_WORDS):
        m.submodules[f"{name}_lut_table{k // LUT_WORDS}"] = part = LutTable(kept[k : k + LUT_WORDS], width)
        m.d.comb += part.addr.eq(addr[: len(part.addr)])
        words.append(part.data)
    found = Signal(width, name=f"{name}_row", reset_less=True)
    with m.If(en):
        m.d.sync += found.eq(chosen(words, addr[LUT_WORDS.bit_length() - 1 :]))
    return Cat(Const(0, 1) if k is None else found[k] for k in order)


def rows_of(m: Module, name: str, rows: Sequence[Sequence[int]], bits: int, addr: Value, en: Value, kind: RomKind = "auto") -> Any:
    """:func:`table` of rows of signed integers of ``bits``: an array of them."""
    layout = data.ArrayLayout(signed(bits), len(rows[0]))
    return data.View(layout, table(m, name, [pack_row(row, bits) for row in rows], layout.size, addr, en, kind))


def chosen(words: Sequence[Value], index: Value) -> Value:
    """``words[index]`` as a tree of multiplexers."""
    row = list(words)
    for bit in index:
        if len(row) == 1:
            break
        row = [Mux(bit, row[k + 1], row[k]) if k + 1 < len(row) else row[k] for k in range(0, len(row), 2)]
    return row[0]
