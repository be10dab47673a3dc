"""The best of a stream: a sorter that takes an entry a cycle."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.ring import counter
from hw.lib.store import ram


def entry_layout(value_bits: int, label_bits: int, data_bits: int) -> data.StructLayout:
    """What is sorted: ``value`` (signed) descending, then ``label`` ascending, then as they came; ``data`` goes along."""
    return data.StructLayout({"value": signed(value_bits), "label": unsigned(label_bits), "data": unsigned(data_bits)})


class TopK(wiring.Component):
    """The ``depth`` best entries of every frame, best first, followed by empty ones up to ``depth``.

    ``depth`` cells hold the keys in order; a new entry is compared with all of them at once, those behind it move on by one.
    What goes with a key lies in a memory (two halves: one fills, one is read), cells hold its place.
    Throughput: an entry a cycle, across frames too, but a frame takes at least :attr:`frame_cycles`. Latency:
    the best entry leaves 3 cycles after the frame's end.

    Parameters: ``depth`` K; ``value_bits``, ``label_bits``, ``data_bits``.
    Members: ``i``: stream of ``entry``, ``present`` (0: there is none) and ``end`` (the frame ends behind it);
    ``o``: stream of ``entry`` (0 if not valid), ``valid`` and ``last``.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, depth: int, value_bits: int, label_bits: int, data_bits: int) -> None:
        if depth < 1:
            raise ValueError(f"depth must be a positive integer, not {depth!r}")
        self.depth = depth
        self.entry = entry_layout(value_bits, label_bits, data_bits)
        taken = data.StructLayout({"entry": self.entry, "present": 1, "end": 1})
        given = data.StructLayout({"entry": self.entry, "valid": 1, "last": 1})
        super().__init__({"i": In(stream.Signature(taken)), "o": Out(stream.Signature(given))})

    @property
    def frame_cycles(self) -> int:
        """Least interval of frames: their records leave one a cycle."""
        return self.depth + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        slot_bits = max((self.depth - 1).bit_length(), 1)
        m.submodules.kept = kept = ram(self.entry.size, 2 << slot_bits)
        w_port, r_port = kept.write_port(), kept.read_port()
        ended, reading, half = Signal(), Signal(), Signal()
        snap, insert = Signal(), Signal()
        m.d.comb += [self.i.ready.eq(~(ended & reading)), snap.eq(ended & ~reading)]
        take = self.i.valid & self.i.ready
        with m.If(take & self.i.payload.end):
            m.d.sync += ended.eq(1)
        with m.Elif(snap):
            m.d.sync += ended.eq(0)
        with m.If(snap):
            m.d.sync += half.eq(~half)
        slots, slot, count = self._cells(m, take & self.i.payload.present, insert, snap, slot_bits)
        m.d.comb += [w_port.addr.eq(Cat(slot, half ^ snap)), w_port.data.eq(self.i.payload.entry), w_port.en.eq(insert)]
        self._read(m, r_port, snap, reading, slots, count, half)
        return m

    def _cells(self, m: Module, new: Value, insert: Signal, snap: Value, slot_bits: int) -> tuple[list[Signal], Value, Signal]:
        """The sorted cells; returns their places in memory, the place of the entry that comes in, and how many there are.

        With ``snap`` the cells are those of the frame before: the entry finds them empty.
        """
        entry = self.i.payload.entry
        # One unsigned number, 0 in an empty cell: the value from its least on, then the label backwards.
        raw = entry.value.as_unsigned()
        key = Cat(~entry.label, raw[:-1], ~raw[-1], 1)
        keys = [Signal(len(key), name=f"key_{k}") for k in range(self.depth)]
        slots = [Signal(slot_bits, name=f"slot_{k}", reset_less=True) for k in range(self.depth)]
        count, slot = Signal(range(self.depth + 1)), Signal(slot_bits)
        full = count == self.depth
        behind = Signal(self.depth)  # the cells that the new entry goes before
        m.d.comb += [behind.eq(Cat((key > k) | snap for k in keys)), insert.eq(new & behind[-1])]
        m.d.comb += slot.eq(Mux(snap, 0, Mux(full, slots[-1], count)))
        with m.If(snap):
            m.d.sync += [count.eq(new), keys[0].eq(Mux(new, key, 0)), slots[0].eq(0), *(k.eq(0) for k in keys[1:])]
        with m.Elif(insert):
            with m.If(~full):
                m.d.sync += count.eq(count + 1)
            for k in range(self.depth):
                before = (keys[k - 1], slots[k - 1], behind[k - 1]) if k else (key, slot, 0)
                with m.If(behind[k]):
                    m.d.sync += [keys[k].eq(Mux(before[2], before[0], key)), slots[k].eq(Mux(before[2], before[1], slot))]
        return slots, slot, count

    def _read(
        self, m: Module, port: Any, snap: Value, reading: Signal, slots: list[Signal], count: Signal, half: Signal
    ) -> None:
        """Copies the order at a frame's end and sends the records in it, one a cycle."""
        order = Signal(data.ArrayLayout(len(slots[0]), self.depth), reset_less=True)
        left, at, side = Signal.like(count), counter(self.depth, "at"), Signal()
        step, fetched, valid, last = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [step.eq(~fetched | self.o.ready), port.addr.eq(Cat(order[0], side)), port.en.eq(step)]
        m.d.comb += [self.o.valid.eq(fetched), self.o.payload.valid.eq(valid), self.o.payload.last.eq(last)]
        m.d.comb += self.o.payload.entry.as_value().eq(Mux(valid, port.data, 0))
        end = at == self.depth - 1
        with m.If(step):
            m.d.sync += fetched.eq(reading)
        with m.If(step & reading):
            m.d.sync += [valid.eq(left != 0), last.eq(end), at.eq(Mux(end, 0, at + 1))]
            m.d.sync += [order.as_value().eq(order.as_value() >> len(slots[0])), left.eq(Mux(left == 0, 0, left - 1))]
            with m.If(end):
                m.d.sync += reading.eq(0)
        with m.If(snap):
            m.d.sync += [reading.eq(1), left.eq(count), side.eq(half), *(order[k].eq(slot) for k, slot in enumerate(slots))]
