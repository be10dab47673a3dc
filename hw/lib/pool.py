# amaranth: UnusedElaboratable=no
"""Memories that many streams share: each stream has a region of whole tiles, filled by one side and emptied by the other."""
from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.store import banks_of, place_of, ram
from hw.params import Lanes
from hw.units.base import signature


def choose(m: Module, name: str, index: Value, values: Sequence[int]) -> Value:
    """``values[index]`` of constants; of signals: :func:`select`."""
    bits = max(max(values).bit_length(), 1)
    if len(set(values)) == 1:
        return Const(values[0], bits)
    chosen = Signal(bits, name=name)
    with m.Switch(index):
        for k, value in enumerate(values):
            with m.Case(k):
                m.d.comb += chosen.eq(value)
    return chosen


def select(index: Value, values: Sequence[Value]) -> Value:
    """``values[index]`` by a tree of multiplexers; a chain of conditions takes a LUT a bit for each value."""
    for bit in index:
        values = [Mux(bit, values[k + 1], values[k]) if k + 1 < len(values) else values[k] for k in range(0, len(values), 2)]
    return values[0]


def successor(value: Value, size: int) -> Value:
    """The next of ``size`` values, round and round."""
    return Const(0) if size == 1 else Mux(value == size - 1, 0, value + 1)


@dataclass(frozen=True, kw_only=True)
class Region:
    """A stream's place in a pool: ``slots`` tiles of ``tile`` words, from word ``base`` on.

    With ``pad``, a word that nobody uses follows every ``beats`` words (a pixel's), so that pixels begin at even words; ``tile`` is even.
    """

    lanes: Lanes
    tile: int
    slots: int
    base: int = 0
    beats: int = 0
    pad: bool = False

    @property
    def words(self) -> int:
        return self.tile * self.slots

    def address(self, place: Value) -> Value:
        """The word at ``place``, 0..words-1: no adder where the region is aligned."""
        bits = max((self.words - 1).bit_length(), 1)
        whole = self.base >> bits
        return Cat(place, Const(whole, max(whole.bit_length(), 1))) if whole << bits == self.base else self.base + place


def placed(regions: Sequence[Region]) -> list[Region]:
    """The regions one behind the other."""
    result: list[Region] = []
    for region in regions:
        result.append(replace(region, base=sum(r.words for r in result)))
    return result


def ends_pixel(m: Module, name: str, region: Region, step: Value) -> Value:
    """Whether this word is the last one of a pixel that a pad follows; ``step``: a word goes by."""
    if not region.pad:
        return Const(0)
    beat = Signal(range(region.beats), name=name)
    last = beat == region.beats - 1
    with m.If(step):
        m.d.sync += beat.eq(Mux(last, 0, beat + 1))
    return last


def ends_tile(place: Value, skip: Value, region: Region) -> Value:
    """Whether the word at ``place`` is the last of a tile, or the last before its pad."""
    ends = [s * region.tile - 1 for s in range(1, region.slots + 1)]
    return Cat(place == e for e in ends).any() | (skip & Cat(place == e - 1 for e in ends).any() if region.pad else Const(0))


def next_place(place: Value, skip: Value, region: Region) -> Value:
    """The word behind ``place``, round and round."""
    last = region.words - 1
    over = (place == last) | (skip & (place == last - 1)) if region.pad else place == last
    return Mux(over, 0, place + 1 + skip)


def as_bytes(payload: Any, lanes: Lanes) -> Value:
    """A beat as unsigned bytes; signed values have 128 added, so that one unsigned multiplier serves all streams."""
    return Cat((payload[k] + 128 * lanes.signed)[:8] if lanes.signed else Cat(payload[k], Const(0, 8))[:8] for k in range(lanes.lanes))


class Pool(wiring.Component):
    """What both pools share: the counts of each stream's tiles."""

    regions: list[Region]
    depth: int

    def counters(self, name: str) -> list[Signal]:
        """A register a stream for 0..slots."""
        return [Signal(range(r.slots + 1), name=f"{name}{k}") for k, r in enumerate(self.regions)]

    def slots(self, m: Module, name: str, advances: Sequence[Value]) -> list[Value]:
        """First word of the slot that each stream's ``advances`` moves on from, round and round."""
        firsts: list[Value] = []
        for k, (region, advance) in enumerate(zip(self.regions, advances, strict=True)):
            slot = Signal(range(region.slots), name=f"{name}{k}")
            with m.If(advance):
                m.d.sync += slot.eq(successor(slot, region.slots))
            words = [region.base + n * region.tile for n in range(region.slots)]
            firsts.append(select(slot, [Const(word, range(self.depth)) for word in words]))
        return firsts


