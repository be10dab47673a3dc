# amaranth: UnusedElaboratable=no
"""The shared engine: every layer's results are golden's, whatever the order of the jobs and the pace of memory and neighbours."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hw.engine import EngineLayer, EngineUnit, Spilled
from hw.lib.spool import Waiting
from hw.params import Lanes, Multiplier
from sim.memory import InMemory
from sim.run import Case, run_cases
from sw.ops import Array, Conv, Requant


class Layers:
    """Golden of all layers; streams that only wait stay as they are."""

    name = "engine"

    def __init__(self, ops: list[tuple[Conv, Requant]]) -> None:
        self.ops = ops

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        n = len(self.ops)
        return (*(q.golden(*c.golden(x))[0] for (c, q), x in zip(self.ops, inputs[:n], strict=True)), *inputs[n:])


def case(
    name: str, sizes: list[tuple[int, int, int, int]], *, pe: int, simd: int, lanes: int = 1, multiplier: Multiplier = "inferred",
    seed: int = 0, stalls: int = 0, low: int = -7, data_bits: int = 128, slots: tuple[int, int] = (2, 2),
    plain: list[tuple[int, int]] | None = None, capacity: int = 32, rings: int = 100, latency: int = 20,
) -> Case:  # fmt: skip
    """``sizes``: (pixels, channels in, channels out, tile) of each layer; odd layers are signed on both sides.

    ``plain``: (pixels, channels) of streams that only wait; with it (even empty) tiles lie in memory, ``capacity`` blocks each, and in
    rings of ``rings`` words; ``simd`` are the streams' lanes then.
    """
    rng = np.random.default_rng(seed)
    layers, ops, inputs = [], [], []
    for k, (pixels, c_in, c_out, tile) in enumerate(sizes):
        sign = bool(k % 2)
        weights, bias = rng.integers(low, 8, (c_out, c_in)), rng.integers(-2000, 2000, c_out)
        multiplier_, shift = rng.integers(1 << 14, 1 << 15, c_out) * 2 + 1, rng.integers(19, 24, c_out)
        lowest, highest = (-128, 127) if sign else (0, 255 - k)
        conv = Conv(weights=weights.reshape(c_out, 1, 1, c_in), bias=bias)
        requant = Requant(multiplier=multiplier_, shift=shift, low=lowest, high=highest, bits=8, signed=sign)
        layers.append(EngineLayer(
            pixels=pixels, weights=weights.tolist(), bias=bias.tolist(), multiplier=multiplier_.tolist(), shift=shift.tolist(),
            low=lowest, high=highest, i=Lanes(lanes=simd, bits=8, signed=sign), o=Lanes(lanes=simd, bits=8, signed=sign), tile=tile,
            in_slots=slots[0], out_slots=slots[1], in_blocks=capacity, out_blocks=capacity,
        ))  # fmt: skip
        ops.append((conv, requant))
        x = rng.integers(-128 * sign, 256 - 128 * sign, (2, 1, pixels, c_in))
        x[0] = rng.choice([-128 * sign, 255 - 128 * sign], x[0].shape)  # the ends of the range
        inputs.append(x)
    waiting = []
    for k, (pixels, channels) in enumerate(plain or ()):
        waits = Lanes(lanes=simd, bits=8 - k % 2, signed=bool(k % 2))
        waiting.append(Waiting(lanes=waits, beats=waits.beats(channels), capacity=capacity))
        inputs.append(rng.integers(waits.lowest, waits.highest + 1, (2, 1, pixels, channels)))
    memory = None if plain is None else Spilled(operands=rings, results=rings, plain=waiting)
    engine = EngineUnit(layers=layers, pe=pe, lanes=lanes, multiplier=multiplier, data_bits=data_bits, memory=memory)
    unit = InMemory(engine, latency=latency, stalls=stalls)
    return Case(name=name, unit=unit, op=Layers(ops), inputs=tuple(inputs))  # type: ignore[arg-type]


CASES = [
    case("one_layer", [(8, 12, 10, 4)], pe=4, simd=4, lanes=2),
    case("ragged", [(8, 7, 5, 4), (6, 9, 11, 3), (12, 17, 3, 4)], pe=3, simd=4, seed=1, stalls=6),
    case("packed", [(16, 32, 30, 8), (8, 24, 24, 8)], pe=6, simd=8, lanes=2, multiplier="dsp48e2", seed=2),
    case("minus_eight", [(8, 16, 12, 8), (8, 16, 7, 4)], pe=6, simd=4, multiplier="packed27", seed=3, low=-8, slots=(1, 1)),
    # Sums wider than a multiplier: their products take two.
    case("narrow_bus", [(8, 320, 12, 8), (8, 8, 8, 8)], pe=4, simd=4, multiplier="mult18x18d", seed=4, data_bits=64),
    case("memory", [(64, 24, 20, 32), (32, 40, 33, 16)], pe=6, simd=8, lanes=2, multiplier="dsp48e2", seed=6, plain=[(64, 8)]),
    case("memory_ragged", [(48, 17, 9, 16), (32, 70, 5, 16), (16, 5, 50, 16)], pe=5, simd=8, seed=7, stalls=6, plain=[(32, 8), (32, 24)],
         latency=60),
    # The ring of results holds one tile: claimed jobs wait for it, one of them with its operands.
    case("memory_results", [(64, 8, 44, 32), (64, 12, 36, 32)], pe=6, simd=8, lanes=2, seed=9, plain=[], latency=40),
    case("memory_narrow", [(640, 7, 9, 32)], pe=3, simd=4, seed=8, plain=[], data_bits=64, capacity=64),
    case("one_fold", [(4, 8, 3, 4), (4, 5, 4, 2)], pe=4, simd=8, lanes=2, seed=5),
]


@pytest.mark.rtl
def test_every_layer_is_golden(tmp_path: Path) -> None:
    run_cases(CASES, tmp_path)
