"""Parts that units share: counters, queues, windows, multiply-accumulate, gathering. Widths as in hw/lib; few constants, fitted to Yosys.

A register is a flip-flop a bit, an adder a LUT a bit, a multiplexer of two a LUT a bit unless an adder takes it along.
"""
from __future__ import annotations

from hw.lib.paged import Grid, entries_needed, pixels_kept
from hw.lib.ring import ring_size, window_ring
from hw.lib.store import ram_luts
from hw.params import LineBuffer, Multiplier, RomKind, Window
from sw.estimate.area import Structure, ram, rom
from sw.ops import TensorType

#: LUTs of handshakes and enables that every unit and every counter has.
HANDSHAKE, COUNTER = 6.0, 1.0
#: Narrowest product that Yosys gives a multiplier slice.
SLICE_PRODUCT = 9


def index_bits(count: int) -> int:
    """Bits of 0..count-1."""
    return (count - 1).bit_length() if count > 1 else 0


def counter(count: int) -> Structure:
    """Counts 0..count-1 round and round."""
    bits = index_bits(count)
    return Structure(bits + COUNTER, bits) if bits else Structure()


def register(bits: float, levels: float = 0) -> Structure:
    """A register, and ``levels`` LUTs a bit before it."""
    return Structure(levels * bits, bits)


def queue(width: int, depth: int) -> Structure:
    """hw.lib.fifo.Fifo."""
    if depth == 1:
        return Structure(2, width + 1)
    if depth == 2:
        return Structure(width + 4, 2 * width + 2)
    size = depth - 1
    place, level = max(index_bits(size), 1), size.bit_length()
    return Structure(5 * place, 2 * place + level + 1) + ram(width, size)


def fork(outputs: int) -> Structure:
    """hw.lib.fork.Fork."""
    return Structure(2.5 * outputs, outputs)


def walk(counts: list[int]) -> Structure:
    """hw.lib.walk.Walk."""
    total = Structure()
    for count in counts:
        total += counter(count)
    return total


def ring_address(size: int, moves: float) -> Structure:
    """hw.lib.walk.ring_address and the counter of the other side; ``moves``: LUTs for each bit of how far it goes."""
    bits = index_bits(size)
    return Structure((1 + moves) * bits, 2.5 * bits)


def places_table(entries: int, places: int, groups: int) -> Structure:
    """The two tables of hw.lib.paged.PagedWindow, what goes round them, places on the way and their addresses."""
    added = groups & groups - 1
    bits, at = index_bits(places * (groups if added else 1)), index_bits(entries)
    return Structure(2 * ram_luts(bits, entries) + 3 * at + 3 * bits * (2 if added else 1), 2 * at + 3 * bits + 2 * index_bits(groups))


def window(x: TensorType, shape: Window, word: int, groups: int, lines: LineBuffer = "ring") -> Structure:
    """hw.lib.paged.line_buffer over words of ``word`` bits."""
    depth = window_ring(x.height, x.width, shape, lines == "tight").pixels * groups
    table, size = Structure(), ring_size(word, depth)
    if lines == "paged":
        places = pixels_kept(Grid.of(x.height, x.width, shape), shape, groups, word)
        table = places_table(entries_needed(x.height, x.width, shape, places), places, groups) + register(word)
        size = places * groups
    out_h, out_w = shape.out_size(x.height, x.width)
    count = (2 * depth).bit_length() + 1
    place = sum(n.bit_length() + 1 for n in (x.height, x.width))
    accounts = Structure(3 * count, 2.6 * count)  # beats ahead, places free, and what they change by
    positions = Structure(1.3 * place, place)
    ring = ring_address(size, 1.0 if size & size - 1 == 0 else 2.5)
    data = register(word) + queue(word, 2) + ram(word, size)
    return walk([out_h, out_w, *shape.kernel, groups]) + accounts + positions + ring + data + table + Structure(9, 9)


def product(a: int, b: int) -> Structure:
    """A product of a and b bits: a slice, or logic where it is narrow."""
    return Structure(dsp=1) if a + b >= SLICE_PRODUCT else Structure(a * b)


def constants_bits(low: int, high: int) -> int:
    """Columns that differ in a table of signed integers from ``low`` to ``high``."""
    return max((v if v >= 0 else ~v).bit_length() for v in (low, high)) + (low < 0)


def mac_lane(x_bits: int, w_bits: int, acc: int, multiplier: Multiplier) -> Structure:
    """A lane of hw.lib.mac.Mac: in a slice, in logic by Booth's rows, or a product and a sum."""
    if multiplier == "dsp48e2":
        return Structure(dsp=1)
    if multiplier == "soft":
        rows = -(-w_bits // 2)
        return register(x_bits + w_bits) + register(x_bits + 3, 1).times(rows) + Structure((rows - 1) * (x_bits + 2)) + register(acc, 1.5)
    return product(x_bits, w_bits) + register(x_bits + w_bits).times(2) + register(acc, 1)


def mac(
    lanes: int, groups: int, taps: int, x_bits: int, w_bits: int, acc: int, bias_bits: int, multiplier: Multiplier,
    memory: RomKind = "auto",
) -> Structure:  # fmt: skip
    """hw.lib.mac.Mac."""
    lane = mac_lane(x_bits, w_bits, acc, multiplier)
    tables = rom(lanes * w_bits, groups * taps, memory) + rom(lanes * acc, groups, columns=lanes * bias_bits)
    indices = counter(taps) + counter(groups) + counter(groups * taps) + register(index_bits(groups))
    return lane.times(lanes) + tables + indices + Structure(HANDSHAKE, 8)


def between(bits: int, frac: int) -> Structure:
    """One interpolation of ``frac`` bits: the difference, then the sum of its shifted copies."""
    wide = bits + frac + 1
    return Structure((bits + 1) + frac * wide, (2 * bits + 1) + 2 * wide)


def gather(lanes: int, bits: int, frac: int, counts: list[int], bank: int, rows: int) -> Structure:
    """hw.lib.gather.GatherStage with ``bank`` words in each of its memories and ``rows`` rows; ``counts`` of its loops."""
    banks = 4 if frac else 1
    word, address = lanes * bits, index_bits(bank)
    store = ram(word, bank).times(banks) + register(word).times(banks)
    control = walk(counts).times(2) + Structure(GATHER_REST + 4 * address, GATHER_REST + 5 * address)
    if not frac:
        return store + control + queue(word, 2) + register(word, 1)
    corners = register(word, 2).times(4)
    one = between(bits, frac).times(2) + between(bits + frac, frac)
    return store + control + corners + one.times(lanes) + queue(word + 2 * frac * lanes, 2) + Structure(4 * index_bits(rows))


#: LUTs and flip-flops of what a gather stage does however wide it is.
GATHER_REST = 60
