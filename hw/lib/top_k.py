"""The best of a stream: a sorted list that entries sink into, a row of cells a cycle."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.ring import counter
from hw.lib.store import ram


def sorter_rows(depth: int, cells: int) -> int:
    """Rows of ``cells`` that hold ``depth`` entries."""
    return -(-depth // cells)


def insert_cycles(depth: int, cells: int) -> int:
    """Cycles of an entry that is among the best so far: one for each row, two more until the last is written."""
    return sorter_rows(depth, cells) + 2


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many entries there are, as whole rows and cells of the next; ``more`` adds one. ``whole``, ``partly``: what is known of the
    row that is looked at: all its cells hold entries, it is the next entry's. ``full``: there is no room, and no more is added."""

    row: Signal
    cell: Signal
    more: Signal
    full: Signal
    whole: Signal
    partly: Signal

    def holds(self, row: Value, cell: Value) -> Value:
        """Whether there is an entry in that cell."""
        return (row < self.row) | ((row == self.row) & (cell < self.cell))

    def holds_here(self, cell: int) -> Value:
        """The same of a cell of the row that is looked at."""
        return self.whole | (self.partly & (cell < self.cell))


class TopK(wiring.Component):
    """The ``depth`` entries of every frame with the greatest keys, the greatest first, equal ones as they came; then empty ones up to
    ``depth``.

    The keys lie sorted in a memory whose words are rows of ``cells``. A new entry that is better than the last key sinks through the
    rows: compared with all cells of a row at once it takes its place, those behind it move on by one, and what falls off the row's
    end goes on to the next row. What goes with a key lies in a memory of its own, cells hold its place there. A row is compared in one
    cycle and written in the next: the list is sorted, so what happens in the rows before makes no difference to the comparisons.
    Throughput: an entry that is not among the best so far takes a cycle, one that is takes :func:`insert_cycles`; behind a frame's end
    nothing is taken until its records have left, one a cycle. Latency: the best record leaves 4 cycles after the frame's end.

    Parameters: ``depth`` K; ``cells`` of a row; ``key_bits``, ``data_bits`` of an entry.
    Members: ``i``: stream of ``entry`` (``key``, unsigned, and ``data``, which goes along), ``present`` (0: there is none) and ``end``
    (the frame ends behind it); ``o``: stream of ``entry`` (anything if not valid), ``valid`` and ``last``.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, depth: int, cells: int, key_bits: int, data_bits: int) -> None:
        for name, number in (("depth", depth), ("cells", cells)):
            if number < 1:
                raise ValueError(f"{name} must be a positive integer, not {number!r}")
        self.depth, self.cells, self.rows = depth, cells, sorter_rows(depth, cells)
        self.entry = data.StructLayout({"key": key_bits, "data": data_bits})
        slot_bits = len(counter(cells, "c")) + len(counter(self.rows, "r"))
        #: A cell: an entry's key, and where its data lies.
        self.cell = data.StructLayout({"key": key_bits, "slot": slot_bits})
        taken = data.StructLayout({"entry": self.entry, "present": 1, "end": 1})
        given = data.StructLayout({"entry": self.entry, "valid": 1, "last": 1})
        super().__init__({"i": In(stream.Signature(taken)), "o": Out(stream.Signature(given))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        row = data.ArrayLayout(self.cell, self.cells)
        m.submodules.keys = keys = ram(row.size, self.rows)
        m.submodules.kept = kept = ram(self.entry.size, 1 << self.cell["slot"].width)
        r_port, kept_w = keys.read_port(), kept.write_port()
        old = data.View(row, r_port.data)
        coming, held = self.i.payload, Signal(self.i.payload.shape(), reset_less=True)
        entry, worst, at = Signal(self.cell), Signal(self.cell, reset_less=True), counter(self.rows, "at")
        busy, enters, looked, looking, last = Signal(), Signal(), Signal(), Signal(), Signal()
        done, sending, sent = Signal(), Signal(), Signal()
        m.d.comb += [looking.eq(busy & enters & ~looked), last.eq(at == self.rows - 1)]
        count = self._count(m, sent, at, looking & ~last)
        m.d.comb += self.i.ready.eq(~sending & (~busy | (done & ~held.end)))
        with m.If(self.i.ready):
            m.d.sync += [busy.eq(self.i.valid), held.eq(coming), looked.eq(0)]
            m.d.sync += enters.eq(coming.present & (~count.full | (coming.entry.key > worst.key)))
        with m.Else():
            m.d.sync += [busy.eq(busy & ~done), looked.eq(looked | last)]
        with m.If(done & held.end):
            m.d.sync += sending.eq(1)
        with m.Elif(sent):
            m.d.sync += sending.eq(0)
        m.d.comb += [entry.key.eq(held.entry.key), entry.slot.eq(Mux(count.full, worst.slot, Cat(count.cell, count.row[: len(at)])))]
        # Written while none is read, which ~sending tells synthesis.
        m.d.comb += [kept_w.addr.eq(entry.slot), kept_w.data.eq(held.entry), kept_w.en.eq(looking & ~sending)]
        written = self._sink(m, keys.write_port(), entry, at, Cat(looking, last), old, count, worst)
        m.d.comb += done.eq(busy & (~enters | written))
        # The row that the next cycle looks at: the first one between entries.
        ahead = Mux(looking & ~last, at + 1, 0)
        m.d.sync += at.eq(ahead)
        send_row, fetch = self._send(m, kept.read_port(), sending, sent, count, old)
        m.d.comb += [r_port.addr.eq(Mux(sending, send_row, ahead)), r_port.en.eq(~sending | fetch)]
        return m

    def _count(self, m: Module, clear: Value, at: Value, on: Value) -> Count:
        """``on``: the next row after ``at`` is looked at in the next cycle, otherwise the first one."""
        count = Count(
            row=Signal(range(self.rows + 1), name="row_count"), cell=counter(self.cells, "cell_count"), more=Signal(name="more"),
            full=Signal(name="full"), whole=Signal(name="whole"), partly=Signal(init=1, name="partly"),
        )  # fmt: skip
        fills = count.cell == self.cells - 1
        with m.If(clear):
            m.d.sync += [count.cell.eq(0), count.row.eq(0), count.full.eq(0)]
        with m.Elif(count.more & ~count.full):
            m.d.sync += [count.cell.eq(Mux(fills, 0, count.cell + 1)), count.row.eq(count.row + fills)]
            m.d.sync += count.full.eq(fills & (count.row == self.rows - 1))
        m.d.sync += count.whole.eq(Mux(on, at + 1 < count.row, count.row != 0))
        m.d.sync += count.partly.eq(Mux(on, at + 1 == count.row, count.row == 0))
        return count

    def _sink(
        self, m: Module, port: Any, entry: Any, at: Value, looks: Value, old: Any, count: Count, worst: Any
    ) -> Signal:  # fmt: skip
        """The way of ``entry`` through the rows: row ``at``, which is ``old``, is compared while ``looks`` (now, at the last one) and
        written in the next cycle; returns that all have been written."""
        row, row_at = Signal.like(old.as_value(), name="row"), Signal.like(at, name="row_at")
        now, beyond = Signal(self.cell, name="now", reset_less=True), Signal(self.cell, name="beyond", reset_less=True)
        behind, fallen = Signal(self.cells), Signal()  # cells that the entry goes before: worse ones, and empty ones; all of the next row
        writing, final, written = Signal(), Signal(), Signal()
        cells = data.View(old.shape(), row)
        m.d.sync += [writing.eq(looks[0]), final.eq(looks.all()), written.eq(final), row.eq(old), row_at.eq(at), now.eq(entry)]
        m.d.sync += behind.eq(Cat(~count.holds_here(k) | (entry.key > old[k].key) for k in range(self.cells)))
        m.d.sync += [fallen.eq(writing & behind[-1]), beyond.eq(cells[-1])]
        new = [
            Mux(behind[k], Mux(behind[k - 1] if k else fallen, cells[k - 1] if k else beyond, now), cells[k]) for k in range(self.cells)
        ]
        m.d.comb += [port.addr.eq(row_at), port.data.eq(Cat(new)), port.en.eq(writing), count.more.eq(final)]
        with m.If(final):
            m.d.sync += worst.eq(new[-1])
        return written

    def _send(
        self, m: Module, port: Any, sending: Signal, sent: Signal, count: Count, old: Any
    ) -> tuple[Value, Signal]:
        """Sends the records in order, one a cycle; returns the row to read next, and when."""
        row, cell, number = counter(self.rows, "send_row"), counter(self.cells, "send_cell"), counter(self.depth, "number")
        step, fetch, go, end = Signal(), Signal(), Signal(), Signal()
        fetched, valid, last, slot = Signal(), Signal(), Signal(), Signal(self.cell["slot"].width)
        m.d.comb += [step.eq(~self.o.valid | self.o.ready), go.eq(sending & step), end.eq(number == self.depth - 1), sent.eq(go & end)]
        with m.Switch(cell):
            for k in range(self.cells):
                with m.Case(k):
                    m.d.comb += slot.eq(old[k].slot)
        m.d.comb += [fetch.eq(go & (cell == self.cells - 1)), port.addr.eq(slot), port.en.eq(go)]
        with m.If(step):
            m.d.sync += [fetched.eq(sending), self.o.valid.eq(fetched), self.o.payload.valid.eq(valid), self.o.payload.last.eq(last)]
            m.d.sync += self.o.payload.entry.as_value().eq(port.data)
        with m.If(go):
            m.d.sync += [valid.eq(count.holds(row, cell)), last.eq(end)]
            m.d.sync += [number.eq(Mux(end, 0, number + 1)), cell.eq(Mux(end | (cell == self.cells - 1), 0, cell + 1))]
            m.d.sync += row.eq(Mux(end, 0, row + (cell == self.cells - 1)))
        return row + 1, fetch
