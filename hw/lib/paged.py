# amaranth: UnusedElaboratable=no
"""A line buffer whose pixels have no fixed places: rows that a stride leaves behind side by side give room back column by column."""
from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from amaranth import Cat, Const, Module, Mux, Shape, Signal, Value, signed

from hw.lib.arith import add_carry
from hw.lib.ring import Loop, strides
from hw.lib.store import memory_price, ram
from hw.lib.walk import Walk, ring_address
from hw.lib.window import WindowStage
from hw.params import LineBuffer, Window


@dataclass(frozen=True)
class Grid:
    """The rows and columns of a map that windows read: all, or with a stride and a dilation that have a divisor in common each g-th."""

    rows: range
    cols: range

    @staticmethod
    def of(height: int, width: int, window: Window) -> Grid:
        """ValueError if windows read no pixel, or leave out others than each g-th and the map's end."""
        found = []
        for axis, (name, size) in enumerate((("rows", height), ("columns", width))):
            stride, dilation = window.stride[axis], window.dilation[axis]
            outputs, taps = range(window.out_size(height, width)[axis]), range(window.kernel[axis])
            read = sorted({y * stride - window.pad[axis] + k * dilation for y in outputs for k in taps} & set(range(size)))
            regular = range(read[0], read[-1] + 1, gcd(stride, dilation)) if read else range(0)
            if not read or read != list(regular):
                raise ValueError(f"no paged line buffer: of {size} {name} only {read} are in a window {window!r}")
            found.append(regular)
        return Grid(*found)

    def place(self, row: int, col: int) -> int:
        """A pixel's place among those that are read; of those before the map, too."""
        return (row - self.rows.start) // self.rows.step * len(self.cols) + (col - self.cols.start) // self.cols.step


def pixels_kept(grid: Grid, window: Window, groups: int, word: int) -> int:
    """From a window's first pixel to its last of those that are read (K - 1 rows and K pixels for a K×K window), and of the memory that
    this is rounded up to what shortens the wait at the end of a row: as many pixels as a window leaves behind there.

    Where only each g-th row is read, one of those more, half a row of the map or less, arrives before the others pass by.
    ``groups`` of ``word`` bits are a pixel.
    """
    least = window_pixels(grid, window) + (len(grid.cols) if grid.rows.step > 1 else 0)
    price = memory_price(word, least * groups)
    spare = range(least, least + window.kernel[1] * window.stride[0] + 1)
    return max(n for n in spare if n == least or memory_price(word, n * groups) == price)


def window_pixels(grid: Grid, window: Window) -> int:
    """From a window's first pixel to its last, of those that are read."""
    (kh, kw), (dh, dw) = window.kernel, window.dilation
    return grid.place((kh - 1) * dh, (kw - 1) * dw) - grid.place(0, 0) + 1


def entries_needed(height: int, width: int, window: Window, places: int) -> int:
    """Pixels that are read, counted as they arrive, from the first that still has one of ``places`` to the last that was promised one.

    A place that becomes free is promised to the first pixel without one. ValueError as of :meth:`Grid.of`.
    """
    grid, (out_h, out_w) = Grid.of(height, width, window), window.out_size(height, width)
    (kh, kw), (sh, sw), (dh, dw), (top, left) = window.kernel, window.stride, window.dilation, window.pad[:2]
    read = [
        grid.place(row, col)
        for y, x, i, j in itertools.product(range(out_h), range(out_w), range(kh), range(kw))
        if 0 <= (row := y * sh - top + i * dh) < height and 0 <= (col := x * sw - left + j * dw) < width
    ]
    last = {pixel: time for time, pixel in enumerate(read)}
    most, corner, freed = 0, 0, 0
    for time, pixel in enumerate(read):
        freed += last[pixel] == time
        most = max(most, freed - corner)
        while corner < len(last) and last[corner] <= time:
            corner += 1
    return places + most


def check_pace(window: Window) -> None:
    """ValueError if windows have fewer taps than twice the pixels from one to the next: what arrives would wait for what leaves."""
    if window.taps < 2 * window.stride[0] * window.stride[1]:
        raise ValueError(f"no paged line buffer: a {window.kernel} window has too few taps for a stride of {window.stride}")


