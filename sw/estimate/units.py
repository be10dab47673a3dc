"""Every operator's unit as a structure: what hw/units builds for a node and its fold."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any

from hw.lib.arith import tree_stages
from hw.lib.packing import PACKERS, Packing, packing_of, signed_bits
from hw.lib.store import place_of
from hw.lib.top_k import sorter_rows
from hw.params import Multiplier, Range, Window
from hw.units.upsample import ring_beats
from sw.estimate.area import Structure, ram, rom
from sw.estimate.parts import (
    HANDSHAKE,
    constants_bits,
    counter,
    gather,
    index_bits,
    mac,
    product,
    queue,
    register,
    ring_address,
    walk,
    window,
)
from sw.folding.fold import Fold, beats
from sw.ops import (
    Add,
    AveragePool,
    Concat,
    Conv,
    Decode,
    Deform,
    Depthwise,
    GlobalAveragePool,
    Image,
    MaxPool,
    Multiply,
    Op,
    Requant,
    Shuffle,
    Split,
    Table,
    TensorType,
    Upsample,
)
from sw.ops.base import weight_range

Types = list[TensorType]


def regroup(channels: int, bits: int, lanes_in: int, lanes_out: int) -> Structure:
    """hw.lib.regroup.Regroup."""
    wide, narrow = lanes_in * bits, lanes_out * bits
    n_in, n_out = beats(channels, lanes_in), beats(channels, lanes_out)
    if lanes_in % lanes_out == 0:
        control = counter(n_in if channels % lanes_in else 1) + counter(lanes_in // lanes_out + 1) + Structure(HANDSHAKE)
        return register(wide, 1) + Structure(-narrow) + queue(narrow, 2) + control
    if lanes_out % lanes_in == 0:
        return Structure(lanes_out // lanes_in, narrow + 1) + counter(n_in) + counter(lanes_out // lanes_in) + Structure(2)
    step = gcd(lanes_in, lanes_out)
    held = (lanes_in + lanes_out - step) * bits
    moves = index_bits((lanes_in + lanes_out) // step)
    return register(held, 1 + moves / 2) + counter(n_in + 1) + counter(n_out) + register(moves, 3) + Structure(HANDSHAKE)


def conv(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.conv.ConvUnit: a window where one is needed, a ring of two vectors, multipliers, accumulators, tables."""
    x, simd, pe = types[0], fold.lanes_in, fold.lanes_out
    groups, folds = beats(x.channels, simd), beats(out.channels, pe)
    steps = op.window.taps * groups
    core = dot(weight_range(op), Range(low=x.lowest, high=x.highest), x.bits, simd, pe, fold.multiplier)
    total = core.parts + accumulators(pe, out.bits)
    total += rom(core.row_bits, steps * folds, fold.memory, core.columns) + counter(steps * folds)
    if folds > 1:
        columns = constants_bits(int(op.bias.min()), int(op.bias.max()))
        total += rom(pe * out.bits, folds, columns=pe * min(columns, out.bits))
        vector = 2 * steps
        total += register(simd * x.bits if place_of(simd * x.bits, vector) == "block" else 0)
        total += ram(simd * x.bits, vector) + counter(vector) + Structure(3 * index_bits(vector + 1), 2 * index_bits(vector + 1) + 3)
        total += counter(folds) + Structure(index_bits(folds), 2 * index_bits(folds))
    else:
        total += register(simd * x.bits)
    total += counter(steps) + Structure(HANDSHAKE, 3 * core.latency)
    return total + (window(x, op.window, simd * x.bits, groups) if op.window != Window() else Structure())


def accumulators(pe: int, bits: int) -> Structure:
    """hw.lib.core.MatVecCore behind its inner products: the start value is chosen in the adder's LUTs."""
    return register(bits, 1).times(pe)


@dataclass(frozen=True)
class Dot:
    """hw.lib.dot.Dot: its parts; the bits of a row of weights, and how many of them differ from 0; registers on the way."""

    parts: Structure
    row_bits: int
    columns: int
    latency: int


