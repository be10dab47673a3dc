# amaranth: UnusedElaboratable=no
"""Cases of the units that CoDeNet does not have: pools, products, tables, image input, decoding, free offsets, several taps a cycle."""
from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np

from hw.lib.fifo import Fifo
from hw.lib.held import HeldMatVec
from hw.params import Lanes, Multiplier, Range, Window
from hw.units.decode import DecodeUnit
from sw.ops import Array, AveragePool, Decode, Deform, GlobalAveragePool, Image, Multiply, Table

from .unit_case import FRAMES, PATTERNS, SAME3, VARIANTS, Copies, UnitCase, chain, deform_frames, depthwise, joined, kind, moved, weights


def decode(size: int, classes: int, count: int, top_k: int) -> UnitCase:
    """Heat maps of 16 bits with a peak here and there; every frame is the same."""
    name = f"decode/{size}x{size}x{classes}_{count}_top{top_k}"
    hm, two = kind(size, size, classes, 16, True), kind(size, size, 2, 16, True)
    op = Decode(top_k=top_k, least=0, wh_frac=8, reg_frac=12)
    (out,) = op.infer(hm, two, two)

    def feed() -> tuple[Array, ...]:
        rng = np.random.default_rng(7)
        heat = rng.integers(-9000, -1, (1, size, size, classes))
        heat[rng.random(heat.shape) < 0.01] += 20000
        maps = heat, *(rng.integers(0, 1 << 12, (1, size, size, 2)) for _ in range(2))
        return tuple(np.repeat(x, FRAMES, axis=0) for x in maps)  # equal frames: the interval depends on them

    def make() -> DecodeUnit:
        pair = Lanes(lanes=2, bits=16, signed=True)
        return DecodeUnit(
            height=size, width=size, channels=classes, top_k=top_k, cells=8, least=0, wh_frac=8, reg_frac=12,
            i=Lanes(lanes=count, bits=16, signed=True), wh=pair, reg=pair, o=Lanes(lanes=8, bits=out.bits, signed=True),
        )  # fmt: skip

    return UnitCase(name=name, make=make, model=op, types=(hm, two, two), feed=feed)


def free(pattern: str, size: int, channels: int, count: int, frac_bits: int) -> UnitCase:
    """Free offsets in [-8, 8) beside the plain depthwise unit of as many lanes."""
    name = f"deform_free/{pattern}"
    low, high = -8 << frac_bits, (8 << frac_bits) - 1  # all that the type holds
    op = Deform(
        weights=weights("f", 3, 3, channels), bias=weights("f", channels, bits=12), frac_bits=frac_bits, low=low, high=high, free=True
    )  # fmt: skip
    types = kind(size, size, channels), kind(size, size, op.offsets, 4 + frac_bits, True)

    feed = partial(deform_frames, pattern, size, channels, op.offsets, low, high)

    plain = f"depthwise/deform_{size}x{size}x{channels}_{count}"
    return joined(name, types, op, count, count, "primitives", plain=plain, feed=feed)