class PagedWindow(WindowStage):
    """:class:`hw.lib.window.WindowStage` with room for :func:`pixels_kept` pixels at any stride, at full rate; pixels that no
    window reads are not kept.

    A ring gives room back in the order of arrival: with stride 2 the second row's pixels, done as early as the first row's above them,
    wait for the end of the first, and a ring at full rate is a row longer for it. Here the place of a pixel is free once its last tap
    has been read, and is promised to the next pixel that has none: a table of :func:`entries_needed` places, in LUT RAM (twice, read by
    the taps and by what arrives), says where each is.

    Throughput: as the ring, if windows have at least twice as many taps as there are pixels from one to the next (:func:`check_pace`).
    Latency: a word leaves five cycles after its beat was taken. After reset the table fills for as many cycles as there are places; no
    window leaves before. Parameters as of WindowStage, without ``tight``. Raises ValueError where WindowStage's rules or that of
    :func:`entries_needed` are broken.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.grid = Grid.of(self.height, self.width, self.window)
        places = self._places()
        self.entries = entries_needed(self.height, self.width, self.window, places)
        self.ring = replace(self.ring, pixels=places)
        #: By how much places are apart: 1 where the group's index fills the low bits of an address, else in beats.
        self.apart = self.groups if self.groups & self.groups - 1 else 1

    def _places(self) -> int:
        return pixels_kept(self.grid, self.window, self.groups, self.lanes.width)

    def elaborate(self, platform: object) -> Module:
        self._push, self._filling = Signal(name="push"), Signal(init=1, name="filling")  # an entry is written; still with first places
        return super().elaborate(platform)

    @property
    def span(self) -> int:
        """Counts those that no window reads."""
        return self.entries * self.grid.rows.step * self.grid.cols.step * self.groups

    def _begun(self, m: Module, go: Value, step: Value) -> Value:
        begun = Signal()  # the current tap's place is known
        with m.If(step):
            m.d.sync += begun.eq(go)
        return begun

    def _account(self, m: Module, go: Value, write: Value, walk: Walk, ends: Value) -> Value:
        return super()._account(m, go, write, walk, ends) & ~self._filling

    def _room(self, m: Module, go: Value, write: Value, walk: Walk, counted: Shape) -> tuple[Signal, Value]:
        """Places free, less 1: one more with each entry written, one less with the last beat of each pixel."""
        room = Signal(signed(self.ring.pixels.bit_length() + 1), init=-1)
        self._group, last = self._counted_groups(m, write)
        self._kept = self._is_read(m, last)
        self._full = last & self._kept
        m.d.comb += self.i.ready.eq(~room[-1] | ~self._kept)
        return room, add_carry(room, Mux(self._full, -1, 0), self._push)

    def _counted_groups(self, m: Module, write: Value) -> tuple[Value, Value]:
        """The arriving beat's group; whether it is a pixel's last and is written."""
        if self.groups == 1:
            return Const(0, 0), write
        group = Signal(range(self.groups), name="w_group")
        last = group == self.groups - 1
        with m.If(write):
            m.d.sync += group.eq(Mux(last, 0, group + 1))
        return group, write & last

    def _is_read(self, m: Module, move: Value) -> Value:
        """Whether the arriving pixel is in a window; others pass by."""
        if (len(self.grid.rows), len(self.grid.cols)) == (self.height, self.width):
            return Const(1)
        flags: list[Value] = []
        for name, size, read in (("col", self.width, self.grid.cols), ("row", self.height, self.grid.rows)):
            mask, at = Const(sum(1 << k for k in read), size), Signal(range(max(size, 2)), name=f"arriving_{name}")
            after, kept = Signal.like(at, name=f"next_{name}"), Signal(init=0 in read, name=f"{name}_kept")
            m.d.comb += after.eq(Mux(at == size - 1, 0, at + 1))
            with m.If(move):
                m.d.sync += [at.eq(after), kept.eq(mask.bit_select(after, 1))]
            flags.append(kept if len(read) < size else Const(1))
            move = move & (at == size - 1)
        return Cat(flags).all()

    def _word(self, m: Module, go: Value, write: Value, step: Value, walk: Walk, inside: Value) -> Value:
        """The table, the memory, and the word three steps after its tap."""
        m.submodules.rows = rows = ram(self.lanes.width, self.ring.pixels * self.groups)
        w_port, r_port = rows.write_port(), rows.read_port()
        rows_read, cols_read = self.grid.rows, self.grid.cols
        pixels = {n: self._rows[n] // rows_read.step * len(cols_read) + self._cols[n] // cols_read.step for n in self.levels}
        moves = strides([Loop(1, len(rows_read) * len(cols_read)), *(Loop(self._counts[n], pixels[n]) for n in self.levels)])
        place, group, freed = self._place(), Signal(range(self.groups)), Signal()  # of the tap before; no later tap reads it
        tap, arriving = self._table(m, ring_address(m, go, walk, moves, self.entries), step & freed, place)
        with m.If(step):
            m.d.sync += [place.eq(tap), group.eq(self._group_now(m, go, walk)), freed.eq(go & inside & self._leaves(m, go, walk))]
        m.d.comb += [r_port.addr.eq(self._address(place, group)), r_port.en.eq(step)]

        beat, at, of, came = Signal(self.lanes.width, reset_less=True), self._place(), Signal(range(self.groups)), Signal()
        m.d.sync += [beat.eq(self.i.payload.as_value()), at.eq(arriving), of.eq(self._group), came.eq(write & self._kept)]
        m.d.comb += [w_port.addr.eq(self._address(at, of)), w_port.data.eq(beat), w_port.en.eq(came)]

        outside, word = Signal(3), Signal(self.lanes.width, reset_less=True)
        with m.If(step):
            m.d.sync += [outside.eq(Cat(~inside, outside)), word.eq(r_port.data)]
        fill = self.o.payload.shape().const([self.fill] * self.lanes.lanes).as_bits()
        return Mux(outside[2], Const(fill, self.lanes.width), word)

    def _place(self) -> Signal:
        return Signal(range(max(self.ring.pixels * self.apart, 2)), reset_less=True, name="place")

    def _address(self, place: Value, group: Value) -> Value:
        """Of a group's beat in the memory."""
        return place + group if self.apart > 1 else Cat(group, place)

    def _table(self, m: Module, tap: Value, free: Value, freed: Value) -> tuple[Value, Value]:
        """The places of the pixel at entry ``tap`` and of the one that arrives. Entries are written in turn: with all places after reset,
        then with each that is ``freed``."""
        value = self._place()
        fill = Signal(value.shape(), name="fill")
        last = (self.ring.pixels - 1) * self.apart
        m.d.comb += [self._push.eq(self._filling | free), value.eq(Mux(self._filling, fill, freed))]
        with m.If(self._filling):
            m.d.sync += [fill.eq(fill + self.apart), self._filling.eq(fill != last)]
        written, arriving = (self._pointer(m, move) for move in (self._push, self._full))
        found = []
        for name, entry in (("tap_places", tap), ("arriving_places", arriving)):
            m.submodules[name] = places = ram(len(value), self.entries, "lut")
            w_port, r_port = places.write_port(), places.read_port(domain="comb")
            m.d.comb += [w_port.addr.eq(written), w_port.data.eq(value), w_port.en.eq(self._push), r_port.addr.eq(entry)]
            found.append(r_port.data)
        return found[0], found[1]

    def _pointer(self, m: Module, move: Value) -> Signal:
        """Goes round the table from the entry of a frame's first pixel: entry 0 is the first window's corner."""
        corner = -self.grid.place(-self.window.pad[0], -self.window.pad[1])
        pointer = Signal(range(max(self.entries, 2)), init=corner % self.entries, name="entry")
        with m.If(move):
            m.d.sync += pointer.eq(Mux(pointer == self.entries - 1, 0, pointer + 1))
        return pointer

    def _group_now(self, m: Module, go: Value, walk: Walk) -> Value:
        """The group of the current tap."""
        if "group" not in walk.at:
            return Const(0, 0)
        now = Signal(range(self.groups), name="r_group")
        with m.If(go):
            m.d.sync += now.eq(walk.at["group"])
        return now

    def _leaves(self, m: Module, go: Value, walk: Walk) -> Signal:
        """Whether the current tap's pixel has no later one: no window further down holds its row, none further on in the row its column."""
        over: list[Value] = [walk.at["group"] == self.groups - 1] if "group" in walk.at else []
        for axis, (output, tap) in enumerate((("y", "ky"), ("x", "kx"))):
            stride, dilation = self.window.stride[axis], self.window.dilation[axis]
            common = gcd(stride, dilation)
            far = self.out_size[axis] - dilation // common  # from this output on the next window with this row or column is outside
            first = walk.at[tap] < stride // common if tap in walk.at else Const(1)
            over.append(first | (walk.at[output] >= far) if output in walk.at else Const(1))
        now = Signal(init=self.groups == 1, name="leaves")
        with m.If(go):
            m.d.sync += now.eq(Cat(over).all())
        return now


def line_buffer(lines: LineBuffer, **arguments: Any) -> WindowStage:
    """The line buffer of that kind; ``arguments`` of :class:`hw.lib.window.WindowStage`.

    "ring": a row longer than the window with stride 2. "tight": K - 1 rows and K pixels and a few, but at half the rate. "paged": no longer
    than that at full rate, for a table in LUTs. With stride 1 a ring is as small. ValueError if a paged one would not keep up.
    """
    if lines == "paged":
        check_pace(arguments["window"])
    return PagedWindow(**arguments) if lines == "paged" else WindowStage(**arguments, tight=lines == "tight")
