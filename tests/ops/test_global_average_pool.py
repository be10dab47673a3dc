# amaranth: UnusedElaboratable=no
"""Global average pooling: hardware against golden, and the front end that leads to it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw.params import Lanes
from hw.units.global_average_pool import GlobalAveragePoolUnit
from sim.run import Case
from sw import golden
from sw.compiler import load_graph
from sw.errors import CompileError
from sw.ops import GlobalAveragePool, TensorType
from sw.testing import QonnxWriter


def case(height: int, width: int, channels: int, i: Lanes, pysim: bool = False) -> Case:
    rng = np.random.default_rng(height)
    x = rng.integers(i.lowest, i.highest + 1, (5, height, width, channels))
    x[0], x[1] = i.highest, i.lowest
    (out,) = GlobalAveragePool().infer(TensorType(height=height, width=width, channels=channels, bits=i.bits, signed=i.signed))
    unit = GlobalAveragePoolUnit(
        height=height, width=width, channels=channels, i=i, o=Lanes(lanes=i.lanes, bits=out.bits, signed=out.signed)
    )
    return Case(name=f"{height}x{width}x{channels} by {i.lanes}", unit=unit, op=GlobalAveragePool(), inputs=(x,), pysim=pysim)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case(3, 4, 3, Lanes(lanes=2, bits=8, signed=False), pysim=True),
        case(4, 4, 13, Lanes(lanes=2, bits=8, signed=True)),  # seven groups: the sums lie in a memory
        case(1, 1, 3, Lanes(lanes=1, bits=4, signed=True)),
        case(5, 3, 4, Lanes(lanes=4, bits=2, signed=False)),
    ])  # fmt: skip


@pytest.mark.parametrize("op", ["GlobalAveragePool", "ReduceMean"])
def test_means_are_exact(op: str, tmp_path: Path) -> None:
    w = QonnxWriter(6, 6)
    x = w.conv(w.image, "x", 4, out_scale=2.0**-4)
    inputs = [x] if op == "GlobalAveragePool" else [x, w.constant("axes", [2, 3], np.int64)]
    w.channels[w.node(op, inputs, "y")] = 4
    graph = load_graph(w.save(tmp_path / "m.onnx", [w.quant("y", "out", 2.0**-6, bits=10, signed=False)]))
    values = golden.run(graph, np.random.default_rng(0).integers(0, 256, (9, 6, 6, 3)))
    sums = values["x"].sum(axis=(1, 2), keepdims=True)
    np.testing.assert_array_equal(values["out"], (sums * 8 + 36) // 72)  # of 4·sum / 36; a ninth has no ties
    assert any("still rounded as by the true quotient" in n for n in graph.notes)


def test_other_reductions_are_refused(tmp_path: Path) -> None:
    w = QonnxWriter(6, 6)
    x = w.conv(w.image, "x", 4)
    w.channels[w.node("ReduceMean", [x, w.constant("axes", [1], np.int64)], "y")] = 4
    with pytest.raises(CompileError, match=r"(?s)axes \[1\].*rows and columns"):
        load_graph(w.save(tmp_path / "m.onnx", [w.quant("y", "out", 2.0**-6, bits=8, signed=False)]))


def test_refuses() -> None:
    i, o = Lanes(lanes=1, bits=8, signed=False), Lanes(lanes=1, bits=9, signed=False)
    with pytest.raises(ValueError, match="hold sums of 12 values"):
        GlobalAveragePoolUnit(height=3, width=4, channels=2, i=i, o=o)
    with pytest.raises(ValueError, match="must be positive"):
        GlobalAveragePoolUnit(height=3, width=0, channels=2, i=i, o=o)
