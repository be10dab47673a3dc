# amaranth: UnusedElaboratable=no
"""Image input: hardware against golden; zero padding in a network, in Verilog with the other new operators."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw.params import Lanes
from hw.units.image import ImageUnit
from sim.accelerator import VerilatorAccelerator
from sim.run import Case
from sw.compiler import compile
from sw.ops import Image, TensorType
from sw.testing import QonnxWriter
from sw.verify import verify

BYTES = Lanes(lanes=3, bits=8, signed=False)


def case(name: str, height: int, width: int, op: Image, i: Lanes = BYTES, channels: int = 3, pysim: bool = False) -> Case:
    x = np.random.default_rng(len(name)).integers(i.lowest, i.highest + 1, (4, height, width, channels))
    unit = ImageUnit(height=height, width=width, channels=channels, order=op.order, pad=op.pad, i=i)
    return Case(name=name, unit=unit, op=op, inputs=(x,), pysim=pysim)


@pytest.mark.rtl
def test_units_equal_golden(check_units: Any) -> None:
    check_units([
        case("as it is", 2, 3, Image()),
        case("blue first", 3, 4, Image(order="bgr"), pysim=True),
        case("black around", 3, 4, Image(order="bgr", pad=(1, 2, 3, 1))),
        case("black below", 2, 5, Image(pad=(0, 0, 2, 0))),
        case("a map of bytes", 3, 2, Image(pad=(2, 1, 0, 1)), Lanes(lanes=2, bits=8, signed=True), channels=5),
        case("spare lanes", 2, 2, Image(order="bgr", pad=(0, 1, 0, 0)), Lanes(lanes=4, bits=8, signed=False)),
    ])  # fmt: skip


def test_golden_is_what_it_says() -> None:
    x = np.arange(12).reshape(1, 2, 2, 3)
    (y,) = Image(order="bgr", pad=(1, 0, 0, 2)).golden(x)
    assert y.shape == (1, 3, 4, 3)
    assert y[0, 1, 0].tolist() == [2, 1, 0] and y[0, 2, 1].tolist() == [11, 10, 9]
    assert not y[0, 0].any() and not y[0, :, 2:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad": (0, -1, 0, 0)}, "pad must not be negative"),
        ({"order": "grb"}, "order must be rgb or bgr, not 'grb'"),
        ({"order": "bgr", "i": Lanes(lanes=1, bits=8, signed=False)}, "order bgr needs 3 channels in a beat"),
        ({"width": 0}, "must be positive"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"height": 2, "width": 2, "i": BYTES}
    with pytest.raises(ValueError, match=message):
        ImageUnit(**(arguments | changes))
    with pytest.raises(ValueError, match="has 3 channels, not 4"):
        Image(order="bgr").infer(TensorType(height=2, width=2, channels=4, bits=8, signed=False))


def network(path: Path) -> Path:
    """Pad, a gate of sigmoids, means over windows and over the map."""
    w = QonnxWriter(9, 8)
    pads = w.constant("pads", [0, 0, 0, 1, 0, 0, 1, 1], np.int64)
    x = w._moved(w.image, w.node("Pad", [w.image, pads], "padded"), 3)
    x = w.conv(x, "x", 6, kernel=3, relu=False, out_scale=2.0**-4)
    w.channels[w.node("Sigmoid", [w.conv(x, "gate", 6, relu=False, out_scale=2.0**-5)], "open")] = 6
    gate = w.quant("open", "open_q", 2.0**-8, bits=8, signed=False)
    w.channels[w.node("Mul", [x, gate], "gated")] = 6
    x = w.quant("gated", "gated_q", 2.0**-4, bits=8, signed=True)
    w.channels[w.node("AveragePool", [x], "halved", kernel_shape=[2, 2], strides=[2, 2])] = 6
    x = w.quant("halved", "halved_q", 2.0**-4, bits=8, signed=True)
    w.channels[w.node("GlobalAveragePool", [x], "mean")] = 6
    return w.save(path, [w.quant("mean", "out", 2.0**-6, bits=10, signed=True)])


@pytest.mark.rtl
def test_a_network_of_the_new_operators_in_verilog(tmp_path: Path) -> None:
    compile(network(tmp_path / "m.onnx"), tmp_path / "compiled", target_cycles=3000)
    accelerator = VerilatorAccelerator(tmp_path / "compiled")
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 8, 3))
    record = verify(accelerator.graph, images, None, accelerator).record()
    names = {n.op.name for n in accelerator.graph.nodes}
    assert {"image", "table", "multiply", "average_pool", "global_average_pool"} <= names
    assert record["mismatches"] == 0 and {"padded", "open_q", "gated", "halved", "mean"} <= {r["tensor"] for r in record["tensors"]}