class InPool(Pool):
    """Streams into one memory, a word a cycle in all, tile by tile.

    The streams take turns: one keeps its turn while it offers beats that have room, then the next is looked at, one a cycle. A whole
    tile is offered by ``full``; ``claim`` takes the oldest, ``release`` gives the oldest claimed one's words back. Words are unsigned
    bytes (:func:`as_bytes`).

    Members: ``i0``, ``i1``...: streams; ``addr``, ``en``, ``data``: read port, data a cycle after; ``full``: a bit a stream; ``claim``,
    ``release``: strobes for the streams ``claimed``, ``released``; ``first``: first word of the oldest tile of stream ``released``.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        self.regions = placed(regions)
        self.depth, self.width = sum(r.words for r in regions), 8 * regions[0].lanes.lanes
        n = len(regions)
        super().__init__({
            **{f"i{k}": In(signature(r.lanes)) for k, r in enumerate(regions)},
            "addr": In(range(self.depth)), "en": In(1), "data": Out(self.width), "full": Out(n),
            "claim": In(1), "claimed": In(range(n)), "release": In(1), "released": In(range(n)), "first": Out(range(self.depth)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        n = len(self.regions)
        m.submodules.words = memory = ram(self.width, self.depth)
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [read.addr.eq(self.addr), read.en.eq(self.en), self.data.eq(read.data)]
        turn, word, storing = Signal(range(n)), Signal(self.width, reset_less=True), Signal()
        at = Signal(range(self.depth), reset_less=True)
        m.d.comb += [write.data.eq(word), write.en.eq(storing), write.addr.eq(at)]
        used, waiting = self.counters("used"), self.counters("waiting")
        stores, releases, words, places = [], [], [], []
        for k, region in enumerate(self.regions):
            port = getattr(self, f"i{k}")
            store, whole, late = (Signal(name=f"{name}{k}") for name in ("store", "whole", "late"))
            place = Signal(range(region.words), name=f"place{k}")
            claimed, released = self.claim & (self.claimed == k), self.release & (self.released == k)
            room = used[k] != region.slots
            m.d.comb += [port.ready.eq((turn == k) & room), store.eq(port.ready & port.valid)]
            skip = ends_pixel(m, f"beat{k}", region, store)
            m.d.comb += whole.eq(store & ends_tile(place, skip, region))
            with m.If(store):
                m.d.sync += place.eq(next_place(place, skip, region))
            # A tile is offered when its last word is in the memory.
            m.d.sync += [late.eq(whole), used[k].eq(used[k] + whole - released), waiting[k].eq(waiting[k] + late - claimed)]
            m.d.comb += self.full[k].eq(waiting[k] != 0)
            stores.append(store)
            releases.append(released)
            words.append(as_bytes(port.payload, region.lanes))
            places.append(region.address(place))
        m.d.sync += [storing.eq(Cat(stores).any()), word.eq(select(turn, words)), at.eq(select(turn, places))]
        with m.If(~Cat(stores).any()):
            m.d.sync += turn.eq(successor(turn, n))
        m.d.comb += self.first.eq(select(self.released, self.slots(m, "slot", releases)))
        return m


class OutPool(Pool):
    """One memory to streams: tiles are written in any order of their bytes and leave word by word. With ``moved``, signed elements had 128
    added (:func:`as_bytes`).

    ``reserve`` promises a slot of a stream that has ``room``; ``first`` is the first word of the slot that stream ``filling`` fills next,
    ``begin`` takes it; with ``finish`` the tile is whole and leaves. Each stream has a register; the streams take turns to fill it, one a
    cycle.

    Members: ``o0``, ``o1``...: streams; ``addr``, ``mask`` (a bit a byte), ``data``, written each cycle; ``room``: a bit a stream; strobes
    ``reserve``, ``begin``, ``finish`` for the streams ``reserved``, ``filling``, ``finished``.
    """

    #: What whoever fills tiles drives.
    FILL = ("addr", "mask", "data", "finish", "finished", "begin", "filling")

    def __init__(self, regions: Sequence[Region], moved: Container[int] = ()) -> None:
        self.regions, self.moved = placed(regions), moved
        self.depth, self.bytes = sum(r.words for r in regions), regions[0].lanes.lanes
        n = len(regions)
        super().__init__({
            **{f"o{k}": Out(signature(r.lanes)) for k, r in enumerate(regions)},
            "addr": In(range(self.depth)), "mask": In(self.bytes), "data": In(8 * self.bytes), "room": Out(n),
            "reserve": In(1), "reserved": In(range(n)), "finish": In(1), "finished": In(range(n)),
            "begin": In(1), "filling": In(range(n)), "first": Out(range(self.depth)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        n = len(self.regions)
        turn, kept, full = Signal(range(n)), self.counters("kept"), self.counters("full")
        m.d.sync += turn.eq(successor(turn, n))
        places, begins, place_read = [], [], Signal(range(self.depth))
        word = self.word(m, place_read)
        for k, region in enumerate(self.regions):
            port = getattr(self, f"o{k}")
            reserved, finished = self.reserve & (self.reserved == k), self.finish & (self.finished == k)
            place = Signal(range(region.words), name=f"place{k}")
            fetch, read_now, coming, empty = (Signal(name=f"{name}{k}") for name in ("fetch", "read_now", "coming", "empty"))
            m.d.comb += fetch.eq((turn == k) & (full[k] != 0) & ~(read_now | coming | port.valid))
            skip = ends_pixel(m, f"at{k}", region, fetch)
            m.d.comb += empty.eq(fetch & ends_tile(place, skip, region))
            m.d.sync += [read_now.eq(fetch), coming.eq(read_now)]
            m.d.sync += [kept[k].eq(kept[k] + reserved - empty), full[k].eq(full[k] + finished - empty)]
            with m.If(fetch):
                m.d.sync += place.eq(next_place(place, skip, region))
            beat = Signal(region.lanes.width, name=f"beat{k}", reset_less=True)
            with m.If(coming):
                flip = 128 * (region.lanes.signed and k in self.moved)
                m.d.sync += port.valid.eq(1)
                m.d.sync += beat.eq(Cat((word.word_select(j, 8) ^ flip)[: region.lanes.bits] for j in range(self.bytes)))
            with m.Elif(port.ready):
                m.d.sync += port.valid.eq(0)
            m.d.comb += [port.payload.as_value().eq(beat), self.room[k].eq(kept[k] != region.slots)]
            places.append(region.address(place))
            begins.append(self.begin & (self.filling == k))
        m.d.comb += place_read.eq(select(turn, places))
        m.d.comb += self.first.eq(select(self.filling, self.slots(m, "tail", begins)))
        return m

    def word(self, m: Module, place: Value) -> Value:
        """The word at ``place``, two cycles later. Block RAM is slow: nothing but a register behind it, then one of the banks is chosen."""
        depths, found = banks_of(8 * self.bytes, self.depth), []
        bits = (depths[0] - 1).bit_length()
        for k, depth in enumerate(depths):
            m.submodules[f"words{k}"] = memory = ram(data.ArrayLayout(8, self.bytes), depth, place_of(8 * self.bytes, self.depth))
            write, read = memory.write_port(granularity=1), memory.read_port()
            mine = self.addr[bits:] == k if len(depths) > 1 else Const(1)
            m.d.comb += [write.addr.eq(self.addr), write.en.eq(Mux(mine, self.mask, 0)), write.data.as_value().eq(self.data)]
            m.d.comb += [read.addr.eq(place), read.en.eq(1)]
            found.append(Signal(8 * self.bytes, name=f"word{k}", reset_less=True))
            m.d.sync += found[-1].eq(read.data.as_value())
        if len(found) == 1:
            return found[0]
        asked, bank = (Signal(range(len(depths)), name=name) for name in ("asked", "bank"))
        m.d.sync += [asked.eq(place[bits:]), bank.eq(asked)]
        return select(bank, found)