class _Held:
    """Golden model of a held map with streamed weights: the weights are drawn with it, a set for each frame; results fold by fold."""

    def __init__(self, size: int, channels: int, outputs: int, simd: int, pe: int, multiplier: Multiplier) -> None:
        rng = np.random.default_rng(channels)
        self.shape, self.simd, self.pe, self.multiplier = (size, size, channels), simd, pe, multiplier
        self.bias = rng.integers(-500, 500, outputs)
        self.weights = rng.choice([-7, -6, -1, 1, 3, 7], (FRAMES, outputs, channels))

    def make(self, multiplier: Multiplier | None = None) -> HeldMatVec:
        size, _, channels = self.shape
        i, o = Lanes(lanes=self.simd, bits=8, signed=False), Lanes(lanes=self.pe, bits=22, signed=True)
        weight = Range(low=-7, high=7)
        return HeldMatVec(
            pixels=size * size, in_channels=channels, bias=self.bias.tolist(), weight=weight, i=i, o=o,
            multiplier=multiplier or self.multiplier,
        )  # fmt: skip

    def feed(self) -> tuple[Array, ...]:
        unit = self.make()
        x = np.random.default_rng(6).integers(0, 256, (FRAMES, *self.shape))
        return x, np.array([unit.encode(w.tolist()) for w in self.weights]).reshape(FRAMES, 1, 1, -1)

    def golden(self, x: Array, _: Array) -> tuple[Array, ...]:
        size, channels = self.shape[0], self.shape[2]
        sums = np.einsum("npc,noc->npo", x[:FRAMES].reshape(FRAMES, size * size, channels), self.weights) + self.bias
        folds = sums.reshape(FRAMES, size * size, -1, self.pe).transpose(0, 2, 1, 3).reshape(FRAMES, 1, -1, self.pe)
        return (np.concatenate([folds] * -(-len(x) // FRAMES))[: len(x)],)


def held(size: int, channels: int, outputs: int, simd: int, pe: int, variant: str) -> UnitCase:
    """A held map; ``simd``, ``pe`` must divide the channels."""
    xcup, ecp5 = VARIANTS[variant]
    model = _Held(size, channels, outputs, simd, pe, xcup)
    name = f"held/{size}x{size}x{channels}_pe{pe}_simd{simd}_{variant}"
    types = kind(size, size, channels), kind(1, 1, model.feed()[1].shape[-1], 4, True)
    return UnitCase(
        name=name, make=model.make, make_ecp5=partial(model.make, ecp5), model=model, types=types, feed=model.feed,
        multiplications=size * size * channels * outputs, multipliers=pe * simd,
    )  # fmt: skip


def upsampled(before: bool, size: int, channels: int, count: int, frac_bits: int) -> UnitCase:
    """CoDeNet's range of square offsets on a map that nearest upsampling has made ``size``: upsampled ``before``, or by the unit itself."""
    name = f"deform_upsampled/{'before' if before else 'inside'}"
    small, low, high = size if before else size // 2, -8 << frac_bits, 7 << frac_bits
    op = Deform(
        weights=weights("u", 3, 3, channels), bias=weights("u", channels, bits=12), frac_bits=frac_bits, low=low, high=high,
        upsample=1 if before else 2,
    )  # fmt: skip
    types = kind(small, small, channels), kind(size, size, 1, 4 + frac_bits, True)
    return joined(name, types, op, count, count, variant="primitives")


def more_cases() -> Iterable[UnitCase]:
    """One after the other."""
    x, i = kind(16, 16, 32), Lanes(lanes=8, bits=8, signed=False)
    half = Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1))
    yield chain("depthwise_taps/3x3_9", x, (depthwise("t", 32), 1, 1), taps=9)
    yield chain("depthwise_taps/3x3_3", x, (depthwise("t", 32), 2, 2), taps=3)
    yield chain("depthwise_taps/5x5_25", x, (depthwise("t", 32, Window(kernel=(5, 5), pad=(2, 2, 2, 2))), 1, 1), taps=25)
    yield chain("depthwise_taps/3x3_9_wide", kind(16, 16, 8), (depthwise("t", 8, SAME3), 8, 8), taps=9)
    yield from (free(pattern, 16, 16, 8, 3) for pattern in PATTERNS)
    yield held(4, 64, 64, 4, 16, "primitives")
    yield held(4, 64, 64, 4, 16, "portable")
    yield from (upsampled(before, 16, 64, 8, 3) for before in (True, False))
    yield chain("average_pool", x, (AveragePool(window=half), 8, 8))
    yield chain("global_average_pool", x, (GlobalAveragePool(), 8, 8))
    yield joined("multiply", (x, kind(16, 16, 32, signed=True)), Multiply(), 8, 8)
    rng = np.random.default_rng(3)
    yield chain("table", x, (Table(values=rng.integers(-128, 128, 256), low=0, bits=8, signed=True), 8, 8))
    yield chain("image", kind(30, 28, 3), (Image(order="bgr", pad=(0, 0, 2, 4)), 3, 3))
    yield decode(32, 20, 1, 100)
    yield decode(32, 20, 4, 100)
    beats = x.pixels * i.beats(x.channels)
    yield moved("fifo/registers_16", partial(Fifo, i, 16, "registers"), Copies(), x, beats)
    yield moved("fifo/lut_64", partial(Fifo, i, 64, "lut"), Copies(), x, beats)
    yield moved("fifo/block_512", partial(Fifo, i, 512, "block"), Copies(), x, beats)
