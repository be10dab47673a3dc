"""The best of a stream: a sorted list that entries sink into, a row of cells a cycle."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.ring import counter
from hw.lib.store import ram


def entry_layout(value_bits: int, label_bits: int, data_bits: int) -> data.StructLayout:
    """What is sorted: ``value`` (signed) descending, then ``label`` ascending, then as they came; ``data`` goes along."""
    return data.StructLayout({"value": signed(value_bits), "label": unsigned(label_bits), "data": unsigned(data_bits)})


def sorter_rows(depth: int, cells: int) -> int:
    """Rows of ``cells`` that hold ``depth`` entries; two at least, since a row is written while the next is read."""
    return max(-(-depth // cells), 2)


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many entries there are, as whole rows and cells of the next; ``more`` adds one. ``whole``, ``partly``: what is known of the
    row that is looked at: all its cells hold entries, it is the next entry's."""

    row: Signal
    cell: Signal
    more: Signal
    whole: Signal
    partly: Signal

    def holds(self, row: Value, cell: Value) -> Value:
        """Whether there is an entry in that cell."""
        return (row < self.row) | ((row == self.row) & (cell < self.cell))

    def holds_here(self, cell: int) -> Value:
        """The same of a cell of the row that is looked at."""
        return self.whole | (self.partly & (cell < self.cell))


