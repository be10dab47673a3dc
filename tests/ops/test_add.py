# amaranth: UnusedElaboratable=no
"""Add: hardware against golden, and the front end that leads to it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw.params import Lanes
from hw.units.add import AddUnit
from sim.accelerator import VerilatorAccelerator
from sim.run import Case
from sw import golden
from sw.compiler import compile, load_graph
from sw.errors import CompileError
from sw.ops import Add, TensorType
from sw.testing import QonnxWriter
from sw.verify import verify


def case(name: str, channels: int, lanes: Lanes, size: tuple[int, int] = (2, 3), pysim: bool = False) -> Case:
    """Extremes in the first frame, random ones after it."""
    rng = np.random.default_rng(len(name))
    shape = (3, *size, channels)
    inputs = tuple(rng.integers(lanes.lowest, lanes.highest + 1, shape) for _ in range(2))
    for x in inputs:
        x[0] = rng.choice([lanes.lowest, lanes.highest], x[0].shape)
    unit = AddUnit(height=size[0], width=size[1], channels=channels, i=lanes)
    return Case(name=name, unit=unit, op=Add(), inputs=inputs, pysim=pysim)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case("signed", 5, Lanes(lanes=2, bits=8, signed=True), pysim=True),
        case("unsigned", 4, Lanes(lanes=4, bits=8, signed=False)),
        case("narrow", 3, Lanes(lanes=1, bits=2, signed=True), size=(1, 1)),
    ])  # fmt: skip


def test_unequal_maps_are_refused() -> None:
    a = TensorType(height=2, width=2, channels=3, bits=8, signed=True)
    with pytest.raises(ValueError, match="must agree"):
        Add().infer(a, TensorType(height=2, width=2, channels=3, bits=8, signed=False))


def residual(path: Path, scales: tuple[float, float]) -> Path:
    """Two branches, added, ReLU, requantized."""
    w = QonnxWriter(6, 6)
    a = w.conv(w.image, "a", 4, relu=False, out_scale=scales[0])
    b = w.conv(w.image, "b", 4, relu=False, out_scale=scales[1])
    w.channels[w.node("Add", [a, b], "sum")] = 4
    w.channels[w.node("Relu", ["sum"], "rectified")] = 4
    return w.save(path, [w.quant("rectified", "out", 2.0**-3, bits=8, signed=False)])


@pytest.mark.parametrize("scales", [(2.0**-4, 2.0**-4), (2.0**-5, 2.0**-4)])
def test_a_residual_lowers_and_is_exact(tmp_path: Path, scales: tuple[float, float]) -> None:
    graph = load_graph(residual(tmp_path / "m.onnx", scales))
    values = golden.run(graph, np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3)))
    a, b = values["a"], values["b"]
    if scales[0] != scales[1]:
        a = np.clip(np.rint(a / 2), -128, 127)  # requantized to the coarser scale, half to even, and listed
        assert any("requantized" in n for n in graph.notes)
    np.testing.assert_array_equal(values["out"], np.clip(np.rint((a + b) / 2), 0, 255))


def test_a_sum_must_be_quantized_before_it_is_multiplied(tmp_path: Path) -> None:
    w = QonnxWriter(6, 6)
    a, b = (w.conv(w.image, name, 4, relu=False, out_scale=0.25) for name in "ab")
    total = w.node("Add", [a, b], "sum")
    w.channels[total], w.scales[total] = 4, 0.25
    with pytest.raises(CompileError, match="not quantized"):
        load_graph(w.save(tmp_path / "m.onnx", [w.conv(total, "c", 2)]))


@pytest.mark.rtl
def test_a_residual_in_verilog(tmp_path: Path) -> None:
    """One branch has a line buffer: the other waits for it at the join."""
    w = QonnxWriter(8, 8)
    x = w.conv(w.image, "x", 4)
    deep = w.conv(x, "deep", 4, kernel=3, depthwise=True, relu=False, out_scale=w.scales[x])
    short = w.conv(x, "short", 4, relu=False, out_scale=w.scales[x])
    w.channels[w.node("Add", [short, deep], "sum")] = 4
    compile(w.save(tmp_path / "m.onnx", [w.quant("sum", "out", w.scales[x] * 2, bits=8, signed=True)]), tmp_path / "compiled")
    accelerator = VerilatorAccelerator(tmp_path / "compiled")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3))
    record = verify(accelerator.graph, images, None, accelerator).record()
    assert record["mismatches"] == 0 and "sum" in {r["tensor"] for r in record["tensors"]}
