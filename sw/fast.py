"""The golden model at speed: the same integers as ``sw.golden``, held in floats so that BLAS and vector units do the work.

Every value is an integer of float32 where all that is added up stays below 2^24, else of float64 below 2^53: both are exact, whatever
the order of the sum (DESIGN.md section 3). Images run beside each other in threads, which NumPy lets run freely, each with a
single-threaded BLAS: a map of one image stays in its core's cache. Products of convolutions go through BLAS; the rest is compiled
(``sw.fast_native``), a sum and the requantization behind it as one. Without a compiler, and where float32 is too short, NumPy does it;
operators without a fast form run as the golden model has them.
"""
from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController, threadpool_info

from sw import fast_native
from sw.errors import CompileError
from sw.golden import check_images
from sw.graph import Graph, Node
from sw.ops import Array, Concat, Conv, Deform, Depthwise, MaxPool, Op, Requant, Split, TensorType, Upsample
from sw.ops.windows import windows

#: Integers in float32 or float64, one image (H, W, C).
Floats = npt.NDArray[np.floating[Any]]
#: Maps of one image to maps of one image.
Kernel = Callable[..., tuple[Floats, ...]]
#: Bits of an integer that each type holds exactly, sign apart.
SINGLE, DOUBLE = 24, 53


def holding(largest: int) -> type[np.floating[Any]]:
    """The float in which integers up to ``largest`` in magnitude, and their partial sums, are exact."""
    if largest >= 1 << DOUBLE:
        raise CompileError(f"sums of up to {largest} do not fit the exact range of float64")
    return np.float32 if largest < 1 << SINGLE else np.float64


def _reach(x: TensorType, weights: Array, bias: Array, gain: int = 1) -> int:
    """Greatest magnitude of any partial sum; ``weights`` (outputs, products)."""
    largest = max(-x.lowest, x.highest)
    return int((np.abs(weights).sum(1, dtype=np.int64) * largest * gain + np.abs(bias)).max())


def blas() -> str:
    """The library behind NumPy's products and the kind of its kernels (OpenBLAS: set OPENBLAS_CORETYPE to choose)."""
    found = [f"{each['internal_api']} {each.get('architecture', '')}" for each in threadpool_info() if each["user_api"] == "blas"]
    return ", ".join(dict.fromkeys(found))


def _conv(op: Conv, x: TensorType) -> Kernel:
    flat = op.weights.reshape(len(op.weights), -1)
    dtype = holding(_reach(x, flat, op.bias))
    weights, bias = np.ascontiguousarray(flat.T.astype(dtype)), op.bias.astype(dtype)
    plain = op.window.kernel == (1, 1) and op.window.stride == (1, 1) and not any(op.window.pad)

    def run(image: Floats) -> tuple[Floats, ...]:
        cut = image if plain else windows(image[None], op.window)[0]  # type: ignore[arg-type]
        rows = np.ascontiguousarray(cut, dtype=dtype).reshape(-1, len(weights))
        acc = rows @ weights
        acc += bias
        return (acc.reshape(*cut.shape[:2], -1),)

    return run


