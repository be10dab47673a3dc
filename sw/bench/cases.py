# amaranth: UnusedElaboratable=no
"""The units that ``warploom bench units`` measures, by name: a unit, its golden model and frames to feed it.

A case is one line in :func:`cases`; "group/variant" names let ``--case group`` choose all of a group. Weights have 4 bits and activations
8 unless said otherwise (W4A8).
"""
from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np

from hw.lib.core import StreamedMatVec
from hw.lib.fifo import Fifo
from hw.lib.fork import Fork
from hw.lib.join import Join
from hw.lib.regroup import Regroup
from hw.params import Lanes, Multiplier, Range, Window
from sw.builders import BUILDERS
from sw.folding.fold import Fold
from sw.ops import Add, Concat, Deform, MaxPool, Shuffle, Split, Upsample
from sw.ops.base import Array

from .memory_cases import memory_cases
from .more_cases import more_cases
from .unit_case import (
    FRAMES,
    PATTERNS,
    SAME3,
    VARIANTS,
    Copies,
    UnitCase,
    chain,
    conv,
    deform_frames,
    depthwise,
    joined,
    kind,
    moved,
    requant,
    weights,
    with_requant,
)


class _Core:
    """Golden model of the matrix-vector core: the sums that its operands were drawn for."""

    def __init__(self, pe: int, simd: int, steps: int, kind: Multiplier) -> None:
        self.pe, self.simd, self.steps, self.kind = pe, simd, steps, kind
        rng = np.random.default_rng(pe)
        self.x = rng.choice([0, 1, 254, 255, 77, 130], (FRAMES, steps, simd))
        self.w = rng.choice([-7, -6, -1, 0, 1, 3, 7], (FRAMES, steps, pe, simd))

    def make(self) -> StreamedMatVec:
        bits = 24
        i = Lanes(lanes=self.simd, bits=8, signed=False)
        return StreamedMatVec(pe=self.pe, steps=self.steps, weight=Range(low=-7, high=7), i=i, bits=bits, kind=self.kind)

    def feed(self) -> tuple[Array, ...]:
        unit = self.make()
        words = np.array([[unit.encode(w.tolist()) for w in frame] for frame in self.w])
        return self.x.reshape(FRAMES, 1, 1, -1), words.reshape(FRAMES, 1, 1, -1)

    def golden(self, x: Array, _: Array) -> tuple[Array, ...]:
        sums = np.einsum("fspn,fsn->fp", self.w, self.x).reshape(FRAMES, 1, 1, -1)
        return (np.concatenate([sums] * -(-len(x) // FRAMES))[: len(x)],)


def core(name: str, pe: int, simd: int, variant: str, steps: int = 4) -> UnitCase:
    """The core alone: operands by stream, results out, no memory and no requantization."""
    models = [_Core(pe, simd, steps, multiplier) for multiplier in VARIANTS[variant]]
    types = tuple(kind(1, 1, x.shape[-1], bits, bits == 4) for x, bits in zip(models[0].feed(), (8, 4), strict=True))
    return UnitCase(
        name=name, make=models[0].make, make_ecp5=models[1].make, model=models[0], types=types, feed=models[0].feed,
        multiplications=pe * simd * steps, multipliers=pe * simd, fits_ecp5=pe * simd <= 2 * 156,
    )  # fmt: skip


def depthwise_pointwise(name: str, tiles: int, simd: int, pe: int, taps: int, variant: str = "portable") -> UnitCase:
    """Depthwise 3×3 and pointwise 32 → 64 on 16×16, each requantized."""
    x = kind(16, 16, 32)
    first, second = depthwise(name, 32), conv(name, 32, 64)
    (acc,) = first.infer(x)
    scale = requant(name, acc, relu=False)
    (mid,) = scale.infer(acc)
    (out,) = second.infer(mid)
    stages = (first, tiles, tiles), (scale, tiles, tiles), (second, simd, pe), (requant(name, out), 2 * tiles, 2 * tiles)
    return chain(name, x, *stages, taps=taps, variant=variant)


def deform(pattern: str, size: int, channels: int, count: int, frac_bits: int) -> UnitCase:
    """Square deformable, s in [-7, 8], beside the plain depthwise unit of as many lanes."""
    name = f"deform/{pattern}" if frac_bits == 3 else f"deform_rounded/{pattern}"
    low, high = -8 << frac_bits, (8 << frac_bits) - (1 << frac_bits)
    # The same unit for every pattern.
    op = Deform(weights=weights("d", 3, 3, channels), bias=weights("d", channels, bits=12), frac_bits=frac_bits, low=low, high=high)
    types = kind(size, size, channels), kind(size, size, 1, 4 + frac_bits, True)

    feed = partial(deform_frames, pattern, size, channels, 1, low, high)

    plain = f"depthwise/deform_{size}x{size}x{channels}_{count}"
    return joined(name, types, op, count, count, "primitives", plain=plain, feed=feed)


def _matrices() -> Iterable[UnitCase]:
    x = kind(16, 16, 64)
    for pe, simd, scales, variant in ((32, 2, 1, "primitives"), (32, 2, 1, "portable"), (64, 1, 1, "primitives"), (8, 8, 1, "portable")):
        name = f"pointwise/pe{pe}_simd{simd}_{variant}"
        yield with_requant(name, x, conv("pointwise", 64, 64), simd, pe, scales, variant)
    for variant in ("primitives", "portable"):
        yield core(f"core/48x16_{variant}", 48, 16, variant)
        yield core(f"core/8x8_{variant}", 8, 8, variant)
    yield depthwise_pointwise("depthwise_pointwise/9_64", 1, 2, 32, taps=9)
    yield depthwise_pointwise("depthwise_pointwise/18_128", 2, 4, 32, taps=9)
    yield depthwise_pointwise("depthwise_pointwise/9_64_primitives", 1, 2, 32, taps=9, variant="primitives")
    for variant in ("primitives", "portable"):
        yield chain(f"conv3x3/pe8_simd4_{variant}", kind(8, 8, 16), (conv("conv3x3", 16, 16, SAME3), 4, 8), variant=variant)
    stem = Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1))
    yield chain("stem/pe8_simd3", kind(32, 32, 3), (conv("stem", 3, 24, stem, bits=8), 3, 8))


def _windows() -> Iterable[UnitCase]:
    yield chain("depthwise/deform_32x32x64_16", kind(32, 32, 64), (depthwise("plain", 64), 16, 16))
    yield chain("depthwise/deform_16x16x16_8", kind(16, 16, 16), (depthwise("plain", 16), 8, 8))
    for k in (3, 5, 7, 9):
        window = Window(kernel=(k, k), pad=(k // 2,) * 4)
        yield chain(f"depthwise/k{k}", kind(16, 16, 32), (depthwise("k", 32, window), 8, 8))
    for variant in ("primitives", "soft"):
        yield chain(f"depthwise/k3_{variant}", kind(16, 16, 32), (depthwise("k", 32), 8, 8), variant=variant)
    yield chain("depthwise/k3_one_lane", kind(16, 16, 32), (depthwise("k", 32), 1, 1), variant="primitives")
    strided = {k: (depthwise("s", 32, Window(kernel=(k, k), stride=(2, 2), pad=(k // 2,) * 4)), 8, 8) for k in (3, 5, 7, 9)}
    yield chain("depthwise/stride2", kind(16, 16, 32), strided[3])
    yield from (chain(f"depthwise/stride2_k{k}_paged", kind(16, 16, 32), layer, lines="paged") for k, layer in strided.items())
    both = Window(kernel=(3, 3), stride=(2, 2), dilation=(2, 2), pad=(2, 2, 2, 2))
    yield chain("depthwise/stride2_dilated_paged", kind(16, 16, 32), (depthwise("b", 32, both), 8, 8), lines="paged")
    yield chain("depthwise/dilated", kind(16, 16, 32), (depthwise("d", 32, Window(kernel=(3, 3), dilation=(2, 2), pad=(2, 2, 2, 2))), 8, 8))
    yield from (deform(pattern, 32, 64, 16, 3) for pattern in PATTERNS)
    yield from (deform(pattern, 16, 16, 8, 0) for pattern in ("alternating", "random"))
    yield chain("max_pool", kind(16, 16, 32), (MaxPool(window=Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1))), 8, 8))


def _rest() -> Iterable[UnitCase]:
    acc = kind(16, 16, 64, 20, True)
    for count in (1, 4, 16):
        yield chain(f"requant/{count}", acc, (requant("requant", acc), count, count))
    narrow = kind(16, 16, 64, 17, True)
    for count in (4, 16):
        yield chain(f"requant/{count}_primitives", acc, (requant("requant", acc), count, count), variant="primitives")
    yield chain("requant/4_narrow", narrow, (requant("requant", narrow), 4, 4), variant="primitives")
    x = kind(16, 16, 32)
    i = Lanes(lanes=8, bits=8, signed=False)
    yield joined("add", (x, x), Add(), 8, 8)
    yield joined("concat/in_order", (x, x), Concat(), 8, 8)
    yield joined("concat/interleaved", (x, x), Concat(interleave=True), 8, 8)
    halves, fold = Split(sizes=(16, 16)), Fold(lanes_in=8, lanes_out=8)
    yield moved("split", lambda: BUILDERS[Split](halves, [x], i, i, fold), halves, x)
    yield chain("shuffle", x, (Shuffle(groups=2), 8, 8))
    yield chain("upsample", kind(8, 8, 32), (Upsample(factor=2), 8, 8))
    beats = x.pixels * i.beats(x.channels)
    yield from (moved(f"fifo/{depth}", partial(Fifo, i, depth), Copies(), x, beats) for depth in (1, 2, 32, 512))
    yield moved("fork", partial(Fork, i, 2), Copies(2), x, beats)
    beat = kind(16, 16, 8)
    yield UnitCase(name="join", make=partial(Join, i, 2), model=Concat(), types=(beat, beat), interval=beat.pixels)
    yield from (moved(f"regroup/8to{o}", partial(Regroup, channels=32, i=i, o_lanes=o, pixels=256), Copies(), x) for o in (3, 4, 32))


def cases() -> dict[str, UnitCase]:
    """All cases by name."""
    return {case.name: case for group in (_matrices(), _windows(), _rest(), more_cases(), memory_cases()) for case in group}