class TopK(wiring.Component):
    """The ``depth`` best entries of every frame, best first, followed by empty ones up to ``depth``.

    The keys lie sorted in a memory whose words are rows of ``cells``. A new entry that is better than the last key sinks through the
    rows: compared with all cells of a row at once it takes its place, those behind it move on by one, and what falls off the row's
    end goes on to the next row. What goes with a key lies in a memory of its own, cells hold its place there.
    Throughput: an entry that is not among the best so far takes a cycle, one that is takes :attr:`rows`; behind a frame's end
    nothing is taken until its records have left, one a cycle. Latency: the best record leaves 3 cycles after the frame's end.

    Parameters: ``depth`` K; ``cells`` of a row; ``value_bits``, ``label_bits``, ``data_bits``.
    Members: ``i``: stream of ``entry``, ``present`` (0: there is none) and ``end`` (the frame ends behind it);
    ``o``: stream of ``entry`` (0 if not valid), ``valid`` and ``last``.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, depth: int, cells: int, value_bits: int, label_bits: int, data_bits: int) -> None:
        for name, number in (("depth", depth), ("cells", cells)):
            if number < 1:
                raise ValueError(f"{name} must be a positive integer, not {number!r}")
        self.depth, self.cells, self.rows = depth, cells, sorter_rows(depth, cells)
        self.entry = entry_layout(value_bits, label_bits, data_bits)
        slot_bits = len(counter(cells, "c")) + len(counter(self.rows, "r"))
        #: A cell: value and label as one unsigned number, the greater the better; where the entry lies.
        self.cell = data.StructLayout({"key": value_bits + label_bits, "slot": slot_bits})
        taken = data.StructLayout({"entry": self.entry, "present": 1, "end": 1})
        given = data.StructLayout({"entry": self.entry, "valid": 1, "last": 1})
        super().__init__({"i": In(stream.Signature(taken)), "o": Out(stream.Signature(given))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        row = data.ArrayLayout(self.cell, self.cells)
        m.submodules.keys = keys = ram(row.size, self.rows)
        m.submodules.kept = kept = ram(self.entry.size, 1 << self.cell["slot"].width)
        w_port, r_port = keys.write_port(), keys.read_port()
        old = data.View(row, r_port.data)
        held = Signal(self.i.payload.shape(), reset_less=True)
        busy, done, sending, sent = Signal(), Signal(), Signal(), Signal()
        ended = Signal()
        m.d.comb += [self.i.ready.eq(~sending & (~busy | (done & ~ended))), ended.eq(held.end)]
        with m.If(self.i.ready):
            m.d.sync += [busy.eq(self.i.valid), held.eq(self.i.payload)]
        with m.Elif(done):
            m.d.sync += busy.eq(0)
        with m.If(done & ended):
            m.d.sync += sending.eq(1)
        with m.Elif(sent):
            m.d.sync += sending.eq(0)
        at = counter(self.rows, "at")
        on = busy & ~done
        count = self._count(m, sent, at, on)
        insert, slot, new = self._sink(m, held, busy, done, at, count, old)
        m.d.comb += [w_port.addr.eq(at), w_port.data.eq(new), w_port.en.eq(busy & (insert | (at != 0)))]
        kept_w = kept.write_port()
        m.d.comb += [kept_w.addr.eq(slot), kept_w.data.eq(held.entry), kept_w.en.eq(insert)]
        send_row, fetch = self._send(m, kept.read_port(), sending, sent, count, old)
        # The row that the next cycle looks at: the first one between entries.
        ahead = Signal.like(at)
        m.d.comb += ahead.eq(Mux(on, at + 1, 0))
        m.d.comb += [r_port.addr.eq(Mux(sending, send_row, ahead)), r_port.en.eq(~sending | fetch)]
        with m.If(busy):
            m.d.sync += at.eq(ahead)
        return m

    def _count(self, m: Module, clear: Value, at: Value, on: Value) -> Count:
        """``on``: the next row after ``at`` is looked at in the next cycle, otherwise the first one."""
        count = Count(
            row=Signal(range(self.rows + 1), name="row_count"), cell=counter(self.cells, "cell_count"), more=Signal(name="more"),
            whole=Signal(name="whole"), partly=Signal(init=1, name="partly"),
        )  # fmt: skip
        fills = count.cell == self.cells - 1
        with m.If(clear):
            m.d.sync += [count.cell.eq(0), count.row.eq(0)]
        with m.Elif(count.more):
            m.d.sync += [count.cell.eq(Mux(fills, 0, count.cell + 1)), count.row.eq(count.row + fills)]
        # Where the list grows the first row comes next, so that only for it the growth counts.
        none = clear | ((count.row == 0) & ~(count.more & fills))
        m.d.sync += [count.whole.eq(Mux(on, at + 1 < count.row, ~none)), count.partly.eq(Mux(on, at + 1 == count.row, none))]
        return count

    def _sink(
        self, m: Module, held: Any, busy: Value, done: Signal, at: Signal, count: Count, old: Any
    ) -> tuple[Signal, Value, Value]:
        """The entry's way through row ``at``: (it comes in, its place in memory, the row as it becomes)."""
        entry, raw = held.entry, held.entry.value.as_unsigned()
        first, insert, full, last = Signal(), Signal(), Signal(), Signal()
        carry, worst, now = (Signal(self.cell, name=name, reset_less=True) for name in ("carry", "worst", "now"))
        placed = Signal()  # in an earlier row: what is carried is better than this whole row
        slot = Signal(self.cell["slot"].width)
        m.d.comb += [first.eq(at == 0), last.eq(at == self.rows - 1), full.eq(count.row == self.rows)]
        m.d.comb += slot.eq(Mux(full, worst.slot, Cat(count.cell, count.row[: len(at)])))
        key = Cat(~entry.label, raw[:-1], ~raw[-1])
        m.d.comb += insert.eq(busy & first & held.present & (~full | (key > worst.key)))
        m.d.comb += now.eq(carry)
        with m.If(first):
            m.d.comb += [now.key.eq(key), now.slot.eq(slot)]
        m.d.comb += done.eq(busy & Mux(first, ~insert, last))
        behind = Signal(self.cells)  # cells that what is carried goes before: worse ones, and empty ones
        m.d.comb += behind.eq(Cat((placed & ~first) | ~count.holds_here(k) | (now.key > old[k].key) for k in range(self.cells)))
        new = [
            Mux(behind[k], Mux(behind[k - 1], old[k - 1].as_value(), now.as_value()) if k else now.as_value(), old[k].as_value())
            for k in range(self.cells)
        ]
        with m.If(busy):
            m.d.sync += [placed.eq(behind[-1]), carry.eq(Mux(behind[-1], old[-1].as_value(), now.as_value()))]
            with m.If(last):
                m.d.sync += worst.eq(new[-1])
        m.d.comb += count.more.eq(busy & last & ~full)
        return insert, slot, Cat(new)

    def _send(
        self, m: Module, port: Any, sending: Signal, sent: Signal, count: Count, old: Any
    ) -> tuple[Value, Signal]:
        """Sends the records in order, one a cycle; returns the row to read next, and when."""
        row, cell, number = counter(self.rows, "send_row"), counter(self.cells, "send_cell"), counter(self.depth, "number")
        step, fetch, go, end = Signal(), Signal(), Signal(), Signal()
        fetched, valid, last, slot = Signal(), Signal(), Signal(), Signal(self.cell["slot"].width)
        m.d.comb += [step.eq(~fetched | self.o.ready), go.eq(sending & step), end.eq(number == self.depth - 1), sent.eq(go & end)]
        with m.Switch(cell):
            for k in range(self.cells):
                with m.Case(k):
                    m.d.comb += slot.eq(old[k].slot)
        m.d.comb += [fetch.eq(go & (cell == self.cells - 1)), port.addr.eq(slot), port.en.eq(step)]
        with m.If(step):
            m.d.sync += fetched.eq(sending)
        with m.If(go):
            m.d.sync += [valid.eq(count.holds(row, cell)), last.eq(end)]
            m.d.sync += [number.eq(Mux(end, 0, number + 1)), cell.eq(Mux(end | (cell == self.cells - 1), 0, cell + 1))]
            m.d.sync += row.eq(Mux(end, 0, row + (cell == self.cells - 1)))
        m.d.comb += [self.o.valid.eq(fetched), self.o.payload.valid.eq(valid), self.o.payload.last.eq(last)]
        m.d.comb += self.o.payload.entry.as_value().eq(Mux(valid, port.data, 0))
        return row + 1, fetch
