# amaranth: UnusedElaboratable=no
"""Multiply: hardware against golden, and the front end that leads to it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw.params import Lanes
from hw.units.multiply import MultiplyUnit
from sim.run import Case
from sw import golden
from sw.compiler import load_graph
from sw.errors import CompileError
from sw.ops import Multiply, TensorType
from sw.testing import QonnxWriter


def case(name: str, channels: int, a: Lanes, b: Lanes, size: tuple[int, int] = (2, 3), pysim: bool = False) -> Case:
    """Extremes in the first frame, random ones after it."""
    rng = np.random.default_rng(len(name))
    inputs = tuple(rng.integers(x.lowest, x.highest + 1, (3, *size, channels)) for x in (a, b))
    for x, lanes in zip(inputs, (a, b), strict=True):
        x[0] = rng.choice([lanes.lowest, lanes.highest], x[0].shape)
    unit = MultiplyUnit(height=size[0], width=size[1], channels=channels, a=a, b=b)
    return Case(name=name, unit=unit, op=Multiply(), inputs=inputs, pysim=pysim)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case("signed", 5, Lanes(lanes=2, bits=8, signed=True), Lanes(lanes=2, bits=8, signed=True), pysim=True),
        case("unsigned", 4, Lanes(lanes=4, bits=8, signed=False), Lanes(lanes=4, bits=5, signed=False)),
        case("mixed", 3, Lanes(lanes=1, bits=8, signed=False), Lanes(lanes=1, bits=4, signed=True), size=(3, 1)),
        case("mixed the other way round", 3, Lanes(lanes=2, bits=3, signed=True), Lanes(lanes=2, bits=8, signed=False)),
    ])  # fmt: skip


def test_every_product_fits_its_type() -> None:
    """All pairs of extremes of all small types, and the most negative squared."""
    for bits in (1, 2, 4):
        for a_signed in (False, True):
            for b_signed in (False, True):
                a, b = (TensorType(height=1, width=1, channels=1, bits=n, signed=s) for n, s in ((bits, a_signed), (4, b_signed)))
                (out,) = Multiply().infer(a, b)
                products = [x * y for x in (a.lowest, a.highest) for y in (b.lowest, b.highest)]
                assert out.lowest <= min(products) and max(products) <= out.highest


def test_refuses() -> None:
    a = TensorType(height=2, width=2, channels=3, bits=8, signed=True)
    with pytest.raises(ValueError, match="must agree"):
        Multiply().infer(a, TensorType(height=2, width=1, channels=3, bits=8, signed=True))
    with pytest.raises(ValueError, match="a and b must have equal lanes, not 1 and 2"):
        MultiplyUnit(channels=2, a=Lanes(lanes=1, bits=8, signed=True), b=Lanes(lanes=2, bits=8, signed=True))
    with pytest.raises(ValueError, match="channels must be a positive integer, not 0"):
        MultiplyUnit(channels=0, a=Lanes(lanes=1, bits=8, signed=True), b=Lanes(lanes=1, bits=8, signed=True))


def test_two_activations_lower_exactly_at_any_scales(tmp_path: Path) -> None:
    w = QonnxWriter(6, 6)
    a, b = w.conv(w.image, "a", 4, relu=False, out_scale=2.0**-5), w.conv(w.image, "b", 4, out_scale=2.0**-3)
    w.channels[w.node("Mul", [a, b], "product")] = 4
    graph = load_graph(w.save(tmp_path / "m.onnx", [w.quant("product", "out", 2.0**-4, bits=8, signed=True)]))
    values = golden.run(graph, np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3)))
    np.testing.assert_array_equal(values["out"], np.clip(np.rint(values["a"] * values["b"] / 16), -128, 127))
    assert not graph.notes


def test_unequal_maps_are_refused_by_name(tmp_path: Path) -> None:
    w = QonnxWriter(6, 6)
    a, b = w.conv(w.image, "a", 4), w.conv(w.image, "b", 1)
    w.channels[w.node("Mul", [a, b], "product")] = 4
    with pytest.raises(CompileError, match=r"(?s)product_node.*two maps of one size"):
        load_graph(w.save(tmp_path / "m.onnx", [w.quant("product", "out", 2.0**-4, bits=8, signed=True)]))
