# amaranth: UnusedElaboratable=no
"""How far estimates are off: units beside Yosys' area.

Most constants of sw/estimate were fitted to units of CoDeNet b; these have sizes of other networks, and odd foldings.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hw.lib.fifo import Fifo
from hw.lib.fork import Fork
from hw.lib.regroup import Regroup
from hw.params import Lanes, Multiplier, RomKind, Window
from sw import estimate
from sw.bench.unit_case import SAME3, conv, depthwise, kind, requant, weights
from sw.builders import BUILDERS
from sw.engine import lanes
from sw.estimate import Area, Family
from sw.folding.fold import Fold
from sw.ops import Add, Concat, Deform, MaxPool, Op, Shuffle, Split, TensorType, Upsample
from sw.synth.network import Part, compare, measured
from sw.synth.workers import Progress

HALF = Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1))


def of_node(name: str, op: Op, types: Sequence[TensorType], fold: Fold, family: Family) -> Part:
    """The unit of an operator and its estimate."""
    out, *_ = op.infer(*types)
    i, o = lanes(types[0], fold.lanes_in), lanes(out, fold.lanes_out)
    unit = BUILDERS[type(op)](op, types, i, o, fold)
    return Part(name=name, kind=op.name, estimate=estimate.unit(op, types, out, fold, family), unit=unit)


def parts(family: Family) -> Iterable[Part]:
    """All units; the names say kind and size."""
    slices: Multiplier = "dsp48e2" if family == "xcup" else "mult18x18d"
    portable: Multiplier = "packed27" if family == "xcup" else "packed18"
    pairs: tuple[tuple[int, int, int, int, int, Multiplier, RomKind], ...] = (
        (24, 24, 16, 4, 3, slices, "lut"), (48, 48, 16, 2, 6, slices, "lut"), (96, 96, 8, 4, 6, slices, "block"),
        (116, 116, 32, 6, 6, slices, "block"), (232, 232, 16, 8, 9, slices, "block"), (64, 36, 32, 3, 4, portable, "lut"),
        (88, 40, 16, 5, 6, portable, "block"), (128, 1, 16, 1, 1, slices, "lut"),
    )  # fmt: skip
    for inputs, outputs, size, simd, pe, multiplier, memory in pairs:
        fold = Fold(lanes_in=simd, lanes_out=pe, multiplier=multiplier, memory=memory)
        yield of_node(f"conv/{inputs}to{outputs}_{simd}x{pe}_{multiplier}_{memory}", conv("e", inputs, outputs), [kind(size, size, inputs)],
                      fold, family)  # fmt: skip
    stem = Fold(lanes_in=3, lanes_out=4, multiplier=slices, memory="lut")
    yield of_node("conv/stem_3x4", conv("s", 3, 24, HALF, bits=8), [kind(64, 64, 3)], stem, family)
    for channels, size, count, multiplier in ((48, 16, 1, "soft"), (24, 32, 3, slices), (96, 8, 2, "soft"), (64, 64, 4, slices)):
        fold = Fold(lanes_in=count, lanes_out=count, multiplier=multiplier)
        op = depthwise("e", channels, HALF if channels == 24 else SAME3)
        yield of_node(f"depthwise/{channels}_{count}_{multiplier}", op, [kind(size, size, channels)], fold, family)
    for channels, bits, count, multiplier in ((48, 16, 1, slices), (96, 17, 2, slices), (24, 20, 1, portable), (232, 18, 1, slices)):
        fold = Fold(lanes_in=count, lanes_out=count, multiplier=multiplier)
        acc = kind(16, 16, channels, bits, True)
        yield of_node(f"requant/{channels}x{bits}_{count}_{multiplier}", requant("e", acc), [acc], fold, family)
    for channels, size, count in ((128, 8, 2), (256, 16, 4)):
        bent = Deform(weights=weights("e", 3, 3, channels), bias=weights("e", channels, bits=12), frac_bits=2, low=-32, high=28)
        fold = Fold(lanes_in=count, lanes_out=count, multiplier="soft")
        yield of_node(f"deform/{channels}_{count}", bent, [kind(size, size, channels), kind(size, size, 1, 6, True)], fold, family)
    x, plain = kind(32, 32, 48), Fold(lanes_in=4, lanes_out=4)
    yield of_node("max_pool/48_4", MaxPool(window=HALF), [x], plain, family)
    yield of_node("upsample/48_4", Upsample(factor=2), [x], plain, family)
    yield of_node("split/48_4", Split(sizes=(24, 24)), [x], plain, family)
    yield of_node("concat/48_4", Concat(), [x, x], plain, family)
    yield of_node("shuffle/48_4", Shuffle(groups=2), [x], plain, family)
    yield of_node("add/48_4", Add(), [x, x], plain, family)
    yield from moves(family)


def moves(family: Family) -> Iterable[Part]:
    """What joins units."""
    for width, depth in ((8, 12), (24, 40), (8, 700), (32, 900), (17, 5)):
        area = estimate.fifo(width, depth, family)
        fifo = Fifo(Lanes(lanes=1, bits=width, signed=False), depth)
        yield Part(name=f"fifo/{width}x{depth}", kind="fifo", estimate=area, unit=fifo)
    for channels, bits, before, after in ((48, 8, 1, 4), (96, 18, 6, 1), (24, 8, 3, 2)):
        area = estimate.gearbox(channels, bits, before, after, family)
        gear = Regroup(channels=channels, i=Lanes(lanes=before, bits=bits, signed=False), o_lanes=after)
        yield Part(name=f"regroup/{channels}x{bits}_{before}to{after}", kind="regroup", estimate=area, unit=gear)
    fork = Fork(Lanes(lanes=4, bits=8, signed=False), 3)
    yield Part(name="fork/3", kind="fork", estimate=estimate.fork(3, family), unit=fork)


def bench_estimates(family: Family = "xcup", progress: Progress | None = None) -> dict[str, Any]:
    """Estimate beside measurement of each unit, each kind, all; cached by content."""
    found = list(parts(family))
    areas: list[Area] = measured(found, family, progress)
    return compare(found, areas)
