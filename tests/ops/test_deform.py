# amaranth: UnusedElaboratable=no
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from hw.params import Lanes, Window
from hw.units.deform import DeformUnit
from hw.units.depthwise import DepthwiseUnit
from sim.accelerator import VerilatorAccelerator
from sim.run import Case
from sw import golden
from sw.compiler import compile, load_graph
from sw.errors import CompileError
from sw.ops.base import Array, TensorType
from sw.ops.deform import Deform
from sw.ops.upsample import Upsample
from sw.testing import QonnxWriter
from sw.verify import verify


def deform(
    channels: int, frac_bits: int, *, size: int = 3, low: int | None = None, high: int | None = None, base: int | None = None,
    free: bool = False, upsample: int = 1,
) -> Deform:  # fmt: skip
    """CoDeNet's range by default: dilations -7..8."""
    rng = np.random.default_rng(channels)
    weights = rng.integers(-7, 8, (size, size, channels))
    weights[weights == 0] = 3  # a tap without weight would hide its errors
    low, high = -8 << frac_bits if low is None else low, 7 << frac_bits if high is None else high
    bias = rng.integers(-(1 << 14), 1 << 14, channels)
    return Deform(weights=weights, bias=bias, frac_bits=frac_bits, low=low, high=high, base=base, free=free, upsample=upsample)


def unit(op: Deform, height: int, width: int, i: Lanes, offset: Lanes, /, **changes: Any) -> DeformUnit:
    channels = len(op.bias)
    x = TensorType(height=height, width=width, channels=channels, bits=i.bits, signed=i.signed)
    f = op.upsample
    (out,) = op.infer(x, TensorType(height=height * f, width=width * f, channels=op.offsets, bits=offset.bits, signed=offset.signed))
    arguments = {
        "height": height, "width": width, "channels": channels, "weights": op.weights.tolist(), "bias": op.bias.tolist(),
        "frac_bits": op.frac_bits, "low": op.low, "high": op.high, "base": op.base, "free": op.free, "upsample": f, "i": i,
        "offset": offset, "o": Lanes(lanes=i.lanes, bits=out.bits, signed=True),
    }  # fmt: skip
    return DeformUnit(**(arguments | changes))


def offsets(pattern: str, op: Deform, frames: int, height: int, width: int, limits: Lanes) -> Array:
    """Offset maps: "mixed" has extremes in the first two frames and values beyond low..high where the type has them."""
    shape = (frames, height * op.upsample, width * op.upsample, op.offsets)
    rng = np.random.default_rng(11)
    if pattern == "mixed":
        random: Array = rng.integers(limits.lowest, limits.highest + 1, shape)
        random[0] = rng.choice([op.low, op.high], random[0].shape)
        random[1] = rng.choice([op.low, op.low + 1, -1, 0, 1, op.high - 1, op.high], random[1].shape)
        return random
    if pattern == "random":
        return rng.integers(op.low, op.high + 1, shape)
    if pattern == "alternating":
        return np.where(np.indices(shape).sum(axis=0) % 2, op.low, op.high)
    return np.full(shape, {"low": op.low, "high": op.high, "equal": 2}[pattern])


def case(
    height: int, width: int, channels: int, op: Deform, *, lanes: int, signed: bool = False, bits: int | None = None,
    offset_bits: int | None = None, pattern: str = "mixed", frames: int = 4, pysim: bool = False,
) -> Case:  # fmt: skip
    i = Lanes(lanes=lanes, bits=bits or 8, signed=signed)
    offset = Lanes(lanes=1 + op.free, bits=offset_bits or 4 + op.frac_bits, signed=True)
    x = np.random.default_rng(3).integers(i.lowest, i.highest + 1, (frames, height, width, channels))
    x[0] = np.random.default_rng(4).choice([i.lowest, i.highest], x[0].shape)
    dut = unit(op, height, width, i, offset)
    name = f"{height}x{width}x{channels} by {lanes} F={op.frac_bits} {pattern}{' free' * op.free} up {op.upsample}"
    return Case(name=name, unit=dut, op=op, inputs=(x, offsets(pattern, op, frames, height, width, offset)), pysim=pysim)


