# amaranth: UnusedElaboratable=no
"""Weights from memory: the rows of a fold, used for a tile's pixels while those of the next ones arrive."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lib.arith import add_carry
from hw.lib.memory import ReadPort
from hw.lib.pool import choose
from hw.lib.store import LUT_WORDS, Place, ram
from hw.params import Lanes
from hw.units.base import signature

#: Slots of the parameters: the results of a fold are finished after its rows have been given up.
PARAMETER_SLOTS = 8
#: Folds whose results may still be finished when their rows have been given up.
FINISHING = 2


def slab_depth(rows: int) -> int:
    """Places for rows of weights of folds of at most ``rows``: two of those, and as many more as the memories have anyway."""
    return 1 << max((2 * rows - 1).bit_length(), 5 if 2 * rows <= LUT_WORDS else 9)


def parameter_depth(words: int) -> int:
    """Words of the parameters' memory, ``words`` a slot."""
    return PARAMETER_SLOTS << max(words - 1, 1).bit_length()


def parameter_place(words: int) -> Place | None:
    """Where it stands: in LUTs rather than in block RAM that it would fill to a quarter, which large engines have none left of."""
    return "lut" if parameter_depth(words) <= 2 * LUT_WORDS else None


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Where a layer's weights lie: ``folds`` blocks from byte ``address`` on, each ``rows`` rows and then the parameters."""

    address: int
    folds: int
    rows: int


class SlabLoader(wiring.Component):
    """A ring of weight rows, filled ahead from memory, layer by layer as the jobs say.

    A block's rows of ``row_bits`` are cut into whole words of the bus, then follow ``parameter_words``. While the oldest block is used,
    those behind it are filled, as many as the ring and the parameters' slots hold: layers that take weights faster than memory gives them
    live on what came during those that take them slower. Commands run a block ahead of the data.

    Members: ``fetch``, ``fill``: the jobs (layers), each once in both; ``memory``: :class:`ReadPort`; ``en``, ``data``: the oldest block's
    row that is next, a cycle after; ``row``: its number; ``step``: the one behind it is next, or with ``again`` the block's first;
    ``filled``: the block is whole; ``done``, with ``step`` and ``row`` its last: it is not needed any more; ``slot``, ``word``,
    ``parameters``: read port of the parameters, a cycle after; blocks are in slots 0, 1, 2... 0...
    """

    def __init__(self, layers: Sequence[Blocks], *, row_bits: int, parameter_words: int, data_bits: int, address_bits: int) -> None:
        self.layers, self.row_bits, self.parameter_words, self.data_bits = list(layers), row_bits, parameter_words, data_bits
        self.columns = -(-row_bits // data_bits)
        self.rows = max(b.rows for b in layers)
        job = signature(Lanes(lanes=1, bits=max((len(layers) - 1).bit_length(), 1), signed=False))
        super().__init__({
            "fetch": In(job), "fill": In(job), "memory": Out(ReadPort(address_bits=address_bits, data_bits=data_bits)),
            "en": In(1), "data": Out(row_bits), "row": In(range(self.rows)), "step": In(1), "again": In(1), "filled": Out(1),
            "done": In(1),
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
        """Rows into the ring, the parameters behind them."""
        words, layer, depth = self.memory.data, self.fill.payload[0], slab_depth(self.rows)
        slot = Signal(range(PARAMETER_SLOTS))
        folds, rows = Signal(range(max(b.folds for b in self.layers) + 1)), Signal(range(self.rows))
        row, column, tail = Signal(range(self.rows)), Signal(range(max(self.columns, self.parameter_words))), Signal()
        with m.If((folds == 0) & self.fill.valid):
            m.d.sync += folds.eq(choose(m, "blocks", layer, [b.folds for b in self.layers]))
            m.d.sync += rows.eq(choose(m, "rows", layer, [b.rows - 1 for b in self.layers]))
        take, ends, last = Signal(), Signal(), Signal()
        place, row_ends, room = self.room(m, last, tail, depth)
        m.d.comb += [self.fill.ready.eq(folds == 0), words.ready.eq((folds != 0) & room), take.eq(words.valid & words.ready)]
        m.d.comb += [ends.eq(column == Mux(tail, self.parameter_words - 1, self.columns - 1)), last.eq(take & tail & ends)]
        m.d.comb += row_ends.eq(take & ends & ~tail)
        with m.If(take):
            m.d.sync += column.eq(Mux(ends, 0, column + 1))
        with m.If(row_ends):
            m.d.sync += [row.eq(Mux(row == rows, 0, row + 1)), tail.eq(row == rows)]
        with m.If(last):
            m.d.sync += [tail.eq(0), folds.eq(folds - 1), slot.eq(slot + 1)]
        # A word is written a cycle after it came: its column and row are then ready in registers.
        word, at, put = Signal(self.data_bits, reset_less=True), Signal(range(depth), reset_less=True), Signal(self.columns)
        m.d.sync += [word.eq(words.payload), at.eq(place), put.eq(Cat(take & ~tail & (column == k) for k in range(self.columns)))]
        self.memories(m, depth, at, word, put)
        size = parameter_depth(self.parameter_words) // PARAMETER_SLOTS
        m.submodules.parameters = memory = ram(self.data_bits, size * PARAMETER_SLOTS, parameter_place(self.parameter_words))
        write, read = memory.write_port(), memory.read_port()
        index = (size - 1).bit_length()
        m.d.comb += [write.addr.eq(Cat(Cat(column, Const(0, index))[:index], slot)), write.data.eq(words.payload), write.en.eq(take & tail)]
        m.d.comb += [read.addr.eq(Cat(Cat(self.word, Const(0, index))[:index], self.slot)), self.parameters.eq(read.data), read.en.eq(1)]

    def room(self, m: Module, last: Signal, tail: Signal, depth: int) -> tuple[Signal, Signal, Value]:
        """(place of the row that is written, to be told when it is whole, whether there is room): rows and blocks are counted."""
        place, row_ends, whole = Signal(range(depth)), Signal(), Signal(range(PARAMETER_SLOTS))
        kept = Signal(range(depth + 1))  # its highest bit: the ring is full
        given = (~Cat(self.row, Const(0, 1))).as_signed()  # -(row + 1)
        m.d.sync += [kept.eq(add_carry(kept, Mux(self.done, given, 0), row_ends)), whole.eq(whole + last - self.done)]
        m.d.comb += self.filled.eq(whole != 0)
        with m.If(row_ends):
            m.d.sync += place.eq(place + 1)
        return place, row_ends, (tail | ~kept[-1]) & (whole < PARAMETER_SLOTS - FINISHING)

    def memories(self, m: Module, depth: int, at: Signal, word: Signal, put: Signal) -> None:
        """A memory for each word of the bus in a row, read from the oldest block's first row on."""
        base, place, parts = Signal(range(depth)), Signal(range(depth)), []  # the address from a register: it goes far
        with m.If(self.step):
            m.d.sync += place.eq(Mux(self.again, base, place + 1))
        with m.If(self.done):
            m.d.sync += base.eq(place + 1)
        for k in range(self.columns):
            width = min(self.data_bits, self.row_bits - k * self.data_bits)
            m.submodules[f"column{k}"] = memory = ram(width, depth)
            write, read = memory.write_port(), memory.read_port()
            m.d.comb += [write.addr.eq(at), write.data.eq(word), write.en.eq(put[k])]
            m.d.comb += [read.addr.eq(place), read.en.eq(self.en)]
            parts.append(read.data)
        m.d.comb += self.data.eq(Cat(parts))
