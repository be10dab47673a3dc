# amaranth: UnusedElaboratable=no
"""What a case of ``warploom bench units`` is, and how operators become cases."""
from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from hw.chain import Chain
from hw.lib.regroup import Regroup
from hw.params import LineBuffer, Multiplier, Window
from sw.builders import BUILDERS
from sw.engine import lanes
from sw.folding.fold import Fold
from sw.ops import Conv, Depthwise, Op, Requant, TensorType
from sw.ops.base import Array

#: Frames that go through a unit back to back: enough for two equal intervals after the first.
FRAMES = 4
SAME3 = Window(kernel=(3, 3), pad=(1, 1, 1, 1))


class Copies:
    """Golden model of units that only pass beats on, to ``count`` outputs."""

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def golden(self, x: Array) -> tuple[Array, ...]:
        return (x,) * self.count


class Sequence_:
    """Golden model of operators one after the other."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = ops

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        for op in self.ops:
            inputs = op.golden(*inputs)
        return inputs


@dataclass(frozen=True, kw_only=True)
class UnitCase:
    """What is measured under one name.

    ``make`` builds the unit (anew each time: units are elaborated once), ``make_ecp5`` its counterpart on that family;
    ``model`` has ``golden``; ``types`` are the input maps; ``multiplications`` by weights a frame takes and ``multipliers`` the
    unit has (0 where there are none); ``plain``: name of the case that ``ratio_to_plain`` refers to; ``feed`` replaces random
    frames; ``interval``: what a part that knows no frames must reach; ``fits_ecp5``: whether the largest ECP5 can hold it;
    ``memory_latency``: of the external memory at its ports, while cycles are measured, of a unit that has such.
    """

    name: str
    make: Callable[[], Any]
    make_ecp5: Callable[[], Any] | None = None
    model: Any
    types: tuple[TensorType, ...]
    multiplications: int = 0
    multipliers: int = 0
    plain: str | None = None
    feed: Callable[[], tuple[Array, ...]] | None = None
    interval: int | None = None
    fits_ecp5: bool = True
    memory_latency: int | None = None
    unit: str = field(init=False)

    def __post_init__(self) -> None:
        made = self.make()
        parts = [p for p in getattr(made, "parts", [made]) if not isinstance(p, Regroup) or p is made]
        object.__setattr__(self, "unit", " + ".join(type(part).__name__ for part in parts))

    def frames(self, count: int = FRAMES) -> tuple[Array, ...]:
        """Input maps (N, H, W, C), the first of extremes; the same for the same name."""
        if self.feed is not None:
            return tuple(np.concatenate([x] * -(-count // len(x)))[:count] for x in self.feed())
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        maps = [rng.integers(t.lowest, t.highest + 1, (count, *t.shape)) for t in self.types]
        for x, t in zip(maps, self.types, strict=True):
            x[0] = rng.choice([t.lowest, t.highest], t.shape)
        return tuple(maps)


def kind(height: int, width: int, channels: int, bits: int = 8, signed: bool = False) -> TensorType:
    """A map of activations."""
    return TensorType(height=height, width=width, channels=channels, bits=bits, signed=signed)


#: Offset patterns of the deformable case; whatever they are, the interval must be that of the plain unit.
PATTERNS = ("low", "high", "alternating", "random", "equal")
#: Multipliers on each family: "inferred" stays what the tools make of it.
VARIANTS: dict[str, tuple[Multiplier, Multiplier]] = {
    "portable": ("packed27", "packed18"), "primitives": ("dsp48e2", "mult18x18d"), "inferred": ("inferred", "inferred"),
    "soft": ("soft", "soft"),
}  # fmt: skip


def chain(
    name: str, x: TensorType, *stages: tuple[Op, int, int], variant: str = "portable", taps: int = 1, lines: LineBuffer = "ring",
    **more: Any,
) -> UnitCase:
    """Operators with one input and one output in sequence, each with its lanes in and out, built as the compiler builds them.

    ``taps`` a cycle and line buffers of the depthwise ones.
    """
    types = [x]
    for op, _, _ in stages:
        types += op.infer(types[-1])
    sides = [(lanes(a, i), lanes(b, o)) for (_, i, o), (a, b) in zip(stages, pairwise(types), strict=True)]

    def units(multiplier: Multiplier) -> list[Any]:
        folds = [Fold(lanes_in=i, lanes_out=o, multiplier=multiplier, memory="lut", taps=taps, lines=lines) for _, i, o in stages]
        return [BUILDERS[type(op)](op, [t], *side, f) for (op, _, _), t, side, f in zip(stages, types, sides, folds, strict=False)]

    def make(family: int = 0) -> Any:
        made = units(VARIANTS[variant][family])
        return made[0] if len(made) == 1 else Chain(made, [(t.channels, t.pixels) for t in types[1:]], sides)

    ops = [op for op, _, _ in stages]
    work = [(op.multiplications(t), unit.multipliers) for op, t, unit in zip(ops, types, units("inferred"), strict=False)]
    return UnitCase(
        name=name, make=make, make_ecp5=partial(make, 1), model=Sequence_(ops), types=(x,), multiplications=sum(n for n, _ in work),
        multipliers=sum(k for n, k in work if n), **more,
    )  # fmt: skip


def joined(name: str, types: tuple[TensorType, ...], op: Op, i: int, o: int, variant: str = "inferred", **more: Any) -> UnitCase:
    """One operator with several inputs."""
    (out,) = op.infer(*types)

    def make(family: int = 0) -> Any:
        fold = Fold(lanes_in=i, lanes_out=o, multiplier=VARIANTS[variant][family])
        return BUILDERS[type(op)](op, types, lanes(types[0], i), lanes(out, o), fold)

    case = UnitCase(
        name=name, make=make, make_ecp5=partial(make, 1), model=op, types=types, multiplications=op.multiplications(*types), **more
    )
    object.__setattr__(case, "multipliers", case.make().multipliers if case.multiplications else 0)
    return case


def weights(name: str, *shape: int, bits: int = 4) -> Array:
    """Narrow random weights, none of them 0."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    high = (1 << bits - 1) - 1
    magnitude = rng.integers(1, high + 1, shape)
    return np.where(rng.random(shape) < 0.5, -magnitude, magnitude)