@pytest.mark.rtl
def test_units(check_units: Callable[..., None]) -> None:
    check_units([
        case(4, 4, 3, deform(3, 1), lanes=2, pysim=True),
        case(4, 4, 2, deform(2, 0), lanes=2, frames=6),
        case(8, 8, 2, deform(2, 2), lanes=2, signed=True),
        case(5, 7, 3, deform(3, 4), lanes=2, signed=True, frames=5),
        case(20, 12, 2, deform(2, 4), lanes=2),
        case(20, 12, 1, deform(1, 0), lanes=1, signed=True),
        case(9, 6, 5, deform(5, 1, low=-5, high=1), lanes=4, offset_bits=8),  # saturates; reach 2, an odd number of half pixels
        case(7, 9, 2, deform(2, 0, low=-2, high=2), lanes=1, bits=4),
        case(6, 6, 1, deform(1, 2, size=5, low=-6, high=5), lanes=1),
        case(5, 6, 2, deform(2, 1, low=-6, high=6, base=0), lanes=2),  # the code is the dilation itself
        case(3, 1, 3, deform(3, 2), lanes=4),
        case(1, 5, 2, deform(2, 0), lanes=1),
        case(4, 5, 3, deform(3, 1, low=-3, high=2, free=True), lanes=2, pysim=True),  # two groups: offsets are kept for the second
        case(7, 6, 2, deform(2, 0, low=-2, high=3, free=True), lanes=2, signed=True),
        case(18, 4, 1, deform(1, 4, low=-50, high=63, free=True), lanes=1),
        case(6, 7, 5, deform(5, 2, size=5, free=True), lanes=2, bits=4),
        case(3, 4, 3, deform(3, 1, upsample=2), lanes=2, pysim=True),  # the ring holds the map before nearest upsampling
        case(4, 3, 2, deform(2, 0, upsample=2), lanes=2, frames=5),
        case(8, 3, 2, deform(2, 3, upsample=2), lanes=1, signed=True),
        case(5, 2, 3, deform(3, 2, low=-4, high=2, upsample=4), lanes=2, frames=5),
        case(1, 1, 2, deform(2, 1, upsample=2), lanes=2),
        case(7, 3, 2, deform(2, 0, low=-2, high=3, free=True, upsample=2), lanes=2),
        case(3, 5, 3, deform(3, 3, low=-20, high=19, free=True, upsample=2), lanes=2, signed=True),
        case(9, 1, 1, deform(1, 1, size=5, low=-3, high=1, upsample=8), lanes=1),
    ])  # fmt: skip


@pytest.mark.rtl
def test_interval_is_the_same_for_every_pattern(check_units: Callable[..., None]) -> None:
    patterns = ["low", "high", "alternating", "random", "equal"]
    cases = [case(8, 6, 1, deform(1, 1, low=-8, high=7), lanes=1, pattern=pattern, frames=3) for pattern in patterns]
    cases += [case(12, 4, 1, deform(1, 0, low=-4, high=3), lanes=1, pattern=pattern, frames=3) for pattern in patterns]
    cases += [case(8, 6, 2, deform(2, 1, low=-8, high=7, free=True), lanes=1, pattern=pattern, frames=3) for pattern in patterns]
    cases += [case(6, 3, 1, deform(1, 3, low=-64, high=63, upsample=2), lanes=1, pattern=pattern, frames=3) for pattern in patterns]
    assert {c.unit.frame_cycles for c in cases[:15]} == {8 * 6 * 9, 12 * 4 * 9, 8 * 6 * 9 * 2}
    assert {c.unit.frame_cycles for c in cases[15:]} == {12 * 6 * 9}
    # The plain unit of the same width at one tap a cycle takes as long: the ratio is 1.
    plain = DepthwiseUnit(
        height=8, width=6, channels=2, window=Window(kernel=(3, 3), pad=(1, 1, 1, 1)), weights=[[[1] * 2] * 3] * 3, bias=[0] * 2,
        i=Lanes(lanes=1, bits=8, signed=False), o=Lanes(lanes=1, bits=20, signed=True),
    )  # fmt: skip
    assert cases[14].unit.frame_cycles == plain.frame_cycles
    check_units(cases)


