# amaranth: UnusedElaboratable=no
"""Tables: hardware against golden over every input, the front end's functions against PyTorch."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from hw.params import Lanes
from hw.units.table import TableUnit
from sim.run import Case
from sw import golden
from sw.compiler import load_graph
from sw.errors import CompileError
from sw.ops import Table, TensorType
from sw.testing import QonnxWriter


def case(name: str, channels: int, i: Lanes, o: Lanes, pysim: bool = False) -> Case:
    """A random table; every input occurs."""
    rng = np.random.default_rng(len(name))
    values = rng.integers(o.lowest, o.highest + 1, 1 << i.bits)
    x = np.tile(rng.permutation(np.arange(i.lowest, i.highest + 1)), 3 * channels)
    height = len(x) // (3 * channels * 2)
    op = Table(values=values, low=i.lowest, bits=o.bits, signed=o.signed)
    unit = TableUnit(height=height, width=2, channels=channels, values=values.tolist(), i=i, o=o)
    return Case(name=name, unit=unit, op=op, inputs=(x.reshape(3, height, 2, channels),), pysim=pysim)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case("signed", 3, Lanes(lanes=2, bits=4, signed=True), Lanes(lanes=2, bits=8, signed=True), pysim=True),
        case("unsigned", 2, Lanes(lanes=2, bits=8, signed=False), Lanes(lanes=2, bits=5, signed=True)),
        case("whole signed bytes", 1, Lanes(lanes=1, bits=8, signed=True), Lanes(lanes=1, bits=8, signed=False)),
        case("one bit", 5, Lanes(lanes=4, bits=1, signed=False), Lanes(lanes=4, bits=3, signed=True)),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [0] * 15}, "values must be 16 for 4 bits, not 15"),
        ({"values": [9] * 16}, r"values must lie in -4..3, not 9..9"),
        ({"i": Lanes(lanes=2, bits=4, signed=True)}, "i and o must have equal lanes"),
        ({"channels": 0}, "channels must be a positive integer, not 0"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    lanes = Lanes(lanes=1, bits=4, signed=True)
    arguments: dict[str, Any] = {"channels": 2, "values": [0] * 16, "i": lanes, "o": Lanes(lanes=1, bits=3, signed=True)}
    with pytest.raises(ValueError, match=message):
        TableUnit(**(arguments | changes))


def test_a_table_knows_its_input() -> None:
    x = TensorType(height=1, width=1, channels=1, bits=4, signed=False)
    with pytest.raises(ValueError, match="16 values from -8 on does not fit"):
        Table(values=np.arange(16), low=-8, bits=8, signed=True).infer(x)
    with pytest.raises(ValueError, match=r"2\^b with b in 1..8, not 12"):
        Table(values=np.arange(12), low=0, bits=8, signed=True)
    with pytest.raises(ValueError, match=r"values must lie in 0\.\.7"):
        Table(values=np.arange(16), low=0, bits=3, signed=False)


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "HardSwish": functional.hardswish,
    "Gelu": functional.gelu,
    "Erf": torch.erf,
    "LeakyRelu": functional.leaky_relu,
    "Elu": functional.elu,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Mish": functional.mish,
    "HardSigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),  # ONNX's slope, not PyTorch's
}


def lowered(path: Path, op: str, **attributes: Any) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, outputs) of ``op`` on a quantized map, as real numbers; output step 2^-5."""
    w = QonnxWriter(12, 12)
    x = w.conv(w.image, "x", 4, relu=False, out_scale=2.0**-4, gain=32.0)
    w.channels[w.node(op, [x], "y", **attributes)] = 4
    graph = load_graph(w.save(path, [w.quant("y", "out", 2.0**-5, bits=12, signed=True)]))
    assert [n.op.name for n in graph.nodes][-1] == "table"
    values = golden.run(graph, np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3)))
    return values["x"] * 2.0**-4, values["out"] * 2.0**-5


@pytest.mark.parametrize("op", sorted(FUNCTIONS))
def test_functions_are_those_of_torch(op: str, tmp_path: Path) -> None:
    """Float to integer: within half a step of the float64 function, so the nearest; 1e-9 for the libraries' own rounding."""
    x, y = lowered(tmp_path / "m.onnx", op)
    want = FUNCTIONS[op](torch.from_numpy(x)).numpy()
    assert len(np.unique(x)) > 100
    assert np.abs(y - want).max() <= 2.0**-6 + 1e-9


def test_attributes_count(tmp_path: Path) -> None:
    x, y = lowered(tmp_path / "m.onnx", "Gelu", approximate="tanh")
    want = functional.gelu(torch.from_numpy(x), approximate="tanh").numpy()
    assert np.abs(y - want).max() <= 2.0**-6 + 1e-9
    x, y = lowered(tmp_path / "m.onnx", "LeakyRelu", alpha=0.25)
    assert np.abs(y - np.where(x < 0, x / 4, x)).max() <= 2.0**-6


@pytest.mark.parametrize("order", [0, 1])
def test_x_times_sigmoid_is_one_table(order: int, tmp_path: Path) -> None:
    w = QonnxWriter(8, 8)
    x = w.conv(w.image, "x", 4, relu=False, out_scale=2.0**-4)
    w.channels[w.node("Sigmoid", [x], "gate")] = 4
    w.channels[w.node("Mul", [x, "gate"][:: 1 - 2 * order], "silu")] = 4
    graph = load_graph(w.save(tmp_path / "m.onnx", [w.quant("silu", "out", 2.0**-4, bits=8, signed=True)]))
    assert [n.op.name for n in graph.nodes] == ["conv", "requant", "table"]
    values = golden.run(graph, np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)))
    want = functional.silu(torch.from_numpy(values["x"] / 16)).numpy()
    assert np.abs(values["out"] / 16 - want).max() <= 2.0**-5 + 1e-9


def test_a_function_of_an_accumulator_is_refused(tmp_path: Path) -> None:
    w = QonnxWriter(6, 6)
    x = w.conv(w.image, "x", 4, relu=False, out_bits=12)
    w.channels[w.node("Tanh", [x], "y")] = 4
    with pytest.raises(CompileError, match=r"(?s)y_node.*12 bits.*at most 8 bits"):
        load_graph(w.save(tmp_path / "m.onnx", [w.quant("y", "out", 2.0**-5, bits=8, signed=True)]))


def test_a_function_must_be_quantized_before_it_is_used(tmp_path: Path) -> None:
    w = QonnxWriter(6, 6)
    x = w.conv(w.image, "x", 4, relu=False)
    y = w.node("Tanh", [x], "y")
    w.channels[y], w.scales[y] = 4, 0.25
    with pytest.raises(CompileError, match="not quantized"):
        load_graph(w.save(tmp_path / "m.onnx", [w.conv(y, "c", 2)]))
