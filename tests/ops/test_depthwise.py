# amaranth: UnusedElaboratable=no
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw.params import Lanes, Multiplier, Window
from hw.units.depthwise import DepthwiseUnit
from sim.accelerator import VerilatorAccelerator
from sim.run import Case
from sw.compiler import compile, load_design, load_graph
from sw.errors import CompileError
from sw.ops.base import Array, TensorType
from sw.ops.depthwise import Depthwise
from sw.testing import QonnxWriter
from sw.verify import verify

SAME = Window(kernel=(3, 3), pad=(1, 1, 1, 1))


def depthwise(channels: int, window: Window, weight_bits: int = 4) -> Depthwise:
    rng = np.random.default_rng(channels)
    top = (1 << weight_bits - 1) - 1
    weights = rng.integers(-top, top + 1, (*window.kernel, channels))
    weights[..., 0], weights[..., -1] = top, -top
    return Depthwise(weights=weights, bias=rng.integers(-(1 << 12), 1 << 12, channels), window=window)


def unit(op: Depthwise, height: int, width: int, i: Lanes, **changes: Any) -> DepthwiseUnit:
    channels = op.weights.shape[2]
    (out,) = op.infer(TensorType(height=height, width=width, channels=channels, bits=i.bits, signed=i.signed))
    arguments = {
        "height": height, "width": width, "channels": channels, "window": op.window,
        "weights": op.weights.tolist(), "bias": op.bias.tolist(), "i": i, "o": Lanes(lanes=i.lanes, bits=out.bits, signed=True),
    }  # fmt: skip
    return DepthwiseUnit(**(arguments | changes))


def frames(height: int, width: int, channels: int, i: Lanes, count: int = 4) -> Array:
    """Frames of extremes, then random ones."""
    x: Array = np.random.default_rng(7).integers(i.lowest, i.highest + 1, (count, height, width, channels))
    x[0] = np.random.default_rng(8).choice([i.lowest, i.highest], x[0].shape)
    return x


def case(
    height: int, width: int, channels: int, window: Window, *, lanes: int, bits: int = 8, signed: bool = False, taps: int = 1,
    pysim: bool = False, multiplier: Multiplier = "inferred", weight_bits: int = 4,
) -> Case:  # fmt: skip
    i = Lanes(lanes=lanes, bits=bits, signed=signed)
    op = depthwise(channels, window, weight_bits)
    name = f"{height}x{width}x{channels} by {lanes} {window.kernel} stride {window.stride} {taps} taps {multiplier}"
    made = unit(op, height, width, i, taps=taps, multiplier=multiplier)
    return Case(name=name, unit=made, op=op, inputs=(frames(height, width, channels, i),), pysim=pysim)


@pytest.mark.rtl
def test_units(check_units: Callable[..., None]) -> None:
    check_units([
        case(4, 5, 3, SAME, lanes=2, pysim=True),
        case(8, 8, 4, SAME, lanes=4, signed=True),
        case(7, 6, 5, Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1)), lanes=5),
        case(8, 8, 4, Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1)), lanes=1, bits=4),
        case(9, 7, 3, Window(kernel=(3, 3), dilation=(2, 2), pad=(2, 2, 2, 2)), lanes=2, signed=True),
        case(6, 6, 7, Window(kernel=(3, 3)), lanes=3),
        case(6, 9, 2, Window(kernel=(2, 3), stride=(2, 1), pad=(0, 1, 0, 1)), lanes=1),
        case(5, 5, 6, Window(), lanes=4, signed=True),
        case(6, 6, 6, Window(stride=(2, 2)), lanes=4),
        case(1, 1, 2, SAME, lanes=1),
        case(6, 7, 9, Window(kernel=(5, 5), pad=(2, 2, 2, 2)), lanes=8),
        case(4, 5, 3, SAME, lanes=2, pysim=True, multiplier="dsp48e2"),
        case(5, 4, 5, SAME, lanes=5, signed=True, multiplier="dsp48e2", weight_bits=8),
        case(4, 4, 2, Window(), lanes=1, multiplier="dsp48e2"),
        case(4, 5, 3, SAME, lanes=2, pysim=True, multiplier="mult18x18d"),
        case(5, 4, 5, SAME, lanes=5, signed=True, multiplier="mult18x18d", weight_bits=8),
        case(4, 5, 3, SAME, lanes=2, pysim=True, multiplier="soft"),
        case(5, 4, 5, SAME, lanes=5, signed=True, multiplier="soft", weight_bits=8),
        case(5, 4, 3, SAME, lanes=3, bits=3, multiplier="soft", weight_bits=5),
        case(4, 4, 2, Window(), lanes=1, bits=4, multiplier="soft", weight_bits=2),
    ])  # fmt: skip