@pytest.mark.parametrize("frac_bits", [0, 1, 4])
@pytest.mark.parametrize("size", [3, 5])
def test_free_offsets_are_those_of_onnx(size: int, frac_bits: int) -> None:
    """Golden against onnx.reference's DeformConv in float64, where all products are exact."""
    infos = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in ("x", "w", "d", "y")]
    node = helper.make_node("DeformConv", ["x", "w", "d"], ["y"], group=2, kernel_shape=[size] * 2, pads=[size // 2] * 4)
    model = helper.make_model(helper.make_graph([node], "g", infos[:3], infos[3:]), opset_imports=[helper.make_opsetid("", 19)])
    op = replace(deform(2, frac_bits, size=size, free=True), bias=np.zeros(2, np.int64))
    rng = np.random.default_rng(size)
    x, codes = rng.integers(-128, 128, (1, 5, 6, 2)), rng.integers(op.low, op.high + 1, (1, 5, 6, op.offsets))
    feeds = {
        "x": x.transpose(0, 3, 1, 2).astype(np.float64), "w": op.weights.transpose(2, 0, 1)[:, None].astype(np.float64),
        "d": codes.transpose(0, 3, 1, 2) * 2.0**-frac_bits,
    }  # fmt: skip
    want = next(iter(ReferenceEvaluator(model).run(None, feeds))).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(op.golden(x, codes)[0], want * 4**frac_bits)
    beyond = np.where(codes > 0, codes + 999, codes - 999)  # saturates
    np.testing.assert_array_equal(op.golden(x, beyond)[0], op.golden(x, np.where(codes > 0, op.high, op.low))[0])


@pytest.mark.parametrize(("frac_bits", "upsample", "free"), [(0, 2, False), (3, 2, False), (2, 4, False), (1, 2, True), (0, 8, True)])
def test_upsampling_inside_is_upsampling_before(frac_bits: int, upsample: int, free: bool) -> None:
    """Golden with every offset code there is: random ones, and each code over a whole map, so that both ends meet every border."""
    plain = deform(3, frac_bits, free=free)
    rng = np.random.default_rng(upsample)
    x = rng.integers(-128, 128, (1, 3, 4, 3))
    shape = (1, 3 * upsample, 4 * upsample, plain.offsets)
    inside, large = replace(plain, upsample=upsample), Upsample(factor=upsample).golden(x)[0]
    for codes in [rng.integers(plain.low - 3, plain.high + 4, shape), *(np.full(shape, c) for c in range(plain.low, plain.high + 1))]:
        np.testing.assert_array_equal(inside.golden(x, codes)[0], plain.golden(large, codes)[0])


def free_network(path: Path) -> Path:
    w = QonnxWriter(8, 8)
    x = w.conv(w.image, "x", 4, kernel=3)
    offsets = w.conv(x, "o", 18, relu=False, clip=(-2.0, 1.75), out_bits=5, out_scale=2.0**-2, gain=64.0)
    weight = w.quant(w.constant("w", w.rng.integers(-7, 8, (4, 1, 3, 3))), "wq", 1.0, bits=4, signed=True)
    w.channels[w.node("DeformConv", [x, weight, offsets], "raw", kernel_shape=[3, 3], pads=[1] * 4, group=4)] = 4
    return w.save(path, [w.quant("raw", "out", w.scales[x] * 16, bits=8, signed=True)])


@pytest.mark.rtl
def test_free_offsets_lower_to_verilog(tmp_path: Path) -> None:
    compile(free_network(tmp_path / "m.onnx"), tmp_path / "compiled", target_cycles=4000)
    accelerator = VerilatorAccelerator(tmp_path / "compiled")
    op = next(n.op for n in accelerator.graph.nodes if n.op.name == "deform")
    assert isinstance(op, Deform) and (op.free, op.low, op.high, op.frac_bits) == (True, -8, 7, 2)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3))
    assert len(np.unique(golden.run(accelerator.graph, images)["o"])) > 8
    assert verify(accelerator.graph, images, None, accelerator).record()["mismatches"] == 0


def test_free_offsets_must_be_two_a_tap(tmp_path: Path) -> None:
    w = QonnxWriter(8, 8)
    x, offsets = w.conv(w.image, "x", 4), w.conv(w.image, "o", 9, relu=False)
    weight = w.quant(w.constant("w", np.ones((4, 1, 3, 3))), "wq", 1.0, bits=4, signed=True)
    w.channels[w.node("DeformConv", [x, weight, offsets], "raw", kernel_shape=[3, 3], pads=[1] * 4, group=4)] = 4
    with pytest.raises(CompileError, match=r"(?s)offsets have 9 channels.*18 channels"):
        load_graph(w.save(tmp_path / "m.onnx", [w.quant("raw", "out", 0.5, bits=8, signed=True)]))


def test_says_what_it_takes() -> None:
    x, offset, offset7 = Lanes(lanes=4, bits=8, signed=False), *(Lanes(lanes=1, bits=b, signed=True) for b in (5, 7))
    tall, low = unit(deform(6, 1), 32, 32, x, offset), unit(deform(6, 1), 4, 4, x, offset)
    assert (tall.gather.rows, low.gather.rows) == (18, 8)
    assert tall.frame_cycles == 32 * 32 * 9 * 2
    assert tall.multipliers == 4
    # CoDeNet's second decoder layer: 256 channels, 8x8 upsampled to 16x16. Bits of the ring with the large and with the small map.
    large, small = unit(deform(256, 3), 16, 16, x, offset7), unit(deform(256, 3, upsample=2), 8, 8, x, offset7)
    assert [u.gather.rows * u.gather.bank_line * 2 * x.width for u in (large, small)] == [589824, 163840]
    assert large.frame_cycles == small.frame_cycles == 16 * 16 * 9 * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": [0]}, "bias must have 4 entries, not 1"),
        ({"weights": [[[1] * 4] * 2] * 3}, r"weights must be \(K, K, C\)"),
        ({"weights": [[[1] * 4] * 2] * 2}, "kernel size must be odd and at least 3, not 2"),
        ({"frac_bits": 5}, "frac_bits must be in 0..4, not 5"),
        ({"upsample": 3}, "upsample must be a power of two, not 3"),
        ({"low": 9, "high": 8}, "low must be at most high"),
        ({"offset": Lanes(lanes=2, bits=5, signed=True)}, "offset must have one lane, not 2"),
        ({"free": True}, "offset must have two lanes, not 1"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unit(deform(4, 1), 4, 4, Lanes(lanes=2, bits=8, signed=False), Lanes(lanes=1, bits=5, signed=True), **changes)
