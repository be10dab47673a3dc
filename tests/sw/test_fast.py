"""The fast golden model gives the golden model's integers, operator by operator and for whole graphs."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from hw.params import Window
from sw import fast, golden
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


@pytest.mark.parametrize("name", CASES)
def test_operator_is_the_golden_one(name: str) -> None:
    op, types = CASES[name]
    inputs = [RNG.integers(t.lowest, t.highest + 1, (3, *t.shape)) for t in types]
    for x, t in zip(inputs, types, strict=True):
        x[0, 0, 0], x[0, -1, -1] = t.lowest, t.highest
    expected = op.golden(*inputs)
    kernel = fast.KERNELS[type(op)](op, types[0])
    for n in range(3):
        found = kernel(*(x[n].astype(np.float32) for x in inputs))
        for mine, theirs in zip(found, expected, strict=True):
            assert np.array_equal(mine, theirs[n])


def test_sums_choose_their_float() -> None:
    assert fast.holding(2**24 - 1) is np.float32 and fast.holding(2**24) is np.float64
    with pytest.raises(CompileError, match="do not fit"):
        fast.holding(2**53)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_whole_network_is_the_golden_one(tmp_path: Path, threads: int) -> None:
    graph = load_graph(micro_network(tmp_path / "micro.onnx"))
    shape = graph.tensors[graph.inputs[0]].type.shape
    images = RNG.integers(0, 256, (5, *shape)).astype(np.uint8)
    expected = golden.run(graph, images, keep=())
    found = fast.FastGolden(graph, threads=threads).run(images)
    assert list(found) == list(graph.outputs)
    for name in graph.outputs:
        assert found[name].dtype == np.int64 and np.array_equal(found[name], expected[name]), name
