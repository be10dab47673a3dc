"""What a sorter, a join, a giver of runs and a read master must do, watched at their ports."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Assert, Assume, Cat, Module, Mux, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hw.lib.axi_read import AxiRead
from hw.lib.bump import Bump
from hw.lib.join import Join
from hw.lib.top_k import TopK
from sim.formal.harness import Harness


def fixed(m: Module, choice: Signal) -> None:
    """A free input that never changes: arbitrary, but the same in all cycles."""
    before, known = Signal.like(choice, name="choice_before"), Signal(name="choice_known")
    m.d.sync += [before.eq(choice), known.eq(1)]
    m.d.comb += Assume(~known | (choice == before))


class Runs(wiring.Component):  # type: ignore[misc]
    """:class:`hw.lib.bump.Bump` under every use that its contract allows, and an arbitrary ``word`` of its memory: no run is given that
    holds it while another does, none goes over the end, room stays until it is taken, and there is some if nothing is out."""

    def __init__(self, unit: Bump) -> None:
        self.unit = unit
        count = range(unit.depth + 1)
        super().__init__({"size": In(count), "take": In(1), "spent": In(1), "free": In(1), "word": In(range(unit.depth))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        m.d.comb += [unit.size.eq(self.size), unit.take.eq(self.take), unit.spent.eq(self.spent), unit.free.eq(self.free)]
        # Each run that is out has a word that is needed, so there are at most as many as words.
        sizes = Array(Signal(range(unit.depth + 1), name=f"size{k}") for k in range(unit.depth + 1))
        out, gone = Signal(range(unit.depth + 2)), Signal(range(unit.depth + 1))
        m.d.comb += Assume(~ResetSignal() & (self.size >= 1) & (self.size <= unit.depth) & (self.word < unit.depth))
        m.d.comb += Assume((~self.take | unit.room) & (~(self.free | self.spent) | (out > 0)))
        m.d.comb += Assume(~self.spent | self.free | (gone + 1 < sizes[0]))
        fixed(m, self.word)
        m.d.sync += [out.eq(out + self.take - self.free), gone.eq(Mux(self.free, 0, gone + self.spent))]
        with m.If(self.free):
            m.d.sync += [sizes[k].eq(sizes[k + 1]) for k in range(unit.depth)]
        with m.If(self.take):
            m.d.sync += sizes[out - self.free].eq(self.size)
        self._follow(m, out, gone)
        m.d.comb += [Assert(out <= unit.depth), Assert((out > 0) | unit.room), Assert(~unit.room | (unit.next + self.size <= unit.depth))]
        waited, before = Signal(), Signal.like(self.size)
        m.d.sync += [waited.eq(unit.room & ~self.take), before.eq(self.size)]
        m.d.comb += Assert(~waited | (self.size != before) | unit.room)
        return m

    def _follow(self, m: Module, out: Signal, gone: Signal) -> None:
        """The run that holds the word."""
        unit, word = self.unit, self.word
        held, at, ahead = Signal(), Signal(range(unit.depth)), Signal(range(unit.depth + 1))
        covers = (unit.next <= word) & (word < unit.next + self.size)
        oldest = held & (ahead == 0)
        with m.If(oldest):
            m.d.comb += Assert(unit.oldest + at == word)
        with m.If(oldest & (self.free | (self.spent & (at == gone)))):
            m.d.sync += held.eq(0)
        with m.If(self.free & ~oldest):
            m.d.sync += ahead.eq(ahead - 1)
        with m.If(self.take & covers):
            m.d.comb += Assert(~held)
            m.d.sync += [held.eq(1), at.eq(word - unit.next), ahead.eq(out - self.free)]


class Together(wiring.Component):  # type: ignore[misc]
    """:class:`hw.lib.join.Join`: beats of all inputs are taken at once, when the output is, and stand side by side."""

    def __init__(self, unit: Join) -> None:
        self.unit = unit
        size = len(unit.i0.payload.as_value()) * unit.inputs
        super().__init__({"valid": In(unit.inputs), "payload": In(size), "ready": In(1)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        ports = [getattr(unit, f"i{k}") for k in range(unit.inputs)]
        m.d.comb += [Cat(p.valid for p in ports).eq(self.valid), Cat(p.payload.as_value() for p in ports).eq(self.payload)]
        m.d.comb += [unit.o.ready.eq(self.ready), Assert(unit.o.valid == self.valid.all())]
        m.d.comb += Assert(~unit.o.valid | (unit.o.payload.as_value() == self.payload))
        m.d.comb += [Assert((p.valid & p.ready) == (unit.o.valid & unit.o.ready)) for p in ports]
        return m


class Through(wiring.Component):  # type: ignore[misc]
    """A unit with several outputs o0, o1..., and one whose inputs i0, i1... they go to: streams ``i`` and ``o``."""

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second
        super().__init__({"i": first.signature.members["i"], "o": second.signature.members["o"]})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.first, m.submodules.second = self.first, self.second
        wiring.connect(m, wiring.flipped(self.i), self.first.i)
        wiring.connect(m, self.second.o, wiring.flipped(self.o))
        for k in range(sum(name.startswith("o") for name in self.first.signature.members)):
            wiring.connect(m, getattr(self.first, f"o{k}"), getattr(self.second, f"i{k}"))
        return m


class Best(Harness):
    """:class:`hw.lib.top_k.TopK`: a frame gives ``depth`` records, as many valid ones as it had entries, and the entry that ``mark``
    chooses stands where as many are before it as are greater, or equal and came earlier."""

    unit: TopK

    def watch(self, m: Module, taken: Signal, given: Signal) -> None:
        depth = self.unit.depth
        coming, record = self.unit.i.payload, self.unit.o.payload
        enters = taken & coming.present
        at_least = [self._count(m, enters & (coming.entry.key >= key), taken & coming.end) for key in range(1 << len(coming.entry.key))]
        now = self._followed(m, enters, taken & coming.end, at_least)
        # Records of a frame may still wait when the next one ends: what they must be stands in a queue of two.
        states = [Signal(len(now), name=f"state{k}") for k in range(2)]
        frames, place = Signal(range(3)), Signal(range(depth + 1))
        ended, done = Signal(), Signal()
        m.d.comb += [ended.eq(taken & coming.end), done.eq(given & (place == depth - 1))]
        m.d.comb += Assert((frames < 2) | ~ended | done)
        m.d.sync += frames.eq(frames + ended - done)
        with m.If(given):
            m.d.sync += place.eq(Mux(done, 0, place + 1))
        with m.If(done):
            m.d.sync += states[0].eq(states[1])
        with m.If(ended):
            m.d.sync += Array(states)[frames - done].eq(now)
        wanted = states[0]
        bits = range(depth + 1)
        total, following = wanted[: len(Signal(bits))], wanted[len(Signal(bits))]
        rank, entry = wanted[len(total) + 1 : 2 * len(total) + 1], wanted[2 * len(total) + 1 :]
        with m.If(self.unit.o.valid):
            m.d.comb += [Assert(frames > 0), Assert(record.last == (place == depth - 1)), Assert(record.valid == (place < total))]
            with m.If(following & (rank == place)):
                m.d.comb += Assert(record.entry.as_value() == entry)

    def _count(self, m: Module, more: Value, clear: Value) -> tuple[Signal, Value]:
        """Up to ``depth``; the count before this cycle's entry, and with it."""
        count = Signal(range(self.unit.depth + 1), name="count")
        after = Mux(more & (count != self.unit.depth), count + 1, count)[: len(count)]
        m.d.sync += count.eq(Mux(clear, 0, after))
        return count, after

    def _followed(self, m: Module, enters: Value, end: Value, at_least: list[tuple[Signal, Value]]) -> Value:
        """The frame's state with this cycle's entry: entries, whether one is followed, how many stand before it, what it is."""
        depth, coming = self.unit.depth, self.unit.i.payload
        following, rank = Signal(), Signal(range(depth + 1))
        entry = Signal(len(coming.entry.as_value()))
        chosen, now, place, what = enters & self.mark & ~following, Signal(), Signal.like(rank), Signal.like(entry)
        greater = enters & following & (coming.entry.key > entry[: len(coming.entry.key)]) & (rank != depth)
        before = Array(count for count, _ in at_least)[coming.entry.key]
        m.d.comb += [now.eq(following | chosen), place.eq(Mux(chosen, before, rank + greater))]
        m.d.comb += what.eq(Mux(chosen, coming.entry.as_value(), entry))
        m.d.sync += [following.eq(now & ~end), rank.eq(place), entry.eq(what)]
        return Cat(at_least[0][1], now, place, what)


