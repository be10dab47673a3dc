"""What a unit is made of, independent of the device, and what that takes of a device's family."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cache
from typing import Literal

from hw.lib.store import LUT_WORDS, Place, block_shape, mux_luts, place_of, ram_luts, table_luts
from hw.params import RomKind

#: Families of devices that Yosys has libraries for: UltraScale+ (LUTs of six inputs) and ECP5 (of four).
Family = Literal["xcup", "ecp5"]


@dataclass(frozen=True, kw_only=True)
class Area:
    """LUTs of the family, flip-flops, multiplier slices and BRAM36 (halves are blocks of 18 kbit)."""

    lut: int = 0
    ff: int = 0
    dsp: int = 0
    bram36: float = 0.0

    def __add__(self, other: Area) -> Area:
        return Area(
            lut=self.lut + other.lut, ff=self.ff + other.ff, dsp=self.dsp + other.dsp, bram36=self.bram36 + other.bram36
        )

    def record(self) -> dict[str, float]:
        """Ready for JSON."""
        return dict(zip(("lut", "ff", "dsp", "bram36"), astuple(self), strict=True))


@dataclass(frozen=True)
class Store:
    """A memory of ``depth`` words: ``written``, or constants of which ``width`` columns differ."""

    width: int
    depth: int
    written: bool
    place: Place


@dataclass(frozen=True)
class Structure:
    """Logic in LUTs of six inputs, flip-flops, multiplier slices, memories."""

    lut: float = 0.0
    ff: float = 0.0
    dsp: int = 0
    stores: tuple[Store, ...] = ()

    def __add__(self, other: Structure) -> Structure:
        return Structure(self.lut + other.lut, self.ff + other.ff, self.dsp + other.dsp, self.stores + other.stores)

    def times(self, count: int) -> Structure:
        """``count`` of them."""
        return Structure(self.lut * count, self.ff * count, self.dsp * count, self.stores * count)


def ram(width: int, depth: int, place: Place | None = None) -> Structure:
    """A memory that is written, as hw.lib.store.ram places it."""
    return Structure(stores=(Store(width, depth, True, place or place_of(width, depth)),))


def rom(width: int, depth: int, kind: RomKind = "auto", columns: int | None = None) -> Structure:
    """Constants, as hw.lib.store.table places them; ``columns``: of ``width`` bits so many differ from each other and are not 0."""
    if depth < 2:
        return Structure()
    place: Place = place_of(width, depth, written=False) if kind == "auto" else kind
    return Structure(stores=(Store(width if columns is None or place == "block" else columns, depth, False, place),))


#: LUTs of four inputs for the logic of one of six.
LOGIC: Mapping[Family, float] = {"xcup": 1.0, "ecp5": 1.5}


@cache
def store_area(store: Store, family: Family) -> Area:
    """A memory with the register of its read port and what chooses among its blocks."""
    if store.place == "block":
        blocks, rows = block_shape(store.width, store.depth)
        return Area(lut=store.width * mux_luts(rows), bram36=blocks / 2)
    if family == "xcup":
        lut = ram_luts(store.width, store.depth) if store.written else table_luts(store.width, store.depth)
        return Area(lut=lut, ff=store.width)
    if store.written:  # TRELLIS_DPR16X4: 16 words of 4 bits take 6 LUTs
        rows = -(-store.depth // 16)
        return Area(lut=6 * rows * -(-store.width // 4) + store.width * (rows - 1), ff=store.width)
    tables = -(-store.depth // LUT_WORDS)
    return Area(lut=4 * table_luts(store.width, store.depth) if tables > 1 else store.width * -(-store.depth // 16), ff=store.width)


def price(structure: Structure, family: Family) -> Area:
    """What a structure takes."""
    total = Area(lut=round(structure.lut * LOGIC[family]), ff=round(structure.ff), dsp=structure.dsp)
    for store in structure.stores:
        total += store_area(store, family)
    return total
