"""Maps held on chip with streamed weights: results, order and rate."""
from typing import Any, get_args

import numpy as np
import pytest

from hw.lib.held import HeldMatVec, Reorder
from hw.params import Lanes, Multiplier, Range
from hw.testing import run_streams
from sim.run import Case, run_cases
from sw.ops import Conv
from sw.ops.base import Array


class FoldMajor:
    """Golden model: a pointwise convolution whose weights come with each frame, output channel groups first."""

    def __init__(self, unit: HeldMatVec, ops: list[Conv]) -> None:
        self.unit, self.ops = unit, ops

    def golden(self, x: Array, _: Array) -> tuple[Array, ...]:
        pe, folds = self.unit.core.pe, self.unit.folds
        frames = []
        for frame, op in zip(x, self.ops, strict=True):
            (y,) = op.golden(frame[None])
            flat = y.reshape(self.unit.pixels, -1)
            padded = np.pad(flat, ((0, 0), (0, folds * pe - flat.shape[1])))
            frames.append(padded.reshape(self.unit.pixels, folds, pe).transpose(1, 0, 2).reshape(1, -1, pe))
        return (np.stack(frames),)


def held(name: str, shape: tuple[int, int, int], outputs: int, simd: int, pe: int, kind: Multiplier = "inferred") -> Case:
    rng = np.random.default_rng(len(name))
    height, width, channels = shape
    bias = rng.integers(-500, 500, outputs)
    weights = rng.integers(-7, 8, (4, outputs, channels))
    i, o = Lanes(lanes=simd, bits=8, signed=False), Lanes(lanes=pe, bits=22, signed=True)
    weight = Range(low=-7, high=7)
    unit = HeldMatVec(pixels=height * width, in_channels=channels, bias=bias.tolist(), weight=weight, i=i, o=o, multiplier=kind)
    ops = [Conv(weights=w.reshape(outputs, 1, 1, channels), bias=bias) for w in weights]
    rows = np.array([unit.encode(w.tolist()) for w in weights]).reshape(4, 1, 1, -1)
    x = rng.integers(0, 256, (4, *shape))
    x[0] = 255
    return Case(name=name, unit=unit, op=FoldMajor(unit, ops), inputs=(x, rows))  # type: ignore[arg-type]


@pytest.mark.rtl
def test_held_maps_equal_golden(tmp_path: Any) -> None:
    cases = [held(f"kind_{k}", (2, 3, 6), 5, 2, 3, kind) for k, kind in enumerate(get_args(Multiplier))]
    cases += [held("one_fold", (2, 2, 4), 3, 2, 4), held("one_pixel", (1, 1, 8), 8, 2, 2)]
    cases += [held("one_beat", (3, 3, 2), 4, 2, 2), held("wide", (4, 4, 16), 24, 4, 6)]
    run_cases(cases, tmp_path)


class Transposed:
    """Golden model of the reordering."""

    def __init__(self, outer: int, inner: int) -> None:
        self.outer, self.inner = outer, inner

    def golden(self, x: Array) -> tuple[Array, ...]:
        n, _, _, lanes = x.shape
        return (x.reshape(n, self.outer, self.inner, lanes).transpose(0, 2, 1, 3).reshape(n, 1, -1, lanes),)


@pytest.mark.rtl
def test_reordering(tmp_path: Any) -> None:
    rng, cases = np.random.default_rng(3), []
    for outer, inner in ((1, 1), (1, 4), (3, 1), (2, 5), (4, 4)):
        unit = Reorder(outer=outer, inner=inner, i=Lanes(lanes=2, bits=5, signed=True))
        x = rng.integers(-16, 16, (4, 1, outer * inner, 2))
        cases.append(Case(name=f"o{outer}i{inner}", unit=unit, op=Transposed(outer, inner), inputs=(x,)))  # type: ignore[arg-type]
    run_cases(cases, tmp_path)


def test_reordering_in_the_simulator() -> None:
    unit = Reorder(outer=2, inner=3, i=Lanes(lanes=1, bits=4, signed=False))
    beats = [[v] for v in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]
    run_streams(unit, {"i": beats}, {"o": [[v] for v in (0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11)]})


def test_wrong_parameters_are_refused() -> None:
    lanes = Lanes(lanes=1, bits=8, signed=True)
    with pytest.raises(ValueError, match="o must be signed"):
        HeldMatVec(pixels=1, in_channels=1, bias=[300], weight=Range(low=-7, high=7), i=lanes, o=lanes)
    with pytest.raises(ValueError, match="outer and inner"):
        Reorder(outer=0, inner=1, i=lanes)
