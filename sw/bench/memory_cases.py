# amaranth: UnusedElaboratable=no
"""Cases of the units with ports to external memory: the shared engine, and deformable layers whose map lies there."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from hw.engine import EngineLayer, EngineUnit
from sw.builders import BUILDERS
from sw.engine import lanes
from sw.folding.deform_memory import lanes_in_word, traffic_of
from sw.folding.fold import Fold
from sw.ops import Array, Conv, Deform, Requant

from .unit_case import VARIANTS, UnitCase, conv, deform_frames, kind, requant, weights

#: Cycles from a command to its first word.
LATENCY = 20


class Layers:
    """Golden model of an engine's layers: each stream in gives one out."""

    def __init__(self, ops: Sequence[tuple[Conv, Requant]]) -> None:
        self.ops = ops

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        return tuple(scale.golden(*point.golden(x))[0] for (point, scale), x in zip(self.ops, inputs, strict=True))


def engine(
    name: str, sizes: Sequence[tuple[int, int, int, int]], pe: int, simd: int, count: int, variant: str, interval: int
) -> UnitCase:
    """Layers of (side of the map, channels in, channels out, pixels of a tile) on a core of PE × SIMD with ``count`` requantizers.

    ``interval``: as measured; the unit's ``frame_cycles`` leaves out the few cycles between two jobs.
    """
    types, ops, layers = [], [], []
    for k, (side, c_in, c_out, tile) in enumerate(sizes):
        x, point = kind(side, side, c_in), conv(f"{name}{k}", c_in, c_out)
        (acc,) = point.infer(x)
        scale = requant(f"{name}{k}", acc)
        (y,) = scale.infer(acc)
        types.append(x)
        ops.append((point, scale))
        layers.append(EngineLayer(
            pixels=x.pixels, weights=point.weights.reshape(c_out, c_in).tolist(), bias=point.bias.tolist(), low=scale.low, high=scale.high,
            multiplier=scale.multiplier.tolist(), shift=scale.shift.tolist(), i=lanes(x, simd), o=lanes(y, simd), tile=tile,
            in_slots=2, out_slots=2,
        ))  # fmt: skip

    def make(family: int) -> EngineUnit:
        return EngineUnit(layers=layers, pe=pe, lanes=count, multiplier=VARIANTS[variant][family])

    return UnitCase(
        name=name, make=partial(make, 0), make_ecp5=partial(make, 1), model=Layers(ops), types=tuple(types), memory_latency=LATENCY,
        interval=interval,
        multiplications=sum(point.multiplications(x) for (point, _), x in zip(ops, types, strict=True)), multipliers=pe * simd,
    )  # fmt: skip


def deform_memory(pattern: str, size: int, channels: int, data_bits: int, frac_bits: int) -> UnitCase:
    """The deformable layer of :func:`sw.bench.cases.deform` with its map in memory: its interval depends on the offsets."""
    low, high = -8 << frac_bits, 7 << frac_bits
    op = Deform(weights=weights("m", 3, 3, channels), bias=weights("m", channels, bits=12), frac_bits=frac_bits, low=low, high=high)
    x, offset = kind(size, size, channels), kind(size, size, 1, 4 + frac_bits, True)
    (out,) = op.infer(x, offset)
    count = lanes_in_word(x, data_bits)
    fold = Fold(lanes_in=count, lanes_out=count, place="memory", data_bits=data_bits)
    x_frames, codes = deform_frames(pattern, size, channels, 1, low, high)
    codes[:] = codes[0]  # every frame takes as long

    return UnitCase(
        name=f"deform_memory/{pattern}", make=lambda: BUILDERS[Deform](op, (x, offset), lanes(x, count), lanes(out, count), fold),
        model=op, types=(x, offset), feed=lambda: (x_frames, codes), interval=traffic_of(op, x, data_bits, codes[0]).cycles,
        multiplications=op.multiplications(x, offset), multipliers=count, memory_latency=LATENCY,
    )  # fmt: skip


def memory_cases() -> Iterable[UnitCase]:
    """One after the other."""
    layers = ((8, 96, 96, 32), (8, 128, 48, 32))  # as many jobs a frame, so that they take turns and the interval is steady
    yield engine("engine/pe24_simd8_primitives", layers, 24, 8, 2, "primitives", 5130)
    yield engine("engine/pe24_simd8_portable", layers, 24, 8, 2, "portable", 5130)
    yield from (deform_memory(pattern, 8, 64, 64, 3) for pattern in ("random", "equal"))
