"""The fast golden model gives the golden model's integers, operator by operator and for whole graphs."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from hw.params import Window
from sw import fast, fast_native, golden
from sw.compiler import load_graph
from sw.errors import CompileError
from sw.ops import Array, Concat, Conv, Deform, Depthwise, MaxPool, Op, Requant, Split, TensorType, Upsample
from sw.testing import micro_network

RNG = np.random.default_rng(5)


def some(*shape: int, low: int = -7, high: int = 7) -> Array:
    return RNG.integers(low, high + 1, shape)


def kind(channels: int = 6, bits: int = 8, signed: bool = False) -> TensorType:
    return TensorType(height=7, width=5, channels=channels, bits=bits, signed=signed)


WINDOW = Window(kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1))
OFFSET = TensorType(height=7, width=5, channels=1, bits=6, signed=True)
ROUNDINGS: tuple[tuple[Literal["half_up", "half_even", "floor"], int, int], ...] = (
    ("half_up", 0, 255), ("half_even", -128, 127), ("floor", -128, 100),
)  # fmt: skip
REQUANT: dict[str, Any] = {"multiplier": some(6, low=2**15, high=2**16 - 1) | 1, "shift": some(6, low=17, high=24), "bits": 8}
CASES: dict[str, tuple[Op, list[TensorType]]] = {
    "point": (Conv(weights=some(4, 1, 1, 6), bias=some(4, high=999)), [kind()]),
    "dense": (Conv(weights=some(4, 3, 3, 6), bias=some(4), window=WINDOW), [kind(signed=True)]),
    "dense in float64": (Conv(weights=some(4, 3, 3, 6, low=-(2**15), high=2**15), bias=some(4), window=WINDOW), [kind(bits=16)]),
    "depthwise": (Depthwise(weights=some(3, 3, 6), bias=some(6), window=WINDOW), [kind(signed=True)]),
    "rounded": (Deform(weights=some(3, 3, 6), bias=some(6), frac_bits=0, low=-8, high=7), [kind(), OFFSET]),
    "bilinear": (Deform(weights=some(3, 3, 6), bias=some(6), frac_bits=2, low=-32, high=31), [kind(), OFFSET]),
    "wide": (Deform(weights=some(5, 5, 6), bias=some(6), frac_bits=3, low=-20, high=31, base=0), [kind(bits=16), OFFSET]),
    "upsampled": (
        Deform(weights=some(3, 3, 6), bias=some(6), frac_bits=2, low=-32, high=31, upsample=2),
        [kind(), replace(OFFSET, height=14, width=10)],
    ),
    "free": (
        Deform(weights=some(3, 3, 6), bias=some(6), frac_bits=2, low=-32, high=31, free=True),
        [kind(), TensorType(height=7, width=5, channels=18, bits=6, signed=True)],
    ),
    **{
        f"requant {rounding}": (Requant(low=low, high=high, signed=low < 0, rounding=rounding, **REQUANT), [kind(bits=22, signed=True)])
        for rounding, low, high in ROUNDINGS
    },
    "requant of ties": (
        Requant(multiplier=np.array([1, 3, -1, 5, 7, 1]), shift=np.array([1, 2, 1, 3, 1, 2]), low=-128, high=127, bits=8, signed=True),
        [kind(bits=6, signed=True)],
    ),
    "max pool": (MaxPool(window=WINDOW), [kind(signed=True)]),
    "concat": (Concat(), [kind(2), kind(5)]),
    "interleave": (Concat(interleave=True), [kind(3), kind(3)]),
    "split": (Split(sizes=(2, 4)), [kind()]),
    "upsample": (Upsample(factor=2), [kind()]),
}
#: Where float32 is too short, or moving memory is all there is to do.
BY_NUMPY_ALONE = {"dense in float64", "wide", "concat", "split"}


@pytest.mark.parametrize("name", CASES)
def test_operator_is_the_golden_one(name: str) -> None:
    op, types = CASES[name]
    inputs = [RNG.integers(t.lowest, t.highest + 1, (3, *t.shape)) for t in types]
    for x, t in zip(inputs, types, strict=True):
        x[0, 0, 0], x[0, -1, -1] = t.lowest, t.highest
    expected = op.golden(*inputs)
    native = fast.native_kernel(op, types)
    assert (native is None) == (name in BY_NUMPY_ALONE)
    for kernel in (fast.KERNELS[type(op)](op, types[0]), *([] if native is None else [native])):
        for n in range(3):
            found = kernel(*(x[n].astype(np.float32) for x in inputs))
            for mine, theirs in zip(found, expected, strict=True):
                assert np.array_equal(mine, theirs[n])


#: Sums in which every channel of an odd number has blocks of 64, 48, 32 and 16, pieces of blocks, or less than one.
WIDTHS = (3, 16, 21, 40, 58, 130)


@pytest.mark.parametrize("rounding", ["half_up", "half_even", "floor"])
@pytest.mark.parametrize("channels", WIDTHS)
def test_sums_and_requantizers_as_one_step(channels: int, rounding: Literal["half_up", "half_even", "floor"]) -> None:
    """Weights that lie transposed in memory, inputs that are parts of wider maps."""
    signed, outputs = rounding != "half_up", 9
    sums: list[tuple[Op, int]] = [
        (Conv(weights=some(outputs, 1, 1, channels), bias=some(outputs, high=999)), outputs),
        (Conv(weights=some(outputs, 3, 3, channels), bias=some(outputs), window=WINDOW), outputs),
        (Depthwise(weights=some(channels, 3, 3).transpose(1, 2, 0), bias=some(channels), window=WINDOW), channels),
        (Deform(weights=some(channels, 3, 3).transpose(1, 2, 0), bias=some(channels), frac_bits=2, low=-32, high=31), channels),
    ]
    for op, wide in sums:
        types = [kind(channels, signed=signed), *([OFFSET] if isinstance(op, Deform) else [])]
        low, high = (-128, 127) if signed else (0, 255)
        scale = {"multiplier": some(wide, low=2**15, high=2**16 - 1) | 1, "shift": some(wide, low=20, high=27)}
        requant = Requant(low=low, high=high, bits=8, signed=signed, rounding=rounding, **scale)
        inputs = [RNG.integers(t.lowest, t.highest + 1, t.shape) for t in types]
        (acc,) = op.golden(*(x[None] for x in inputs))
        (expected,) = requant.golden(acc)
        kernel = fast.native_kernel(op, types, requant)
        assert kernel is not None
        wider = np.concatenate([inputs[0], inputs[0] + 1], axis=2).astype(np.float32)
        for x in (inputs[0].astype(np.float32), wider[:, :, :channels], inputs[0].astype(np.float64)):
            (found,) = kernel(x, *(each.astype(np.float32) for each in inputs[1:]))
            assert np.array_equal(found, expected[0]), type(op)


def test_sums_choose_their_float() -> None:
    assert fast.holding(2**24 - 1) is np.float32 and fast.holding(2**24) is np.float64
    with pytest.raises(CompileError, match="do not fit"):
        fast.holding(2**53)


@pytest.mark.parametrize(("threads", "native"), [(1, True), (3, True), (2, False)])
def test_a_whole_network_is_the_golden_one(tmp_path: Path, threads: int, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(fast_native, "code", lambda: None)
    graph = load_graph(micro_network(tmp_path / "micro.onnx"))
    shape = graph.tensors[graph.inputs[0]].type.shape
    images = RNG.integers(0, 256, (5, *shape)).astype(np.uint8)
    expected = golden.run(graph, images, keep=())
    made = fast.FastGolden(graph, threads=threads)
    assert (len(made.steps) < len(graph.nodes)) == native
    found = made.run(images)
    assert list(found) == list(graph.outputs)
    for name in graph.outputs:
        assert found[name].dtype == np.int64 and np.array_equal(found[name], expected[name]), name
