# amaranth: UnusedElaboratable=no
"""Average pooling: hardware against golden, the divisor's rounding against exact fractions and PyTorch."""
from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from hw.params import Lanes, Window
from hw.units.average_pool import AveragePoolUnit
from sim.run import Case
from sw import golden
from sw.compiler import load_graph
from sw.errors import CompileError
from sw.frontends.scales import differing, dyadic
from sw.ops import AveragePool, TensorType
from sw.testing import QonnxWriter

TWO = Window(kernel=(2, 2), stride=(2, 2))
THREE = Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1))


def case(height: int, width: int, channels: int, window: Window, i: Lanes, pysim: bool = False) -> Case:
    rng = np.random.default_rng(height)
    x = rng.integers(i.lowest, i.highest + 1, (4, height, width, channels))
    x[0], x[1] = i.highest, i.lowest
    op = AveragePool(window=window)
    (out,) = op.infer(TensorType(height=height, width=width, channels=channels, bits=i.bits, signed=i.signed))
    o = Lanes(lanes=i.lanes, bits=out.bits, signed=out.signed)
    unit = AveragePoolUnit(height=height, width=width, channels=channels, window=window, i=i, o=o)
    return Case(name=f"{height}x{width}x{channels} {window.kernel}", unit=unit, op=op, inputs=(x,), pysim=pysim)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case(4, 4, 3, TWO, Lanes(lanes=2, bits=8, signed=False), pysim=True),
        case(7, 5, 4, THREE, Lanes(lanes=4, bits=8, signed=True)),
        case(6, 6, 5, Window(kernel=(3, 3), pad=(1, 1, 1, 1)), Lanes(lanes=3, bits=4, signed=True)),
        case(5, 7, 1, Window(kernel=(2, 5), stride=(1, 2)), Lanes(lanes=1, bits=2, signed=False)),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "scale", "note"),
    [(2, 2.0**-4, None), (3, 2.0**-4, "every one"), (3, 2.0**-5, "every one"), (6, 2.0**-3, "differ by 1"), (7, 2.0**-4, "every one")],
)
def test_the_divisor_goes_into_the_multiplier(kernel: int, scale: float, note: str | None, tmp_path: Path) -> None:
    """Against PyTorch's mean in float64, which is exact enough to round; ties may differ where the note says so."""
    w = QonnxWriter(12, 12)
    x = w.conv(w.image, "x", 4, out_scale=2.0**-4)
    w.channels[w.node("AveragePool", [x], "y", kernel_shape=[kernel] * 2, strides=[kernel - 1] * 2)] = 4
    graph = load_graph(w.save(tmp_path / "m.onnx", [w.quant("y", "out", scale, bits=8, signed=False)]))
    values = golden.run(graph, np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3)))
    mean = functional.avg_pool2d(torch.from_numpy(values["x"].transpose(0, 3, 1, 2) / 16.0), kernel, kernel - 1)
    want = np.clip(np.rint(np.round(mean.numpy().transpose(0, 2, 3, 1) / scale, 9)), 0, 255)
    off = np.abs(values["out"] - want)
    notes = [n for n in graph.notes if "out" in n]
    if note is None:
        assert not notes and not off.any()
    else:
        assert note in notes[0]
        assert off.max() <= ("differ" in note)


def test_padding_that_counts_is_lowered_and_other_padding_refused(tmp_path: Path) -> None:
    for count in (1, 0):
        w = QonnxWriter(6, 6)
        x = w.conv(w.image, "x", 2)
        attributes: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4, "count_include_pad": count}
        w.channels[w.node("AveragePool", [x], "y", **attributes)] = 2
        path = w.save(tmp_path / "m.onnx", [w.quant("y", "out", 2.0**-4, bits=8, signed=False)])
        if count:
            assert "average_pool" in {n.op.name for n in load_graph(path).nodes}
        else:
            with pytest.raises(CompileError, match="count_include_pad 1"):
                load_graph(path)


@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("divisor", [3, 5, 9, 18, 25, 49])
def test_differing_counts_what_differs(divisor: int, floor: bool) -> None:
    """Against exact fractions, one by one; a rounded multiplier is right but where the quotient is a tie (or whole, with floor)."""
    ratio = Fraction(1, divisor)
    m, s, exact = dyadic(ratio)
    assert not exact
    wrong = []
    for acc in range(-1000, 1001):
        true = (ratio * acc).__floor__() if floor else round(ratio * acc)
        if min(max(true, -60), 90) != min(max(acc * m + (0 if floor else 1 << s - 1) >> s, -60), 90):
            wrong.append(acc)
    assert differing(ratio, m, s, (-1000, 1000), (-60, 90), floor=floor) == len(wrong)
    if not floor:
        assert bool(wrong) == (divisor % 2 == 0)


def test_refuses() -> None:
    i = Lanes(lanes=2, bits=8, signed=False)
    with pytest.raises(ValueError, match="hold sums of 4 values"):
        AveragePoolUnit(height=4, width=4, channels=2, window=TWO, i=i, o=Lanes(lanes=2, bits=9, signed=False))