def conv(name: str, inputs: int, outputs: int, window: Window | None = None, bits: int = 4) -> Conv:
    """A convolution with random weights and bias."""
    window = window or Window()
    return Conv(weights=weights(name, outputs, *window.kernel, inputs, bits=bits), bias=weights(name, outputs, bits=12), window=window)


def depthwise(name: str, channels: int, window: Window = SAME3) -> Depthwise:
    """A depthwise convolution with random weights and bias."""
    return Depthwise(weights=weights(name, *window.kernel, channels), bias=weights(name, channels, bits=12), window=window)


def requant(name: str, acc: TensorType, *, relu: bool = True) -> Requant:
    """A requantizer that brings accumulators to 8 bits: odd multipliers of 16 bits and shifts, both of their own for each channel."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    multiplier = rng.integers(1 << 14, 1 << 15, acc.channels) * 2 + 1
    shift = rng.integers(acc.bits + 6, acc.bits + 9, acc.channels)
    low, high = (0, 255) if relu else (-128, 127)
    return Requant(multiplier=multiplier, shift=shift, low=low, high=high, bits=8, signed=not relu)


def with_requant(name: str, x: TensorType, op: Op, i: int, o: int, scales: int, variant: str) -> UnitCase:
    """An operator and the requantizer behind it, ``scales`` channels at a time."""
    (acc,) = op.infer(x)
    return chain(name, x, (op, i, o), (requant(name, acc), scales, scales), variant=variant)


def moved(name: str, make: Callable[[], Any], model: Any, x: TensorType, interval: int | None = None) -> UnitCase:
    """A part that only moves beats."""
    return UnitCase(name=name, make=make, model=model, types=(x,), interval=interval)


def deform_frames(pattern: str, size: int, channels: int, offsets: int, low: int, high: int) -> tuple[Array, Array]:
    """Maps (N, size, size, channels) and offset codes (N, size, size, offsets) of one of PATTERNS."""
    rng = np.random.default_rng(5)
    shape = (FRAMES, size, size, offsets)
    codes: dict[str, Array] = {
        "low": np.full(shape, low), "high": np.full(shape, high), "equal": np.full(shape, 2),
        "alternating": np.where(np.indices(shape).sum(axis=0) % 2, low, high), "random": rng.integers(low, high + 1, shape),
    }  # fmt: skip
    return rng.integers(0, 256, (FRAMES, size, size, channels)), codes[pattern]