def _depthwise(op: Depthwise, x: TensorType) -> Kernel:
    channels = op.weights.shape[2]
    dtype = holding(_reach(x, op.weights.reshape(-1, channels).T, op.bias))
    taps = op.weights.reshape(-1, channels).astype(dtype)

    def run(image: Floats) -> tuple[Floats, ...]:
        cut = windows(image.astype(dtype, copy=False)[None], op.window)[0]
        acc = np.empty((*cut.shape[:2], channels), dtype)
        acc[...] = op.bias
        product = np.empty_like(acc)
        for k, tap in enumerate(taps):
            np.multiply(cut[:, :, k // op.weights.shape[1], k % op.weights.shape[1]], tap, out=product)
            acc += product
        return (acc,)

    return run


def _deform(op: Deform, x: TensorType) -> Kernel:
    size, channels = op.weights.shape[0], op.weights.shape[2]
    one, frac = 1 << op.frac_bits, op.frac_bits
    dtype = holding(_reach(x, op.weights.reshape(-1, channels).T, op.bias, gain=one * one))
    taps, bias = op.weights.reshape(-1, channels).astype(dtype), op.bias.astype(dtype)
    height, width, up = x.height * op.upsample, x.width * op.upsample, op.upsample.bit_length() - 1
    outside = x.height * x.width

    def run(image: Floats, offset: Floats) -> tuple[Floats, ...]:
        # Outside the map lies one pixel of zeros, the last row.
        flat = np.concatenate([image.reshape(-1, channels).astype(dtype, copy=False), np.zeros((1, channels), dtype)])
        code = offset.astype(np.int64)[None]
        acc = np.empty((height * width, channels), dtype)
        acc[...] = bias
        for k, tap in enumerate(taps):
            down, right = op.distance(code, k // size, k % size)
            row, col = (np.arange(height)[:, None] << frac) + down[0], (np.arange(width) << frac) + right[0]
            fy, fx = row & one - 1, col & one - 1
            seen: Floats | None = None
            for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)) if frac else ((0, 0),):
                y, z = (row >> frac) + dy, (col >> frac) + dx
                inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
                part = flat.take(np.where(inside, (y >> up) * x.width + (z >> up), outside).ravel(), axis=0)
                if frac:
                    part *= ((fy if dy else one - fy) * (fx if dx else one - fx)).reshape(-1, 1).astype(dtype)
                seen = part if seen is None else np.add(seen, part, out=seen)
            assert seen is not None
            seen *= tap
            acc += seen
        return (acc.reshape(height, width, channels),)

    return run


def _factors(op: Requant, x: TensorType) -> npt.NDArray[np.float64] | None:
    """multiplier * 2^-shift (C,) where its product with an accumulator is exact, else None."""
    largest = max(-x.lowest, x.highest) * int(np.abs(op.multiplier).max()) + (1 << int(op.shift.max()))
    return op.multiplier * 2.0 ** -op.shift if largest < 1 << DOUBLE else None


def _requant(op: Requant, x: TensorType) -> Kernel:
    factor = _factors(op, x)
    if factor is None:
        return _slow(op)
    out = holding(max(abs(op.low), abs(op.high)))

    def run(acc: Floats) -> tuple[Floats, ...]:
        scaled = np.multiply(acc, factor, dtype=np.float64)
        if op.rounding == "half_even":
            np.rint(scaled, out=scaled)
        else:
            if op.rounding == "half_up":
                scaled += 0.5
            np.floor(scaled, out=scaled)
        return (np.clip(scaled, op.low, op.high, out=scaled).astype(out),)

    return run


def _max_pool(op: MaxPool, x: TensorType) -> Kernel:
    def run(image: Floats) -> tuple[Floats, ...]:
        cut = windows(image[None], op.window, fill=x.lowest)[0]  # type: ignore[arg-type]
        best = cut[:, :, 0, 0].copy()
        for k in range(1, cut.shape[2] * cut.shape[3]):
            np.maximum(best, cut[:, :, k // cut.shape[3], k % cut.shape[3]], out=best)
        return (best,)

    return run


def _concat(op: Concat, x: TensorType) -> Kernel:
    def run(*maps: Floats) -> tuple[Floats, ...]:
        if not op.interleave:
            return (np.concatenate(maps, axis=2),)
        joined = np.empty((*maps[0].shape[:2], sum(m.shape[2] for m in maps)), maps[0].dtype)
        for k, each in enumerate(maps):
            joined[..., k :: len(maps)] = each
        return (joined,)

    return run


def _split(op: Split, x: TensorType) -> Kernel:
    ends = np.cumsum(op.sizes).tolist()
    parts = [np.s_[:, :, end - size : end] for end, size in zip(ends, op.sizes, strict=True)]
    return lambda image: tuple(image[part] for part in parts)


def _upsample(op: Upsample, x: TensorType) -> Kernel:
    return lambda image: (image.repeat(op.factor, axis=0).repeat(op.factor, axis=1),)


def _slow(op: Op) -> Kernel:
    """As the golden model has it."""

    def run(*maps: Floats) -> tuple[Floats, ...]:
        results = op.golden(*(m.astype(np.int64)[None] for m in maps))
        return tuple(r[0].astype(holding(int(np.abs(r).max(initial=0)))) for r in results)

    return run


KERNELS: dict[type[Op], Callable[[Any, TensorType], Kernel]] = {
    Conv: _conv, Depthwise: _depthwise, Deform: _deform, Requant: _requant, MaxPool: _max_pool, Concat: _concat, Split: _split,
    Upsample: _upsample,
}  # fmt: skip


def _exact_sums(op: Op, x: TensorType) -> bool:
    """Whether all that ``op`` reads and adds up is exact in float32."""
    if not isinstance(op, (Conv, Depthwise, Deform)):
        return _single(x)
    weights = op.weights.reshape(len(op.weights), -1) if isinstance(op, Conv) else op.weights.reshape(-1, op.weights.shape[2]).T
    gain = 1 << 2 * op.frac_bits if isinstance(op, Deform) else 1
    return _single(x) and holding(_reach(x, weights, op.bias, gain)) is np.float32


def _single(x: TensorType) -> bool:
    return max(-x.lowest, x.highest) < 1 << SINGLE


def native_kernel(op: Op, types: list[TensorType], requant: Requant | None = None) -> Kernel | None:
    """The compiled kernel of ``op``, with the ``requant`` behind it as one, or None where there is none or it would not be exact."""
    lib = fast_native.code()
    if lib is None or not all(map(_single, types)):
        return None
    if type(op) in fast_native.MOVES:
        return fast_native.MOVES[type(op)](lib, op, types[0])
    if type(op) not in fast_native.SUMS or not _exact_sums(op, types[0]):
        return None
    last = op if isinstance(op, Requant) else requant
    factors = None
    if last is not None:
        (acc,) = op.infer(*types) if requant is not None else types
        factors = _factors(last, acc)
        if factors is None or max(-last.low, last.high) >= 1 << SINGLE:
            return None
    return fast_native.SUMS[type(op)](lib, op, types[0], requant, factors)


#: Inputs, outputs and how the one becomes the other.
Step = tuple[tuple[str, ...], tuple[str, ...], Kernel]


class FastGolden:
    """A graph made ready to run; ``run`` gives the outputs as ``sw.golden.run`` does, and nothing else."""

    def __init__(self, graph: Graph, threads: int | None = None) -> None:
        self.graph, self.threads = graph, threads or os.cpu_count() or 1
        self.steps, self._blas = self._plan(), ThreadpoolController()
        last = {t: k for k, (inputs, _, _) in enumerate(self.steps) for t in inputs}
        self._done = [[t for t, use in last.items() if use == k and t not in graph.outputs] for k in range(len(self.steps))]

    def _plan(self) -> list[Step]:
        """One step a node; a sum and the requantizer that alone reads it are one step where compiled code has both."""
        readers: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                readers.setdefault(name, []).append(node)
        steps: list[Step] = []
        joined: set[int] = set()
        for node in self.graph.nodes:
            if id(node) in joined:
                continue
            types = self.graph.types(node.inputs)
            behind = readers.get(node.outputs[0], []) if isinstance(node.op, (Conv, Depthwise, Deform)) else []
            if len(behind) == 1 and isinstance(behind[0].op, Requant) and node.outputs[0] not in self.graph.outputs:
                both = native_kernel(node.op, types, behind[0].op)
                if both is not None:
                    steps.append((node.inputs, behind[0].outputs, both))
                    joined.add(id(behind[0]))
                    continue
            steps.append((node.inputs, node.outputs, native_kernel(node.op, types) or self._plain(node.op, types[0])))
        return steps

    def _plain(self, op: Op, x: TensorType) -> Kernel:
        make = KERNELS.get(type(op))
        return make(op, x) if make is not None else _slow(op)

    def run(self, images: Array) -> dict[str, Array]:
        """Outputs by name, int64 (N, H, W, C), for ``images`` (N, H, W, C) of integers."""
        checked = check_images(self.graph, images)
        with self._blas.limit(limits=1, user_api="blas"), ThreadPoolExecutor(min(self.threads, max(1, len(images)))) as pool:
            found = list(pool.map(self._one, checked))
        return {t: np.stack([each[t] for each in found]).astype(np.int64) for t in self.graph.outputs}

    def _one(self, image: Array) -> dict[str, Floats]:
        values: dict[str, Floats] = {self.graph.inputs[0]: image.astype(np.float32)}
        for (inputs, outputs, kernel), done in zip(self.steps, self._done, strict=True):
            values.update(zip(outputs, kernel(*(values[t] for t in inputs)), strict=True))
            for name in done:
                values.pop(name, None)
        return {t: values[t] for t in self.graph.outputs}