def square(k: int, *, stride: int = 1, dilation: int = 1) -> Window:
    return Window(kernel=(k, k), stride=(stride, stride), dilation=(dilation, dilation), pad=(k // 2 * dilation,) * 4)


@pytest.mark.rtl
def test_several_taps_a_cycle(check_units: Callable[..., None]) -> None:
    check_units([
        case(4, 5, 3, SAME, lanes=2, taps=9, pysim=True),
        case(5, 4, 3, SAME, lanes=1, taps=3, pysim=True, signed=True),
        case(8, 8, 1, SAME, lanes=1, taps=9),  # one group: the weights are constants
        case(8, 8, 4, square(3, stride=2), lanes=1, taps=9, bits=4),
        case(8, 7, 5, square(3, stride=2), lanes=3, taps=3),
        case(9, 8, 2, square(5), lanes=1, taps=25, signed=True),
        case(6, 7, 3, square(5, dilation=2), lanes=2, taps=5),
        case(10, 9, 1, square(9, stride=2), lanes=1, taps=9),
        case(6, 6, 2, Window(kernel=(2, 3), pad=(0, 1, 0, 1)), lanes=2, taps=6),
    ])  # fmt: skip


@pytest.mark.rtl
def test_taps_can_be_pinned_in_a_network(tmp_path: Path) -> None:
    """A branch with all taps at once, then a row of them, beside a short one: the FIFO at the join holds what they delay."""
    w = QonnxWriter(8, 8)
    x = w.conv(w.image, "x", 4)
    deep = w.conv(x, "deep", 4, kernel=3, stride=2, depthwise=True, relu=False, out_scale=w.scales[x])
    row = w.conv(deep, "row", 4, kernel=3, depthwise=True, relu=False, out_scale=w.scales[x])
    short = w.conv(x, "short", 4, stride=2, relu=False, out_scale=w.scales[x])
    w.channels[w.node("Add", [short, row], "sum")] = 4
    model = w.save(tmp_path / "m.onnx", [w.quant("sum", "out", w.scales[x] * 2, bits=8, signed=True)])
    names = {n.op.name + n.outputs[0]: n.name for n in load_graph(model).nodes if n.op.name == "depthwise"}
    (deep_name, row_name) = names.values()
    pins = {deep_name: {"lanes_in": 2, "lanes_out": 2, "taps": 9}, row_name: {"lanes_in": 4, "lanes_out": 4, "taps": 3}}
    (tmp_path / "folding.json").write_text(json.dumps(pins))
    compile(model, tmp_path / "compiled", folding=tmp_path / "folding.json", target_cycles=1000)
    accelerator = VerilatorAccelerator(tmp_path / "compiled")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3))
    assert verify(accelerator.graph, images, None, accelerator).record()["mismatches"] == 0
    result = accelerator.run(images)
    assert result.interval == load_design(tmp_path / "compiled")["interval_cycles"]
    with pytest.raises(CompileError, match="taps must be 1, or a row or all"):
        (tmp_path / "folding.json").write_text(json.dumps({deep_name: {"lanes_in": 2, "lanes_out": 2, "taps": 2}}))
        compile(model, tmp_path / "other", folding=tmp_path / "folding.json")


@pytest.mark.rtl
def test_paged_line_buffers_in_a_network(tmp_path: Path) -> None:
    """A max pool and a depthwise convolution of stride 2 behind each other, their line buffers pinned."""
    w = QonnxWriter(16, 24, seed=3)
    x = w.max_pool(w.conv(w.image, "stem", 4, kernel=3), "pool")
    model = w.save(tmp_path / "m.onnx", [w.conv(x, "dw", 4, kernel=3, stride=2, depthwise=True, relu=False)])
    nodes = [n for n in load_graph(model).nodes if n.op.name in ("max_pool", "depthwise")]
    (tmp_path / "folding.json").write_text(json.dumps({n.name: {"lanes_in": 2, "lanes_out": 2, "lines": "paged"} for n in nodes}))
    compile(model, tmp_path / "compiled", folding=tmp_path / "folding.json", target_cycles=4000)
    accelerator = VerilatorAccelerator(tmp_path / "compiled")
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3))
    assert verify(accelerator.graph, images, None, accelerator).record()["mismatches"] == 0
    assert accelerator.run(images).interval == load_design(tmp_path / "compiled")["interval_cycles"]


def test_all_taps_at_once_takes_a_beat_a_cycle() -> None:
    """The second figure's depthwise layer: 9 multiplications a cycle at one channel a beat."""
    for stride in (1, 2):
        wide = unit(depthwise(32, square(3, stride=stride)), 16, 16, Lanes(lanes=1, bits=8, signed=False), taps=9)
        assert (wide.frame_cycles, wide.multipliers) == (16 * 16 * 32, 9)
    row = unit(depthwise(32, SAME), 16, 16, Lanes(lanes=1, bits=8, signed=False), taps=3)
    assert (row.frame_cycles, row.multipliers) == (16 * 16 * 32 * 3, 3)


def test_says_what_it_takes() -> None:
    x = Lanes(lanes=4, bits=8, signed=False)
    assert unit(depthwise(10, SAME), 6, 5, x).frame_cycles == 6 * 5 * 9 * 3
    assert unit(depthwise(10, SAME), 6, 5, x).multipliers == 4
    assert unit(depthwise(10, Window(stride=(2, 2))), 6, 6, x).frame_cycles == 6 * 6 * 3  # bound by its input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": 2}, "taps must be 1, 3 or 9"),
        ({"taps": 9, "o": Lanes(lanes=1, bits=20, signed=True)}, "o must be signed and have 2 lanes"),
        ({"taps": 9, "o": Lanes(lanes=2, bits=3, signed=True)}, "bias must fit 3 bits"),
        ({"bias": [0]}, "bias must have 4 entries, not 1"),
        ({"weights": [[[1] * 4]]}, "weights must be"),
        ({"weights": [[[1] * 3] * 3] * 3}, "weights must be"),
        ({"o": Lanes(lanes=1, bits=20, signed=True)}, "o must be signed and have 2 lanes"),
        ({"o": Lanes(lanes=2, bits=3, signed=True)}, "bias must fit 3 bits"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unit(depthwise(4, SAME), 4, 4, Lanes(lanes=2, bits=8, signed=False), **changes)