@cache
def dot(weight: Range, x: Range, x_bits: int, simd: int, pe: int, multiplier: Multiplier) -> Dot:
    """The inner products of a fold: weights of a range and bits of an operand's; looked up, since a search asks thousands of times."""
    packing = packing_of(multiplier, simd, weight, x) if multiplier in PACKERS else None
    w_bits = signed_bits(weight)
    term = max(abs(weight.low), weight.high) * max(abs(x.low), x.high)
    sum_bits = signed_bits(Range(low=-simd * term, high=simd * term))
    if packing is None:
        soft = Structure(x_bits * w_bits / 2 + x_bits + w_bits, 2 * (x_bits + w_bits))
        one = product(x_bits, w_bits) if multiplier == "inferred" else soft
        tree = Structure((simd - 1) * (sum_bits - 1), (x_bits + w_bits) * simd + sum_bits * simd / 3)
        return Dot((one.times(simd) + tree).times(pe), pe * simd * w_bits, pe * simd * w_bits, 2 + tree_stages(simd))
    groups, rest = divmod(pe, packing.lanes)
    total = packed_group(packing, packing.lanes, simd, w_bits, sum_bits, multiplier).times(groups)
    if multiplier == "dsp48e2":
        total += waiting(simd, packing.chain, x_bits)
    if rest:
        total += packed_group(packing, rest, simd, w_bits, sum_bits, multiplier)
    # Upper weights are stored less a borrow where packing is wiring only: a bit more if that leaves their range.
    wide = w_bits + (multiplier != "dsp48e2" and weight.low == -(1 << w_bits - 1))
    row_bits = -(-pe // packing.lanes) * simd * (w_bits + (packing.lanes - 1) * wide)
    chains = -(-simd // packing.chain)
    return Dot(total, row_bits, simd * pe * wide, 3 + tree_stages(packing.chain) + tree_stages(chains))


@cache
def packed_group(packing: Packing, lanes: int, simd: int, w_bits: int, sum_bits: int, multiplier: Multiplier) -> Structure:
    """``lanes`` rows that share multipliers: words, what tells the rows apart, trees of fields."""
    chain = packing.chain
    chains, spill = -(-simd // chain), sum(packing.spills[: lanes - 1])
    last = packing.total_bits - packing.offsets[-1]
    word = packing.offsets[lanes - 1] + last
    if multiplier == "dsp48e2":  # registers and sums lie in the slices
        words = waiting(simd, chain, lanes * w_bits) + Structure(chains * spill)
    else:
        words = Structure((simd - chains) * word, (2 * simd - chains) * word)
    apart = Structure(SPILL_CHAIN * chains * spill + SPILL_WORD * simd * spill, chains * (word + spill) + simd * spill)
    trees = Structure((chains - 1) * (word + spill), (chains - 1) * (word + spill) / 1.5)
    sums = Structure((sum_bits - 1) * (lanes - 1), sum_bits * lanes)
    return words + apart + trees + sums + Structure(dsp=simd)


@cache
def waiting(simd: int, chain: int, bits: int) -> Structure:
    """Operands of ``bits`` for the later slices of cascades: registers, or a LUT as shift register from three cycles on."""
    late = [k % chain for k in range(simd)]
    return Structure(bits * sum(k > 2 for k in late), bits * sum(k for k in late if k < 3))


#: LUTs for each bit that a lane spills into the next: where a chain's lanes are told apart, and for each word's low bits.
SPILL_CHAIN, SPILL_WORD = 0.5, 1.75


def depthwise(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.depthwise.DepthwiseUnit."""
    x, lanes, groups = types[0], fold.lanes_in, beats(types[0].channels, fold.lanes_in)
    w_bits, bias = signed_bits(weight_range(op)), constants_bits(int(op.bias.min()), int(op.bias.max()))
    if fold.taps == 1:
        sums = mac(lanes, groups, op.window.taps, x.bits, w_bits, out.bits, bias, fold.multiplier, fold.memory)
        return window(x, op.window, lanes * x.bits, groups, fold.lines) + sums
    kernel, word = op.window.kernel, lanes * x.bits
    rest = max(x.width * groups - (kernel[1] - 1) * groups, 1)
    lines = delay((kernel[0] - 1) * word, rest) + delay(kernel[0] * (kernel[1] - 1) * word, groups)
    words = register(word * op.window.taps, 1) + register(word * fold.taps, op.window.taps // fold.taps > 1)
    lane = product(x.bits, w_bits).times(fold.taps) + Structure(fold.taps * out.bits, fold.taps * (x.bits + w_bits) + out.bits)
    phases = op.window.taps // fold.taps
    tables = rom(lanes * fold.taps * w_bits, groups * phases) + rom(lanes * out.bits, groups, columns=lanes * bias)
    return lines + words + lane.times(lanes) + tables + walk([x.height, x.width, groups, x.pixels * groups]) + Structure(60, 40)


def delay(width: int, steps: int) -> Structure:
    """hw.lib.delay.delayed."""
    if steps < 4:
        return register(width * steps)
    return ram(width, steps) + counter(steps).times(2) + register(width if place_of(width, steps) == "block" else 0)


def deform(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.deform.DeformUnit."""
    if fold.place == "memory":
        return deform_memory(op, types, out, fold)
    x, lanes, groups = types[0], fold.lanes_in, beats(types[0].channels, fold.lanes_in)
    size, rows = op.weights.shape[0], op.ring(x).rows(op.banks)
    bank = rows // op.banks * -(-x.width // op.banks) * groups
    w_bits, bias = signed_bits(weight_range(op)), constants_bits(int(op.bias.min()), int(op.bias.max()))
    counts = [out.height, out.width, groups, size, size]
    stage = gather(lanes, x.bits, op.frac_bits, counts, bank, rows)
    wide = x.bits + 2 * op.frac_bits
    return stage + mac(lanes, groups, size * size, wide, w_bits, out.bits, bias, fold.multiplier, fold.memory)


def deform_memory(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.lib.deform_memory.DeformMemoryUnit: commands, a product and a sum a lane, sums and tables."""
    x, lanes, groups = types[0], fold.lanes_in, beats(types[0].channels, fold.lanes_in)
    w_bits, share = signed_bits(weight_range(op)), 2 * op.frac_bits + 1
    wide = share + w_bits
    factor = Structure((w_bits - 1) * wide, tree_stages(w_bits) * wide + w_bits)
    lane = factor + product(wide, x.bits + 1) + register(wide + x.bits, 0) + register(x.bits) + register(out.bits, 2) + register(out.bits)
    lane += Structure(0, LANE_REGISTERS)
    columns = lanes * constants_bits(int(op.bias.min()), int(op.bias.max()))
    bias = rom(lanes * out.bits, groups, columns=columns) if op.bias.any() else Structure()
    tables = rom(lanes * w_bits, groups * op.weights.shape[0] ** 2) + ram(lanes * out.bits, groups) + bias
    return lane.times(lanes) + tables + queue(lanes * out.bits, 2) + queue(lanes * x.bits, 2) + Structure(FETCH, FETCH)


#: LUTs and flip-flops of what finds neighbours in memory and asks for them.
FETCH = 450
#: Flip-flops that wait beside a lane's product: fitted to 8 and 16 lanes.
LANE_REGISTERS = 34


def requant(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.requant.RequantUnit."""
    x, lanes = types[0], fold.lanes_in
    groups = beats(x.channels, lanes)
    multiplier = constants_bits(int(op.multiplier.min()), int(op.multiplier.max())) + 1
    spread = int(op.shift.max() - op.shift.min())
    sliced, grown = fold.multiplier == "dsp48e2" and op.rounding != "half_even", 0
    if sliced:  # multipliers grow where the slice has room, so that shifts agree
        room = (27 if x.bits <= 18 else 18) - multiplier
        grown, spread = min(spread, room), spread // (room + 1)
    extra = spread.bit_length()
    split = x.bits > (18 if fold.multiplier in ("packed18", "mult18x18d") else 27)
    kept = max(x.bits + multiplier - int(op.shift.min()) + 1, out.bits)
    lane = Structure(dsp=1 + split) + register(x.bits) + register(kept) + register(out.bits + 2, extra) + register(out.bits)
    if split:
        lane += register(x.bits + multiplier + 17, 0.5)
    lane += Structure(out.bits + kept / 3)
    varying = len(set(op.multiplier.tolist())) > 1
    lane += Structure(0, 6 + (multiplier - 3) * varying)
    if sliced:  # accumulator, product and rounding lie in the slice
        lane = Structure(dsp=1) + register(out.bits, 1 + extra / 2) + Structure(kept / 3)
    wide, columns = (multiplier + grown - 1) * varying + extra, (multiplier + grown - 3) * varying + extra
    tables = rom(lanes * wide, groups, columns=lanes * columns)
    return lane.times(lanes) + tables + counter(groups) + queue(lanes * out.bits, 2) + Structure(HANDSHAKE, 5 + 2 * extra * lanes)


def pool(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.max_pool.MaxPoolUnit and average_pool.AveragePoolUnit."""
    x, lanes, groups = types[0], fold.lanes_in, beats(types[0].channels, fold.lanes_in)
    lane = register(out.bits, 1.5)  # what the results grow in
    lines = window(x, op.window, lanes * x.bits, groups, fold.lines)
    return lines + lane.times(lanes) + walk([op.window.taps, groups]) + Structure(HANDSHAKE)


def global_pool(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.global_average_pool.GlobalAveragePoolUnit."""
    x, lanes, groups = types[0], fold.lanes_in, beats(types[0].channels, fold.lanes_in)
    return register(out.bits, 1).times(lanes) + delay(lanes * out.bits, groups) + walk([x.pixels, groups]) + Structure(HANDSHAKE)


def upsample(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.upsample.UpsampleUnit: a ring of a row."""
    x, word, groups = types[0], fold.lanes_in * types[0].bits, beats(types[0].channels, fold.lanes_in)
    depth = ring_beats(x.width * groups)
    count = (x.height * x.width * groups + depth).bit_length() + 2
    nest = walk([x.height, op.factor, x.width, op.factor, groups])
    whole = depth & depth - 1 == 0  # addresses go round by themselves
    accounts = Structure((1.5 if whole else 2) * count, 2 * count)
    ring = ring_address(depth, 0.0 if whole else 1.0)
    return ram(word, depth) + nest + accounts + ring + register(word) + queue(word, 2) + Structure(HANDSHAKE, 3)


def split(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.split.SplitUnit."""
    word = fold.lanes_in * types[0].bits
    return queue(word, 2) + counter(beats(types[0].channels, fold.lanes_in)) + Structure(HANDSHAKE)


def concat(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.concat.ConcatUnit."""
    word = fold.lanes_in * types[0].bits
    if op.interleave:
        return register(len(types) * word, 1) + Structure(-word) + queue(word, 2) + counter(len(types) + 1) + Structure(HANDSHAKE)
    return queue(word, 2) + counter(beats(out.channels, fold.lanes_in)) + Structure(HANDSHAKE)


def shuffle(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.shuffle.ShuffleUnit: two pixels in registers."""
    word, groups = fold.lanes_in * types[0].bits, beats(types[0].channels, fold.lanes_in)
    held = register((groups - 1) * word, 1) + register(groups * word, 1)
    return held + queue(word, 2) + walk([groups, groups + 1]) + Structure(HANDSHAKE)


def add(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.add.AddUnit."""
    word = out.bits * fold.lanes_in
    return Structure(word) + queue(word, 2)


def multiply(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.multiply.MultiplyUnit."""
    a, b = types[0].bits, types[1].bits
    return (product(a, b) + register(a + b) + register(out.bits)).times(fold.lanes_in) + Structure(HANDSHAKE, 3)


def table(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.table.TableUnit."""
    groups = beats(types[0].channels, fold.lanes_in)
    return rom(out.bits, 1 << types[0].bits).times(fold.lanes_in) + counter(groups) + Structure(HANDSHAKE, 1 + fold.lanes_in)


def image(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.image.ImageUnit."""
    word = fold.lanes_in * types[0].bits
    return queue(word, 2) + walk([out.height, out.width]) + Structure(HANDSHAKE + 10)


def decode(op: Any, types: Types, out: TensorType, fold: Fold) -> Structure:
    """hw.units.decode.DecodeUnit: windows of heat with their comparisons, boxes, the sorter's rows of cells and its records."""
    x, lanes, groups = types[0], fold.lanes_in, beats(types[0].channels, fold.lanes_in)
    word, rows, cells = lanes * x.bits, sorter_rows(op.top_k, max(fold.cells, 1)), max(fold.cells, 1)
    lines = delay(2 * word, max((x.width - 2) * groups, 1)) + delay(6 * word, groups)
    found = sum(t.bits * t.channels for t in types[1:]) + word + lanes + sum(index_bits(n) for n in (x.height, x.width, groups)) + 1
    windows = lines + register(9 * word, 1) + Structure(9 * word / 2) + walk([x.height, x.width, groups]).times(2)
    box = 4 * out.bits
    key, slot = x.bits + index_bits(x.channels), index_bits(cells) + index_bits(rows)
    cell = Structure(key + slot + key + 20, key + slot)
    record = box + key
    moved = register(3 * (key + slot) + record, 0.5) + register(record)
    sorter = cell.times(cells) + ram(cells * (key + slot), rows) + ram(record, 1 << slot) + moved
    return windows + register(found).times(2) + queue(found, 2) + Structure(2 * box, 1.5 * box) + sorter + Structure(60, 60)


UNITS: dict[type[Op], Callable[[Any, Types, TensorType, Fold], Structure]] = {
    Conv: conv, Depthwise: depthwise, Deform: deform, Requant: requant, MaxPool: pool, AveragePool: pool, GlobalAveragePool: global_pool,
    Upsample: upsample, Split: split, Concat: concat, Shuffle: shuffle, Add: add, Multiply: multiply, Table: table, Image: image,
    Decode: decode,
}  # fmt: skip
