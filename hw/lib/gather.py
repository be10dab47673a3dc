"""Gathering at deformed positions: whole words, one tap a cycle, whatever the offsets are."""
from __future__ import annotations

from amaranth import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.arith import add_carry
from hw.lib.bilinear import interpolate, interpolate_stages, later
from hw.lib.fifo import Fifo
from hw.lib.ring import counter
from hw.params import DeformRing, Lanes
from hw.units.base import signature


class GatherStage(wiring.Component):
    """For every output pixel, channel group and tap (in this order) the map at p + s·(i, j), times 2^(2F).

    The dilation s = (code + base)·2^-F of a pixel comes from ``offset_i``; a code beyond low..high saturates. With ``free``
    a beat of ``offset_i`` is a tap's offset (y, x), code·2^-F, and the tap lies at p + (i, j) + offset. Rows lie in a ring of
    ``rows`` rows shared by consecutive frames, in four memories by the parity of the running row count and of the column
    (one memory if F = 0), so that all four neighbours of a position are read at once and nothing depends on the offsets.
    With ``upsample`` f the map is the one that arrives with every pixel f×f times; the ring holds it as it arrives and a neighbour
    (y, x) is read at (y div f, x div f): two neighbours are then one row (column) there, or two that follow each other.
    Interpolation is exact: (a·2^F + f·(b - a)) along x, then the same along y; a neighbour outside the map is 0.

    Throughput: one word a cycle for every pattern of offsets. Latency: eight cycles (13 if F > 0, 15 if F = 4) from the
    last beat of row p + R (that it lies in); ready is registered. A row of outputs starts when row p + R has arrived, clipped to
    the frame, and frees row p - R when it ends. Multipliers: none; interpolation takes three adder trees of F + 1 terms a lane.

    Parameters: ``height``, ``width``, ``channels`` of the map that arrives; ``upsample``: a power of two; ``size`` K, odd, >= 3;
    ``frac_bits`` F in 0..4; ``low``, ``high`` of the code; ``base``: 2^F (the default) where the code is s - 1, 0 where it is s; ``free``;
    ``i``; ``offset``: one lane, two with ``free``.
    Members: ``i``, ``offset_i`` and ``o``: lanes of ``i``, 2F bits wider. Raises ValueError for arguments out of range.
    """

    i: stream.Interface
    offset_i: stream.Interface
    o: stream.Interface

    def __init__(
        self, *, height: int, width: int, channels: int, size: int, frac_bits: int, low: int, high: int, i: Lanes, offset: Lanes,
        base: int | None = None, free: bool = False, upsample: int = 1,
    ) -> None:  # fmt: skip
        if min(height, width, channels) < 1:
            raise ValueError(f"height, width and channels must be positive, not {(height, width, channels)!r}")
        if size < 3 or size % 2 == 0:
            raise ValueError(f"kernel size must be odd and at least 3, not {size!r}")
        if not 0 <= frac_bits <= 4:
            raise ValueError(f"frac_bits must be in 0..4, not {frac_bits!r}")
        if low > high:
            raise ValueError(f"low must be at most high, not {low!r} > {high!r}")
        if offset.lanes != 1 + free:
            raise ValueError(f"offset must have {'two lanes' if free else 'one lane'}, not {offset.lanes!r}")
        if upsample < 1 or upsample & upsample - 1:
            raise ValueError(f"upsample must be a power of two, not {upsample!r}")
        self.free, self.upsample, self.halvings = free, upsample, upsample.bit_length() - 1
        self.height, self.width, self.size, self.frac_bits, self.low, self.high = height, width, size, frac_bits, low, high
        self.out_height, self.out_width = height * upsample, width * upsample
        self.base = 1 << frac_bits if base is None else base
        self.lanes, self.groups = i, i.beats(channels)
        self.out = Lanes(lanes=i.lanes, bits=i.bits + 2 * frac_bits, signed=i.signed)
        super().__init__({"i": In(signature(i)), "offset_i": In(signature(offset)), "o": Out(signature(self.out))})

    @property
    def reach(self) -> int:
        """Rows around a pixel that its taps touch: R = ceil(max|s|·(K-1)/2), or (K-1)/2 + ceil(max|offset|) if they are free."""
        return -(-self.furthest // (1 << self.frac_bits))

    @property
    def furthest(self) -> int:
        """Greatest distance of a tap from its pixel along an axis, in 2^-F pixels."""
        half = self.size // 2
        if self.free:
            return (half << self.frac_bits) + max(abs(self.low), abs(self.high))
        return max(abs(self.low + self.base), abs(self.high + self.base)) * half

    @property
    def ring(self) -> DeformRing:
        """Which rows of the map are kept."""
        return DeformRing(height=self.height, reach=self.reach, repeat=self.upsample)

    @property
    def rows(self) -> int:
        """Rows of the ring."""
        return self.ring.rows(self.banks)

    @property
    def banks(self) -> int:
        """Memories by parity in each direction."""
        return 2 if self.frac_bits else 1

    @property
    def bank_line(self) -> int:
        """Words that one row takes in one bank."""
        return -(-self.width // self.banks) * self.groups

    @property
    def frame_cycles(self) -> int:
        """One cycle a tap, group and pixel of the output; never less than the input beats."""
        return self.out_height * self.out_width * self.size**2 * self.groups

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._memories = {
            (row, col): memory.Memory(shape=self.lanes.width, depth=self.rows // self.banks * self.bank_line, init=[])
            for row in range(self.banks) for col in range(self.banks)
        }  # fmt: skip
        self._ports = {place: bank.read_port() for place, bank in self._memories.items()}
        for (row, col), bank in self._memories.items():
            m.submodules[f"rows_{row}{col}"] = bank
        m.submodules.slice = out = Fifo(self.out, 2)  # no path from the reader's ready to the counters
        wiring.connect(m, out.o, wiring.flipped(self.o))
        step = Signal()
        m.d.comb += step.eq(~out.i.valid | out.i.ready)
        y, ready, row_done, frame_done = counter(self.out_height, "y"), Signal(), Signal(), Signal()
        self._write(m, self._account(m, step, y, ready, row_done, frame_done))
        tap = self._issue(m, step, ready, y, row_done, frame_done)
        inside, odd, apart = self._look_up(m, step, tap)
        # Block RAM is slow: nothing but a register behind it.
        words = {place: later(m, step, port.data, 1) for place, port in self._ports.items()}
        found = self._neighbours(words, *(later(m, step, v, 3) for v in (odd, apart, inside)))
        if self.frac_bits:
            fractions = (later(m, step, tap[n][: self.frac_bits], 5) for n in ("ty", "tx"))
            value = interpolate(m, step, self.lanes, found, *fractions)
            stages = 5 + interpolate_stages(self.frac_bits)
        else:
            value, stages = found[0], 5
        m.d.comb += [out.i.payload.as_value().eq(value), out.i.valid.eq(later(m, step, tap["valid"], stages))]
        return m

    def _account(self, m: Module, step: Value, y: Value, ready: Signal, row_done: Value, frame_done: Value) -> Signal:
        """Counts whole rows: ``ready`` says that output row ``y`` may be read. Returns the strobe of a row that has arrived."""
        arrived, ring, reach = Signal(), self.ring, self.reach
        bits = (self.rows + self.height).bit_length() + 1
        held = Signal(range(self.rows + 1))  # rows in the ring that may not be overwritten
        # Rows that have arrived, counted from the frame being read, less those that row y needs: its sign decides.
        spare = Signal(signed(bits), init=-1 - ring.last_read(0))
        m.d.comb += [ready.eq(~spare[-1]), self.i.ready.eq(held != self.rows)]
        # The banks are read four steps after a tap is issued: only then may its rows be overwritten. Of the rows that arrive,
        # one becomes free, or is needed, where the row behind y's first, or its last, lies in another one than that.
        leaves, enters = ((y + 1 + by)[: self.halvings] == 0 for by in (-reach, reach))
        done = later(m, step, Cat(row_done & (y >= reach) & leaves, frame_done), 4)
        freed = Mux(done[1], self.height - ring.first_read(ring.last), done[0])
        m.d.sync += held.eq(held + arrived - Mux(step, freed, 0))
        needs = Mux(frame_done, -1 - ring.last_read(0), Mux(row_done & (y < ring.last - reach) & enters, -1, 0))
        m.d.sync += spare.eq(add_carry(spare, needs, arrived))
        return arrived

    def _write(self, m: Module, arrived: Signal) -> None:
        """Spreads the input over the banks and tells when a row is complete."""
        banks, groups = self.banks, self.groups
        group, col, row = counter(groups, "w_group"), counter(self.width, "w_col"), counter(self.rows, "w_row")
        addr, line = counter(self.rows // banks * self.bank_line, "w_addr"), counter(self.rows // banks * self.bank_line, "w_line")
        take, pixel_end, next_line = Signal(), Signal(), Signal(len(line) + 1)
        m.d.comb += [take.eq(self.i.valid & self.i.ready), pixel_end.eq(take & (group == groups - 1))]
        m.d.comb += arrived.eq(pixel_end & (col == self.width - 1))
        turn = row == self.rows - 1
        m.d.comb += next_line.eq(Mux(turn, 0, Mux(row[0] | (banks == 1), line + self.bank_line, line)))
        for (bank_row, bank_col), bank in self._memories.items():
            port = bank.write_port()
            here = (row[0] == bank_row) & (col[0] == bank_col) if banks == 2 else Const(1)
            m.d.comb += [port.addr.eq(addr), port.data.eq(self.i.payload.as_value()), port.en.eq(take & here)]
        with m.If(take):
            m.d.sync += [group.eq(group + 1), addr.eq(addr + 1)]
        with m.If(pixel_end):
            m.d.sync += [group.eq(0), col.eq(col + 1)]
            if banks == 2:  # an odd column lies beside the even one before it
                with m.If(~col[0]):
                    m.d.sync += addr.eq(addr - (groups - 1))
        with m.If(arrived):
            m.d.sync += [col.eq(0), row.eq(Mux(turn, 0, row + 1)), line.eq(next_line), addr.eq(next_line)]

    def _issue(self, m: Module, step: Value, ready: Value, y: Signal, row_done: Signal, frame_done: Signal) -> dict[str, Signal]:
        """Counters of the loops; registers the distances (ty, tx) in 2^-F pixels of the current tap and where its pixel lies."""
        known, slots = Signal(), self.rows * self.upsample  # slots: of the ring, if it held rows of outputs
        x, group, i, j, slot = (
            counter(n, name)
            for n, name in ((self.out_width, "x"), (self.groups, "group"), (self.size, "i"), (self.size, "j"), (slots, "slot"))
        )
        go, pixel_done = Signal(), Signal()
        m.d.comb += go.eq(step & known & ready)
        ends: list[Value] = [go]
        for index, size in ((j, self.size), (i, self.size), (group, self.groups), (x, self.out_width), (y, self.out_height)):
            end = Signal(name=f"{index.name}_end")
            m.d.comb += end.eq(ends[-1] & (index == size - 1))
            with m.If(ends[-1]):
                m.d.sync += index.eq(Mux(end, 0, index + 1))
            ends.append(end)
        m.d.comb += [pixel_done.eq(ends[3]), row_done.eq(ends[4]), frame_done.eq(ends[5])]
        with m.If(row_done):
            m.d.sync += slot.eq(Mux(slot == slots - 1, 0, slot + 1))

        down, right = self._free(m, go, known) if self.free else self._square(m, pixel_done, known)
        bits = self.furthest.bit_length() + 1
        tap = {
            "valid": Signal(name="tap_valid"),
            "ty": Signal(signed(bits), name="ty"),
            "tx": Signal(signed(bits), name="tx"),
            **{name: Signal.like(source, name=f"{name}_1") for name, source in (("y", y), ("x", x), ("slot", slot), ("group", group))},
        }
        with m.If(step):
            m.d.sync += [tap["valid"].eq(go), tap["ty"].eq(Array(down)[i]), tap["tx"].eq(Array(right)[j])]
            m.d.sync += [tap["y"].eq(y), tap["x"].eq(x), tap["slot"].eq(slot), tap["group"].eq(group)]
        return tap

    def _saturated(self, code: Value) -> Value:
        return Mux(code < self.low, self.low, Mux(code > self.high, self.high, code))

    def _square(self, m: Module, pixel_done: Value, known: Signal) -> tuple[list[Value], list[Value]]:
        """Distances of all rows and of all columns of taps, from the dilation of the pixel."""
        half, dilation = self.size // 2, Signal(signed(self.furthest.bit_length() + 1), name="dilation")
        m.d.comb += self.offset_i.ready.eq(~known | pixel_done)
        with m.If(self.offset_i.ready):
            m.d.sync += [known.eq(self.offset_i.valid), dilation.eq(self._saturated(self.offset_i.payload[0]) + self.base)]
        distances = [dilation * k for k in range(-half, half + 1)]
        return distances, distances

    def _free(self, m: Module, go: Value, known: Signal) -> tuple[list[Value], list[Value]]:
        """Distances of the next tap, were it in each row and each column of taps, from its own offset.

        The offsets of a pixel come with its first channel group and are kept for the others.
        """
        half, taps = self.size // 2, self.size**2
        source = self.offset_i.payload.as_value()
        fetch, arrives = Signal(), Signal()  # an offset is wanted, is there
        m.d.comb += fetch.eq(~known | go)
        if self.groups == 1:
            m.d.comb += [self.offset_i.ready.eq(fetch), arrives.eq(self.offset_i.valid)]
        else:
            at, turn = counter(taps, "offset_tap"), counter(self.groups, "offset_group")
            m.submodules.offsets = kept = memory.Memory(shape=len(source), depth=taps, init=[])
            w_port, r_port, new = kept.write_port(), kept.read_port(domain="comb"), turn == 0
            m.d.comb += [self.offset_i.ready.eq(fetch & new), arrives.eq(self.offset_i.valid | ~new)]
            m.d.comb += [w_port.addr.eq(at), r_port.addr.eq(at), w_port.data.eq(source), w_port.en.eq(fetch & new & self.offset_i.valid)]
            with m.If(fetch & arrives):
                m.d.sync += at.eq(Mux(at == taps - 1, 0, at + 1))
                with m.If(at == taps - 1):
                    m.d.sync += turn.eq(Mux(turn == self.groups - 1, 0, turn + 1))
            source = Mux(new, source, r_port.data)
        codes = data.View(self.offset_i.payload.shape(), source)
        held = [Signal(signed(max(abs(self.low), abs(self.high)).bit_length() + 1), name=f"offset_{n}") for n in "yx"]
        with m.If(fetch):
            m.d.sync += [known.eq(arrives), *(h.eq(self._saturated(codes[k])) for k, h in enumerate(held))]
        down, right = ([(k << self.frac_bits) + h for k in range(-half, half + 1)] for h in held)
        return down, right

    def _look_up(self, m: Module, step: Value, tap: dict[str, Signal]) -> tuple[Value, Value, Value]:
        """Addresses the banks, three stages after the distances.

        Returns, of the stage before the addresses: whether row, next row, column, next column are inside the map; whether row and
        column of the first neighbour are odd where they lie; whether the next row and the next column lie in others than these.
        """
        rows, banks, halvings, repeat = self.rows, self.banks, self.halvings, self.upsample
        # Where the first neighbour lies: floor, also of negative distances, by arithmetic shift.
        down, right = tap["ty"] >> self.frac_bits, tap["tx"] >> self.frac_bits
        sums = tap["y"] + down, tap["x"] + right, tap["slot"] + down
        # The slot turns at most once where a neighbour is inside; elsewhere it does not matter.
        row, col, turned = (Signal(v.shape(), name=n, reset_less=True) for v, n in zip(sums, ("row", "col", "turned"), strict=True))
        slot, col_2, inside, apart = counter(rows, "slot_2"), Signal((col >> halvings).shape(), name="col_2"), Signal(4), Signal(2)
        source = turned >> halvings
        with m.If(step):
            m.d.sync += [register.eq(v) for register, v in zip((row, col, turned), sums, strict=True)]
            m.d.sync += slot.eq(Mux(source < 0, source + rows, Mux(source >= rows, source - rows, source)))
            m.d.sync += [col_2.eq(col >> halvings), apart.eq(Cat(at[:halvings] == repeat - 1 for at in (turned, col)))]
            m.d.sync += inside.eq(Cat(*(
                (at >= -second) & (at < size - second) for at, size in ((row, self.out_height), (col, self.out_width)) for second in (0, 1)
            )))  # fmt: skip
        group = later(m, step, tap["group"], 2)
        place = col_2 >> banks - 1
        lines, places = [], []
        for bank in range(banks):  # if the first neighbour is odd, the even one is the second and lies in the next pair
            line, word = counter(rows // banks * self.bank_line, f"line_{bank}"), counter(self.bank_line, f"word_{bank}")
            first = bank < banks - 1
            starts = [(k + (banks - 1) * first) // banks % (rows // banks) * self.bank_line for k in range(rows)]
            with m.If(step):
                m.d.sync += line.eq(Array(starts)[slot])
                m.d.sync += word.eq((place + (col_2[0] if first else 0)) * self.groups + group)
            lines.append(line)
            places.append(word)
        for (bank_row, bank_col), port in self._ports.items():
            m.d.comb += [port.addr.eq(lines[bank_row] + places[bank_col]), port.en.eq(step)]
        return inside, Cat(slot[0], col_2[0]), apart

    def _neighbours(self, words: dict[tuple[int, int], Value], odd: Value, apart: Value, inside: Value) -> list[Value]:
        """The words of the neighbours by 2·down + right, 0 outside the map; only the first if F = 0."""
        if self.banks == 1:
            return [Mux(inside[0] & inside[2], words[0, 0], 0)]
        found = []
        for down in (0, 1):
            row = [Mux(odd[0] ^ (apart[0] & down), words[1, col], words[0, col]) for col in (0, 1)]
            found += [Mux(inside[down] & inside[2 + right], Mux(odd[1] ^ (apart[1] & right), row[1], row[0]), 0) for right in (0, 1)]
        return found
