# amaranth: UnusedElaboratable=no
"""Deformable depthwise convolution unit whose map lies in external memory."""
from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.collect import Collect
from hw.lib.fetch import Fetch
from hw.lib.fifo import Fifo
from hw.lib.memory import MOST_WORDS, ReadPort, WritePort
from hw.lib.offsets import Offsets
from hw.lib.ring import counter
from hw.params import Ints, Ints3, Lanes
from hw.units.base import Unit, signature


class DeformMemoryUnit(Unit):
    """As :class:`hw.units.deform.DeformUnit`, for maps that do not fit on chip: many channels, so that every burst is long.

    Golden model: :meth:`sw.ops.deform.Deform.golden`. The map that arrives is written to a ring of two frames, whole pixels of
    ``groups`` words, a command a row; for every tap and row of neighbours one command reads the one or two pixels that lie in the
    map and have a weight, up to ``ahead`` commands before their data are used. Sums over the taps lie in a memory of C accumulators.
    A row of outputs waits until the memory has confirmed (``write.done``) the rows that it needs, and its own rows are not
    overwritten before its data are there.

    Throughput: a word of the memory a cycle; how many there are depends on the offsets. ``frame_cycles`` is the most, where memory
    gives a word a cycle and its latency is below (``ahead`` - 2)·``groups`` cycles. Latency: that of the memory and 16 cycles more.

    Parameters: ``height``, ``width``, ``channels``; ``weights`` (K, K, C), K odd; ``bias`` (C,); ``frac_bits``; ``low``, ``high``;
    ``base``; ``free``; ``i``, ``offset``, ``o`` as of the DeformUnit; ``data_bits`` of the memory: 8 a lane of ``i`` (16 if it has more
    than 8 bits); ``ahead``: at least 3. Ports ``read`` and ``write``: hw.lib.memory, addresses within ``region_bytes``. Raises ValueError
    if they do not fit together.
    """

    i: stream.Interface
    offset_i: stream.Interface
    o: stream.Interface

    def __init__(
        self, *, height: int, width: int, channels: int, weights: Ints3, bias: Ints, frac_bits: int, low: int, high: int,
        i: Lanes, offset: Lanes, o: Lanes, data_bits: int, base: int | None = None, free: bool = False, ahead: int = 8,
    ) -> None:  # fmt: skip
        size, self.lane_bits = len(weights), -(-i.bits // 8) * 8
        if min(height, width, channels) < 1:
            raise ValueError(f"height, width and channels must be positive, not {(height, width, channels)!r}")
        if any(len(row) != size or any(len(tap) != channels for tap in row) for row in weights) or len(bias) != channels:
            raise ValueError(f"weights must be (K, K, {channels}) and bias must have {channels} entries")
        if i.lanes * self.lane_bits != data_bits:
            raise ValueError(f"i must have {data_bits // self.lane_bits} lanes, a word of {data_bits} bits, not {i.lanes}")
        if ahead < 3:
            raise ValueError(f"ahead must be at least 3, not {ahead!r}")
        self.height, self.width, self.lanes, self.groups, self.data_bits = height, width, i, i.beats(channels), data_bits
        if width * self.groups > MOST_WORDS:
            raise ValueError(f"a row must have at most {MOST_WORDS} words, not {width * self.groups}")
        self.offsets = Offsets(size=size, frac_bits=frac_bits, low=low, high=high, base=base, free=free, offset=offset)
        self.collect = Collect(weights=[tap for row in weights for tap in row], bias=bias, frac_bits=frac_bits, i=i, o=o)
        address_bits = (self.region_bytes - 1).bit_length()
        self.fetch = Fetch(
            height=height, width=width, groups=self.groups, word_bytes=data_bits // 8, offsets=self.offsets, offset=offset,
            address_bits=address_bits, ahead=ahead,
        )  # fmt: skip
        super().__init__({
            "i": In(signature(i)), "offset_i": In(signature(offset)), "o": Out(signature(o)),
            "read": Out(ReadPort(address_bits=address_bits, data_bits=data_bits)),
            "write": Out(WritePort(address_bits=address_bits, data_bits=data_bits)),
        })  # fmt: skip

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the map."""
        return self.width * self.groups * self.data_bits // 8

    @property
    def region_bytes(self) -> int:
        """Bytes of memory that the unit needs: two frames."""
        return 2 * self.height * self.row_bytes

    @property
    def pixels_read(self) -> int:
        """The most that one output pixel takes. Square taps in the middle row (column) lie on whole rows (columns)."""
        size, free = self.offsets.size, self.offsets.free
        if not self.offsets.frac_bits:
            return size**2
        return 4 * size**2 if free else (2 * size - 1) ** 2

    @property
    def frame_cycles(self) -> int:
        """The most: a word of every pixel that may be read in every cycle."""
        return self.height * self.width * self.pixels_read * self.groups

    @property
    def multipliers(self) -> int:
        """Multipliers by weights: one a lane."""
        return self.lanes.lanes

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fetch, m.submodules.collect = fetch, collect = self.fetch, self.collect
        wiring.connect(m, wiring.flipped(self.offset_i), fetch.offset_i)
        wiring.connect(m, fetch.jobs, collect.jobs)
        wiring.connect(m, collect.o, wiring.flipped(self.o))
        wiring.connect(m, fetch.command, wiring.flipped(self.read.command))
        words = self.read.data
        lanes = [words.payload.word_select(k, self.lane_bits)[: self.lanes.bits] for k in range(self.lanes.lanes)]
        m.d.comb += [collect.words.valid.eq(words.valid), collect.words.payload.eq(Cat(lanes)), words.ready.eq(collect.words.ready)]
        m.d.comb += [fetch.left.eq(collect.left), fetch.arrived.eq(self.write.done)]
        self._write(m)
        return m

    def _write(self, m: Module) -> None:
        """A command for every row, when its first beat is there and the ring has a place, then its words."""
        m.submodules.slice = beats = Fifo(self.lanes, 2)
        wiring.connect(m, wiring.flipped(self.i), beats.i)
        command, words, claimed, taken = self.write.command, self.write.data, Signal(), Signal()
        size = self.width * self.groups
        at, line, asked = counter(size, "word_of_row"), counter(self.region_bytes, "line"), Signal()
        m.d.comb += [command.valid.eq(~asked & beats.o.valid & self.fetch.room), claimed.eq(command.valid & command.ready)]
        m.d.comb += [command.payload.address.eq(line), command.payload.words.eq(size), self.fetch.claimed.eq(claimed)]
        m.d.comb += [words.valid.eq(asked & beats.o.valid), beats.o.ready.eq(asked & words.ready)]
        m.d.comb += taken.eq(words.valid & words.ready)
        beat, bits = beats.o.payload.as_value(), self.lanes.bits
        m.d.comb += words.payload.eq(Cat(Cat(beat.word_select(k, bits), Const(0, self.lane_bits - bits)) for k in range(self.lanes.lanes)))
        with m.If(taken):
            m.d.sync += [at.eq(at + 1), asked.eq(at != size - 1)]
        with m.If(claimed):
            m.d.sync += [asked.eq(1), at.eq(0), line.eq(Mux(line == self.region_bytes - self.row_bytes, 0, line + self.row_bytes))]