class Reads(wiring.Component):  # type: ignore[misc]
    """:class:`hw.lib.axi_read.AxiRead` before any memory that answers what was asked: read data never waits, no more words are under way
    than the queue holds, none is asked for or delivered that no ``start`` wants, and offers stay until they are taken."""

    def __init__(self, unit: AxiRead, rounds: int) -> None:
        self.unit, self.rounds = unit, rounds
        super().__init__({
            "start": In(1), "base": In(unit.address_bits), "arready": In(1), "rvalid": In(1), "rdata": In(unit.data_bits), "ready": In(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        bus = unit.bus
        m.d.comb += [unit.start.eq(self.start), unit.base.eq(self.base), unit.o.ready.eq(self.ready)]
        m.d.comb += [bus.arready.eq(self.arready), bus.rvalid.eq(self.rvalid), bus.rdata.eq(self.rdata)]
        limit = range(self.rounds * max(unit.unpack.words, unit.unpack.beats) + 1)
        started, way = Signal(range(self.rounds + 1)), Signal(range(unit.depth + 1))
        asked, given = Signal(limit), Signal(limit)
        m.d.comb += Assume(~ResetSignal() & (~self.start | (started < self.rounds)) & (~self.rvalid | (way > 0)))
        asks, gives = bus.arvalid & bus.arready, unit.o.valid & unit.o.ready
        words = Mux(asks, bus.arlen + 1, 0)
        m.d.sync += [started.eq(started + self.start), way.eq(way + words - self.rvalid), asked.eq(asked + words), given.eq(given + gives)]
        m.d.comb += [Assert(~self.rvalid | bus.rready), Assert(way + words <= unit.depth)]
        m.d.comb += Assert(~bus.arvalid | (asked + bus.arlen < started * unit.unpack.words))
        m.d.comb += Assert(~unit.o.valid | (given < started * unit.unpack.beats))
        m.d.comb += self._stays(m, "ar", bus.arvalid, bus.arready, Cat(bus.araddr, bus.arlen))
        m.d.comb += self._stays(m, "o", unit.o.valid, unit.o.ready, unit.o.payload.as_value())
        return m

    def _stays(self, m: Module, name: str, valid: Signal, ready: Signal, payload: Value) -> Any:
        waited, before = Signal(name=f"{name}_waited"), Signal(len(payload), name=f"{name}_before")
        m.d.sync += [waited.eq(valid & ~ready), before.eq(payload)]
        return Assert(~waited | (valid & (payload == before)))
