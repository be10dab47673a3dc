"""Gathering at deformed positions: whole words, one tap a cycle, whatever the offsets are."""
from __future__ import annotations

from amaranth import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.bilinear import interpolate, interpolate_stages, later
from hw.lib.fifo import Fifo
from hw.lib.offsets import Offsets
from hw.lib.ring import count_rows, counter
from hw.lib.store import ram
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
        if upsample < 1 or upsample & upsample - 1:
            raise ValueError(f"upsample must be a power of two, not {upsample!r}")
        self.offsets = Offsets(size=size, frac_bits=frac_bits, low=low, high=high, base=base, free=free, offset=offset)
        self.upsample, self.halvings, self.frac_bits, self.size = upsample, upsample.bit_length() - 1, frac_bits, size
        self.height, self.width, self.out_height, self.out_width = height, width, height * upsample, width * upsample
        self.lanes, self.groups = i, i.beats(channels)
        self.out = Lanes(lanes=i.lanes, bits=i.bits + 2 * frac_bits, signed=i.signed)
        super().__init__({"i": In(signature(i)), "offset_i": In(signature(offset)), "o": Out(signature(self.out))})

    @property
    def ring(self) -> DeformRing:
        """Which rows of the map are kept."""
        return DeformRing(height=self.height, reach=self.offsets.reach, repeat=self.upsample)

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
            (row, col): ram(self.lanes.width, self.rows // self.banks * self.bank_line)
            for row in range(self.banks) for col in range(self.banks)
        }  # fmt: skip
        self._ports = {place: bank.read_port() for place, bank in self._memories.items()}
        for (row, col), bank in self._memories.items():
            m.submodules[f"rows_{row}{col}"] = bank
        m.submodules.slice = out = Fifo(self.out, 2)  # no path from the reader's ready to the counters
        wiring.connect(m, out.o, wiring.flipped(self.o))
        step = Signal()
        m.d.comb += step.eq(out.i.ready)
        y, row_done, frame_done = counter(self.out_height, "y"), Signal(), Signal()
        arrived, left = Signal(), Signal(2)
        rows = count_rows(
            m, self.ring, self.rows, y=y, row_done=row_done, frame_done=frame_done, arrived=arrived, claimed=arrived, left=left
        )
        # The banks are read four steps after a tap is issued: only then may its rows be overwritten.
        m.d.comb += [self.i.ready.eq(rows.room), left.eq(Mux(step, later(m, step, rows.leaving, 4), 0))]
        self._write(m, arrived)
        tap = self._issue(m, step, rows.ready, y, row_done, frame_done)
        inside, odd, apart = self._look_up(m, step, tap)
        # Block RAM is slow: nothing but a register behind it, which ECP5's can take along if it has no reset.
        words = {place: later(m, step, port.data, 1, reset_less=True) for place, port in self._ports.items()}
        found = self._neighbours(words, *(later(m, step, v, 3) for v in (odd, apart, inside)))
        if self.frac_bits:
            fractions = (later(m, step, tap[n][: self.frac_bits], 5) for n in ("ty", "tx"))
            value = interpolate(m, step, self.lanes, found, *fractions)
            stages = 5 + interpolate_stages(self.frac_bits)
        else:
            value, stages = found[0], 5
        m.d.comb += [out.i.payload.as_value().eq(value), out.i.valid.eq(later(m, step, tap["valid"], stages))]
        return m

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

        down, right = self.offsets.distances(m, self.offset_i, known=known, tap_done=go, pixel_done=pixel_done, groups=self.groups)
        bits = self.offsets.bits
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
