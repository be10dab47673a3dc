# amaranth: UnusedElaboratable=no
"""Weights from memory: the rows of a fold, used for a tile's pixels while those of the next arrive."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lib.memory import ReadPort
from hw.lib.pool import choose
from hw.lib.store import ram
from hw.params import Lanes
from hw.units.base import signature

#: Slots of the parameters: the results of a fold are finished after its rows have been given up.
PARAMETER_SLOTS = 4


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Where a layer's weights lie: ``folds`` blocks from byte ``address`` on, each ``rows`` rows and then the parameters."""

    address: int
    folds: int
    rows: int


class SlabLoader(wiring.Component):
    """Two slabs of weight rows, filled ahead from memory, layer by layer as the jobs say.

    A block's rows of ``row_bits`` are cut into whole words of the bus, then follow ``parameter_words``. While one slab is used the other is
    filled; commands run a block ahead of the data.

    Members: ``fetch``, ``fill``: the jobs (layers), each once in both; ``memory``: :class:`ReadPort`; ``row``, ``en``, ``data``: read
    port of the slab in use, data a cycle after; ``filled``: it is whole; ``done``: it is not needed any more; ``slot``, ``word``,
    ``parameters``: read port of the parameters, a cycle after; blocks are in slots 0, 1, 2, 3, 0...
    """

    def __init__(self, layers: Sequence[Blocks], *, row_bits: int, parameter_words: int, data_bits: int, address_bits: int) -> None:
        self.layers, self.row_bits, self.parameter_words, self.data_bits = list(layers), row_bits, parameter_words, data_bits
        self.columns = -(-row_bits // data_bits)
        self.rows = max(b.rows for b in layers)
        job = signature(Lanes(lanes=1, bits=max((len(layers) - 1).bit_length(), 1), signed=False))
        super().__init__({
            "fetch": In(job), "fill": In(job), "memory": Out(ReadPort(address_bits=address_bits, data_bits=data_bits)),
            "row": In(range(self.rows)), "en": In(1), "data": Out(row_bits), "filled": Out(1), "done": In(1),
            "slot": In(range(PARAMETER_SLOTS)), "word": In(range(max(parameter_words, 2))), "parameters": Out(data_bits),
        })  # fmt: skip

    def words(self, layer: Blocks) -> int:
        """Words of one block."""
        return layer.rows * self.columns + self.parameter_words

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self.ask(m)
        self.store(m)
        return m

    def ask(self, m: Module) -> None:
        """A command a block."""
        command, layer = self.memory.command, self.fetch.payload[0]
        left = Signal(range(max(b.folds for b in self.layers) + 1))
        size = [self.words(b) * self.data_bits // 8 for b in self.layers]
        step = Signal(range(max(size) + 1))
        m.d.comb += [self.fetch.ready.eq(left == 0), command.valid.eq(left != 0)]
        with m.If((left == 0) & self.fetch.valid):
            m.d.sync += [
                left.eq(choose(m, "folds", layer, [b.folds for b in self.layers])),
                step.eq(choose(m, "size", layer, size)),
                command.payload.address.eq(choose(m, "address", layer, [b.address for b in self.layers])),
                command.payload.words.eq(choose(m, "words", layer, [self.words(b) for b in self.layers])),
            ]
        with m.If(command.valid & command.ready):
            m.d.sync += [left.eq(left - 1), command.payload.address.eq(command.payload.address + step)]

    def store(self, m: Module) -> None:
        """Rows into the slab that is not in use, the parameters behind them."""
        words, layer = self.memory.data, self.fill.payload[0]
        into, current, full, slot = Signal(), Signal(), Signal(2), Signal(range(PARAMETER_SLOTS))
        folds, rows = Signal(range(max(b.folds for b in self.layers) + 1)), Signal(range(self.rows))
        row, column, tail = Signal(range(self.rows)), Signal(range(max(self.columns, self.parameter_words))), Signal()
        m.d.comb += [self.fill.ready.eq(folds == 0), self.filled.eq(full.bit_select(current, 1))]
        with m.If((folds == 0) & self.fill.valid):
            m.d.sync += folds.eq(choose(m, "blocks", layer, [b.folds for b in self.layers]))
            m.d.sync += rows.eq(choose(m, "rows", layer, [b.rows - 1 for b in self.layers]))
        take, ends, last = Signal(), Signal(), Signal()
        m.d.comb += [words.ready.eq((folds != 0) & ~full.bit_select(into, 1)), take.eq(words.valid & words.ready)]
        m.d.comb += [ends.eq(column == Mux(tail, self.parameter_words - 1, self.columns - 1)), last.eq(take & tail & ends)]
        with m.If(take):
            m.d.sync += column.eq(Mux(ends, 0, column + 1))
            with m.If(ends & ~tail):
                m.d.sync += [row.eq(Mux(row == rows, 0, row + 1)), tail.eq(row == rows)]
        with m.If(last):
            m.d.sync += [tail.eq(0), into.eq(~into), folds.eq(folds - 1), slot.eq(slot + 1)]
        with m.If(self.done):
            m.d.sync += current.eq(~current)
        for half in range(2):
            with m.If(last & (into == half)):
                m.d.sync += full[half].eq(1)
            with m.Elif(self.done & (current == half)):
                m.d.sync += full[half].eq(0)
        # A word is written a cycle after it came: its column and row are then ready in registers.
        word, place, put = Signal(self.data_bits, reset_less=True), Signal(range(2 * self.rows), reset_less=True), Signal(self.columns)
        m.d.sync += [word.eq(words.payload), place.eq(Mux(into, self.rows, 0) + row)]
        m.d.sync += put.eq(Cat(take & ~tail & (column == k) for k in range(self.columns)))
        parts = []
        for k in range(self.columns):
            width = min(self.data_bits, self.row_bits - k * self.data_bits)
            m.submodules[f"column{k}"] = memory = ram(width, 2 * self.rows)
            write, read = memory.write_port(), memory.read_port()
            m.d.comb += [write.addr.eq(place), write.data.eq(word), write.en.eq(put[k])]
            m.d.comb += [read.addr.eq(Mux(current, self.rows, 0) + self.row), read.en.eq(self.en)]
            parts.append(read.data)
        m.d.comb += self.data.eq(Cat(parts))
        size = 1 << max(self.parameter_words - 1, 1).bit_length()
        m.submodules.parameters = memory = ram(self.data_bits, PARAMETER_SLOTS * size)
        write, read = memory.write_port(), memory.read_port()
        index = (size - 1).bit_length()
        m.d.comb += [write.addr.eq(Cat(Cat(column, Const(0, index))[:index], slot)), write.data.eq(words.payload), write.en.eq(take & tail)]
        m.d.comb += [read.addr.eq(Cat(Cat(self.word, Const(0, index))[:index], self.slot)), self.parameters.eq(read.data), read.en.eq(1)]
