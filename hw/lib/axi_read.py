"""AXI4 read master: a region of memory as a stream, ahead of its reader."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.params import Lanes
from hw.units.base import signature

#: No burst may cross such a boundary (ARM IHI 0022, A3.4.1).
PAGE = 4096


def read_signature(address_bits: int, data_bits: int) -> wiring.Signature:
    """The read channels of AXI4 as the master sees them, one identifier."""
    ask = {"arid": Out(1), "araddr": Out(address_bits), "arlen": Out(8), "arsize": Out(3), "arburst": Out(2), "arlock": Out(1)}
    ask |= {"arcache": Out(4), "arprot": Out(3), "arvalid": Out(1), "arready": In(1)}
    answer = {"rid": In(1), "rdata": In(data_bits), "rresp": In(2), "rlast": In(1), "rvalid": In(1), "rready": Out(1)}
    return wiring.Signature({**ask, **answer})


class Unpack(wiring.Component):
    """Words of ``data_bits`` to beats: ⌊data_bits/width⌋ whole beats lie in a word, or a beat takes ⌈width/data_bits⌉ words.

    Beats lie from the lowest bits up and a round of ``beats`` begins with a new word. Throughput a beat a cycle, or a word a cycle.

    Members: ``i``: stream of words, a lane a bit; ``o``: stream of beats.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, data_bits: int, beats: int, o: Lanes) -> None:
        self.data_bits, self.beats, self.width = data_bits, beats, o.width
        self.in_word, self.per_beat = max(data_bits // o.width, 1), -(-o.width // data_bits)
        super().__init__({"i": In(signature(Lanes(lanes=data_bits, bits=1, signed=False))), "o": Out(signature(o))})

    @property
    def words(self) -> int:
        """Words of a round."""
        return -(-self.beats // self.in_word) * self.per_beat

    def image(self, beats: Sequence[int]) -> bytes:
        """What must lie in memory for a round of these beats, each the whole payload as one unsigned integer."""
        if len(beats) != self.beats or any(not 0 <= b < 1 << self.width for b in beats):
            raise ValueError(f"beats must be {self.beats} integers of {self.width} bits, not {len(beats)}")
        size = self.per_beat * self.data_bits // 8
        groups = [beats[k : k + self.in_word] for k in range(0, self.beats, self.in_word)]
        return b"".join(sum(b << k * self.width for k, b in enumerate(group)).to_bytes(size, "little") for group in groups)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        i, o = self.i, self.o
        word = i.payload.as_value()
        if self.per_beat > 1:
            count, full, taken = Signal(range(self.per_beat)), Signal(), Signal(self.per_beat * self.data_bits)
            m.d.comb += [o.valid.eq(full), o.payload.as_value().eq(taken[: self.width]), i.ready.eq(~full | o.ready)]
            with m.If(i.ready):
                m.d.sync += full.eq(i.valid & (count == self.per_beat - 1))
            with m.If(i.ready & i.valid):
                m.d.sync += count.eq(Mux(count == self.per_beat - 1, 0, count + 1))
                m.d.sync += taken.eq(Cat(taken[self.data_bits :], word))
            return m
        place, count = Signal(range(self.in_word)), Signal(range(self.beats))
        last = count == self.beats - 1
        m.d.comb += [o.valid.eq(i.valid), o.payload.as_value().eq(word[: self.in_word * self.width].word_select(place, self.width))]
        m.d.comb += i.ready.eq(o.ready & (last | (place == self.in_word - 1)))
        with m.If(o.valid & o.ready):
            m.d.sync += [count.eq(Mux(last, 0, count + 1)), place.eq(Mux(i.ready, 0, place + 1))]
        return m


class AxiRead(wiring.Component):
    """Reads the ``beats`` beats at ``base`` once for every ``start``, ahead of the stream's reader.

    Bursts of at most ``burst`` words, none across a 4 kB boundary. A burst is asked for when the queue has room for all of it, so
    read data never waits and up to ``outstanding`` full bursts are under way: ``outstanding · burst`` words cover the memory's
    latency. A burst is issued every two cycles at most. Data with an error response are delivered like any other and counted.

    Parameters
    ----------
    beats: of a round, laid out as :meth:`Unpack.image` says; o: what each carries
    address_bits; data_bits: of the bus, a power of two from 32 to 1024; burst: words, 1..256; outstanding: full bursts, at least 1

    Members
    -------
    bus: AXI4 read channels; o: stream of beats
    base: byte address, a multiple of the word (lower bits are ignored); taken over when a round's reading begins
    start: one more round; up to 255 wait; error: an error response arrived in this cycle; idle: nothing is to be read or under way
    """

    o: stream.Interface
    base: Signal
    start: Signal
    error: Signal
    idle: Signal

    def __init__(self, *, beats: int, o: Lanes, address_bits: int = 40, data_bits: int = 64, burst: int = 16, outstanding: int = 4) -> None:
        if data_bits not in (32, 64, 128, 256, 512, 1024):
            raise ValueError(f"data_bits must be a power of two from 32 to 1024, not {data_bits!r}")
        if not 1 <= burst <= 256 or burst * data_bits // 8 > PAGE:
            raise ValueError(f"burst must be in 1..{min(256, PAGE * 8 // data_bits)}, not {burst!r}")
        if outstanding < 1 or beats < 1:
            raise ValueError(f"outstanding and beats must be positive integers, not {outstanding!r} and {beats!r}")
        if not 32 <= address_bits <= 64:
            raise ValueError(f"address_bits must be in 32..64, not {address_bits!r}")
        self.address_bits, self.data_bits, self.burst, self.depth = address_bits, data_bits, burst, burst * outstanding
        self.unpack = Unpack(data_bits=data_bits, beats=beats, o=o)
        super().__init__({
            "bus": Out(read_signature(address_bits, data_bits)), "o": Out(signature(o)),
            "base": In(address_bits), "start": In(1), "error": Out(1), "idle": Out(1),
        })  # fmt: skip

    def image(self, beats: Sequence[int]) -> bytes:
        """What must lie in memory at ``base``."""
        return self.unpack.image(beats)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unpack, bus = self.unpack, self.bus
        m.submodules.queue = queue = Fifo(Lanes(lanes=self.data_bits, bits=1, signed=False), self.depth)
        wiring.connect(m, queue.o, self.unpack.i)
        wiring.connect(m, self.unpack.o, wiring.flipped(self.o))
        m.d.comb += [queue.i.payload.as_value().eq(bus.rdata), queue.i.valid.eq(bus.rvalid), bus.rready.eq(queue.i.ready)]
        m.d.comb += self.error.eq(bus.rvalid & bus.rready & bus.rresp[1])
        size = (self.data_bits // 8).bit_length() - 1
        m.d.comb += [bus.arsize.eq(size), bus.arburst.eq(1), bus.arcache.eq(0b0011)]  # incrementing, modifiable, bufferable
        length, asked = self.ask(m, size)
        # Words of the queue that hold nothing and are promised to no burst.
        room, freed = Signal(range(self.depth + 1), init=self.depth), queue.o.valid & queue.o.ready
        m.d.sync += room.eq(room - Mux(asked, length, 0) + freed)
        m.d.comb += self.fits.eq(room >= length)
        with m.If(room != self.depth):
            m.d.comb += self.idle.eq(0)
        return m

    def ask(self, m: Module, size: int) -> tuple[Signal, Signal]:
        """The address channel: (words of the next burst, whether it is asked for in this cycle)."""
        bus, words = self.bus, self.unpack.words
        self.fits = Signal()
        left, place, waiting = Signal(range(words + 1)), Signal(self.address_bits - size), Signal(8)
        length, planned, asked, begin = Signal(range(self.burst + 1)), Signal(), Signal(), Signal()
        m.d.comb += [begin.eq((left == 0) & (waiting != 0)), asked.eq(planned & self.fits & (~bus.arvalid | bus.arready))]
        m.d.comb += self.idle.eq((left == 0) & (waiting == 0) & ~bus.arvalid)
        m.d.sync += waiting.eq(waiting + self.start - begin)
        with m.If(begin):
            m.d.sync += [left.eq(words), place.eq(self.base[size:])]
        page = (PAGE >> size) - place[: 12 - size]  # words up to the boundary
        most = Mux(left < self.burst, left, self.burst)
        with m.If(bus.arready):
            m.d.sync += bus.arvalid.eq(0)
        with m.If(~planned & (left != 0)):
            m.d.sync += [length.eq(Mux(page < most, page, most)), planned.eq(1)]
        with m.If(asked):
            m.d.sync += [bus.arvalid.eq(1), bus.araddr.eq(Cat(Const(0, size), place)), bus.arlen.eq(length - 1), planned.eq(0)]
            m.d.sync += [left.eq(left - length), place.eq(place + length)]
        return length, asked
