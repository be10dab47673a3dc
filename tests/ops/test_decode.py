# amaranth: UnusedElaboratable=no
"""Decoding: integer golden against the floating-point decoder, hardware against golden."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.params import Lanes
from hw.testing import until
from hw.units.decode import DecodeUnit
from sim.run import Case
from sw.decode import decode, from_records, least_value
from sw.ops import Array, Decode, TensorType
from sw.ops.decode import FIELDS


def heat(pattern: str, rng: np.random.Generator, shape: tuple[int, ...], lanes: Lanes) -> Array:
    """Heat maps: all values, few levels (plateaus), as many peaks as there can be, or few."""
    if pattern == "random":
        return rng.integers(lanes.lowest, lanes.highest + 1, shape)
    if pattern == "levels":
        return rng.choice([lanes.lowest, 0, 1, lanes.highest], shape)
    dense: Array = rng.integers(lanes.lowest // 4, 0, shape)
    if pattern == "ascending":  # each peak is better than all before it
        dense[:] = lanes.lowest
        places = dense[:, ::2, ::2]
        places[:] = np.arange(places[0].size).reshape(places.shape[1:]) + lanes.highest - places[0].size
        return dense
    if pattern == "dense":
        dense[:, ::2, ::2] += lanes.highest
    else:
        for n in range(len(dense)):
            for _ in range(4):
                dense[n, rng.integers(shape[1]), rng.integers(shape[2]), rng.integers(shape[3])] = rng.integers(1, lanes.highest)
    return dense


def unit(op: Decode, height: int, width: int, channels: int, i: Lanes, wh: Lanes, reg: Lanes, /, **changes: Any) -> DecodeUnit:
    def kind(lanes: Lanes, c: int) -> TensorType:
        return TensorType(height=height, width=width, channels=c, bits=lanes.bits, signed=lanes.signed)

    (out,) = op.infer(kind(i, channels), kind(wh, 2), kind(reg, 2))
    arguments: dict[str, Any] = {
        "height": height, "width": width, "channels": channels, "top_k": op.top_k, "cells": 2, "least": op.least, "wh_frac": op.wh_frac,
        "reg_frac": op.reg_frac, "i": i, "wh": wh, "reg": reg, "o": Lanes(lanes=8, bits=out.bits, signed=True),
    }  # fmt: skip
    return DecodeUnit(**(arguments | changes))


def case(
    name: str, height: int, width: int, channels: int, pattern: str, *, lanes: int = 1, top_k: int = 5, least: int | None = None,
    bits: int = 8, signed: bool = True, wh_frac: int = 3, reg_frac: int = 6, frames: int = 4, pysim: bool = False,
    cells: int = 2,
) -> Case:  # fmt: skip
    i = Lanes(lanes=lanes, bits=bits, signed=signed)
    wh, reg = Lanes(lanes=2, bits=9, signed=True), Lanes(lanes=2, bits=8, signed=True)
    rng = np.random.default_rng(len(name))
    maps = [heat(pattern, rng, (frames, height, width, channels), i)]
    maps += [rng.integers(x.lowest, x.highest + 1, (frames, height, width, 2)) for x in (wh, reg)]
    maps[1][0] = rng.choice([wh.lowest, -1, 0, wh.highest], maps[1][0].shape)
    op = Decode(top_k=top_k, least=i.lowest if least is None else least, wh_frac=wh_frac, reg_frac=reg_frac)
    return Case(name=name, unit=unit(op, height, width, channels, i, wh, reg, cells=cells), op=op, inputs=tuple(maps), pysim=pysim)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case("random", 5, 6, 3, "random", pysim=True),
        case("plateaus", 6, 5, 2, "levels", top_k=9, least=1, cells=1),
        case("plateaus in wide rows", 6, 5, 2, "levels", top_k=9, least=1, cells=4),
        case("plateaus in a single row", 6, 5, 2, "levels", top_k=9, least=1, cells=9),
        case("dense peaks of all classes", 6, 7, 4, "dense", top_k=7, wh_frac=7, reg_frac=4, cells=3),
        case("ascending peaks", 7, 8, 3, "ascending", top_k=10, cells=3),
        case("fewer peaks than records", 8, 8, 2, "few", top_k=20, least=1, cells=8),
        case("several classes a beat", 9, 8, 5, "few", lanes=2, top_k=6, least=1),
        case("all classes in a beat", 9, 9, 3, "few", lanes=3, top_k=8, least=1),
        case("one record", 4, 4, 1, "random", top_k=1, wh_frac=-2, reg_frac=0),
        case("one pixel", 1, 1, 3, "levels", top_k=2, frames=8),
        case("more records than beats", 2, 3, 1, "random", top_k=12),
        case("unsigned", 5, 1, 2, "random", signed=False, bits=5),
    ])  # fmt: skip


@pytest.mark.rtl
def test_a_dense_map_only_slows_a_unit_of_several_classes_a_beat(tmp_path: Any) -> None:
    """Every class peaks at every other pixel: more than the sorter takes. Nothing is lost; the rate is not checked (2 frames)."""
    from sim.run import run_cases

    run_cases([case("dense", 8, 8, 6, "dense", lanes=6, top_k=12, frames=2)], tmp_path, runs=[(False, False), (True, True)])


@pytest.mark.parametrize("pattern", ["random", "levels", "dense", "few"])
@pytest.mark.parametrize(("wh_frac", "reg_frac"), [(3, 6), (7, 2), (-1, 0), (11, 15)])
def test_golden_is_the_decoder(pattern: str, wh_frac: int, reg_frac: int) -> None:
    lanes, rng = Lanes(lanes=1, bits=16, signed=True), np.random.default_rng(wh_frac + 10)
    hm = heat(pattern, rng, (3, 9, 11, 4), lanes)
    wh, reg = (rng.integers(-(1 << 15), 1 << 15, (3, 9, 11, 2)) for _ in range(2))
    scale = 2.0**-12
    least = math.ceil(least_value(0.3, scale))
    op = Decode(top_k=10, least=least, wh_frac=wh_frac, reg_frac=reg_frac)
    (records,) = op.golden(hm, wh, reg)
    wanted = decode(hm, wh, reg, top_k=10, threshold=0.3, scales=(scale, 2.0**-wh_frac, 2.0**-reg_frac))
    for got, want in zip(from_records(records, frac_bits=op.frac_bits, scale=scale), wanted, strict=True):
        np.testing.assert_array_equal(got.boxes, want.boxes)
        np.testing.assert_array_equal(got.scores, want.scores)
        np.testing.assert_array_equal(got.labels, want.labels)
    assert (records[:, :, 0, FIELDS.index("last")] == [0] * 9 + [1]).all()
    kinds = [TensorType(height=9, width=11, channels=c, bits=16, signed=True) for c in (4, 2, 2)]
    (out,) = op.infer(*kinds)
    assert out.lowest <= records.min() and records.max() <= out.highest


def test_the_threshold_is_a_port() -> None:
    """Raised while it runs: only peaks from there on are valid."""
    dut = unit(
        Decode(top_k=3, least=-8, wh_frac=0, reg_frac=0), 1, 4, 1, Lanes(lanes=1, bits=4, signed=True),
        Lanes(lanes=2, bits=4, signed=True), Lanes(lanes=2, bits=4, signed=True),
    )  # fmt: skip
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    seen: list[list[int]] = []

    def feed(port: Any, beats: list[list[int]]) -> Any:
        async def run(ctx: Any) -> None:
            for beat in beats:
                ctx.set(port.payload, beat)
                ctx.set(port.valid, 1)
                await until(ctx, port.ready)
                ctx.set(port.valid, 0)

        return run

    async def read(ctx: Any) -> None:
        ctx.set(dut.least, 3)
        ctx.set(dut.o.ready, 1)
        for _ in range(3):
            record = await until(ctx, dut.o.valid, dut.o.payload)
            seen.append([record[k] for k in range(8)])

    sim.add_testbench(feed(dut.i, [[2], [0], [5], [1]]))
    sim.add_testbench(feed(dut.wh_i, [[2, 4]] * 4))
    sim.add_testbench(feed(dut.reg_i, [[0, 0]] * 4))
    sim.add_testbench(read)
    sim.run()
    # The box in half pixels: centre (2, 0), 2 wide, 4 high.
    assert seen == [[1, 0, 5, 2, -4, 6, 4, 0], [0] * 8, [0] * 7 + [1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wh": Lanes(lanes=1, bits=8, signed=True)}, "wh must have two lanes, not 1"),
        ({"o": Lanes(lanes=4, bits=20, signed=True)}, "o must be signed and have 8 lanes"),
        ({"least": 128}, "least must be in -128..127, not 128"),
        ({"top_k": 0}, "depth must be a positive integer, not 0"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    two = Lanes(lanes=2, bits=8, signed=True)
    with pytest.raises(ValueError, match=message):
        unit(Decode(top_k=3, least=0, wh_frac=1, reg_frac=1), 4, 4, 2, Lanes(lanes=1, bits=8, signed=True), two, two, **changes)


def test_unequal_maps_are_refused() -> None:
    hm, wh = (TensorType(height=4, width=4, channels=c, bits=8, signed=True) for c in (3, 2))
    op = Decode(top_k=3, least=0, wh_frac=1, reg_frac=1)
    with pytest.raises(ValueError, match="decode's reg has 2 channels"):
        op.infer(hm, wh, hm)
    with pytest.raises(ValueError, match="reg must be 4x4 like the heat map, not 4x5"):
        op.infer(hm, wh, TensorType(height=4, width=5, channels=2, bits=8, signed=True))
