"""Kernels of the fast golden model in C++ (``kernels.cpp``): what BLAS does not do, each fused with the requantization behind it.

Each makes a kernel for one operator whose input, sums and results are exact in float32, or None where the operator must go another way.
"""
from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hw.params import Window
from sw import native
from sw.ops import Array, Concat, Conv, Deform, Depthwise, MaxPool, Op, Requant, TensorType, Upsample

Singles: TypeAlias = npt.NDArray[np.float32]
#: Maps of one image (H, W, C) to maps of one image.
Kernel: TypeAlias = Callable[..., tuple[npt.NDArray[Any], ...]]
#: Factors (C,) of a requantizer that float64 applies exactly.
Factors: TypeAlias = npt.NDArray[np.float64]
ROUNDINGS = {"half_up": 0, "half_even": 1, "floor": 2}
_WINDOW = (
    "height", "width", "channels", "step", "out_height", "out_width", "kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h",
    "dilation_w", "top", "left",
)  # fmt: skip
_TAPS = ("height", "width", "channels", "size", "frac", "low", "high", "origin", "free", "up")


class _Finish(ctypes.Structure):
    _fields_ = [("bias", ctypes.c_void_p), ("factor", ctypes.c_void_p), ("low", ctypes.c_double), ("high", ctypes.c_double)]
    _fields_ += [("rounding", ctypes.c_int64)]


class _Window(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _WINDOW]


class _Taps(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _TAPS]


def code() -> ctypes.CDLL | None:
    """The compiled loops, or None."""
    return native.load(Path(__file__).with_name("kernels.cpp"))


def _at(x: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.__array_interface__["data"][0])


def _pixels(x: npt.NDArray[Any]) -> tuple[Singles, int]:
    """The map as float32 whose pixels lie evenly in memory, and how many floats from one to the next."""
    step = x.strides[1] // 4
    if x.dtype != np.float32 or x.strides[2] != 4 or x.strides[0] != x.shape[1] * step * 4 or step < x.shape[2]:
        x = np.ascontiguousarray(x, np.float32)
        step = x.shape[2]
    return x, step


class Ending:
    """What follows a sum: the bias, and a requantizer if one is given with its factors."""

    def __init__(self, bias: Array, requant: Requant | None, factors: Factors | None) -> None:
        self.bias, self.factors = np.ascontiguousarray(bias, np.float32), factors
        scaled = (0.0, 0.0, 0) if requant is None else (requant.low, requant.high, ROUNDINGS[requant.rounding])
        self.form = _Finish(_at(self.bias), None if factors is None else _at(factors), *scaled)
        self.arg = ctypes.byref(self.form)


def _window(window: Window, x: TensorType) -> Callable[[int], Any]:
    """The argument that describes ``window`` over x for a given step."""
    known: dict[int, Any] = {}
    top, left, _, _ = window.pad
    shape = (*window.out_size(x.height, x.width), *window.kernel, *window.stride, *window.dilation, top, left)

    def argument(step: int) -> Any:
        if step not in known:
            known[step] = ctypes.byref(_Window(x.height, x.width, x.channels, step, *shape))
        return known[step]

    return argument


def conv(lib: ctypes.CDLL, op: Conv, x: TensorType, requant: Requant | None, factors: Factors | None) -> Kernel:
    """BLAS multiplies; windows are cut and results finished here."""
    weights = np.ascontiguousarray(op.weights.reshape(len(op.weights), -1).T.astype(np.float32))
    end, cut = Ending(op.bias, requant, factors), _window(op.window, x)
    plain = op.window.kernel == (1, 1) and op.window.stride == (1, 1) and not any(op.window.pad)
    height, width = op.window.out_size(x.height, x.width)
    pixels, products, outputs = height * width, *weights.shape

    def run(image: npt.NDArray[Any]) -> tuple[Singles, ...]:
        image, step = _pixels(image)
        rows = image.reshape(pixels, products) if plain else np.empty((pixels, products), np.float32)
        if not plain:
            lib.cut(cut(step), _at(image), _at(rows))
        y = rows @ weights
        lib.requant(end.arg, _at(y), *sizes, _at(y))
        return (y.reshape(height, width, outputs),)

    sizes = [ctypes.c_int64(n) for n in (pixels, outputs, outputs)]
    return run


def depthwise(lib: ctypes.CDLL, op: Depthwise, x: TensorType, requant: Requant | None, factors: Factors | None) -> Kernel:
    taps, end, window = np.ascontiguousarray(op.weights, np.float32), Ending(op.bias, requant, factors), _window(op.window, x)
    shape, weights = (*op.window.out_size(x.height, x.width), x.channels), _at(taps)

    def run(image: npt.NDArray[Any], keep: Singles = taps) -> tuple[Singles, ...]:
        image, step = _pixels(image)
        y = np.empty(shape, np.float32)
        lib.depthwise(end.arg, window(step), _at(image), weights, _at(y))
        return (y,)

    return run


def deform(lib: ctypes.CDLL, op: Deform, x: TensorType, requant: Requant | None, factors: Factors | None) -> Kernel:
    weights, end = np.ascontiguousarray(op.weights, np.float32), Ending(op.bias, requant, factors)
    height, width, up = x.height * op.upsample, x.width * op.upsample, op.upsample.bit_length() - 1
    numbers = (height, width, x.channels, len(weights), op.frac_bits, op.low, op.high, 0 if op.free else op.origin, op.free, up)
    taps = ctypes.byref(_Taps(*numbers))

    def run(image: npt.NDArray[Any], offset: npt.NDArray[Any]) -> tuple[Singles, ...]:
        (image, step), codes = _pixels(image), np.ascontiguousarray(offset, np.float32)
        y = np.empty((height, width, x.channels), np.float32)
        lib.deform(end.arg, taps, _at(image), ctypes.c_int64(step), _at(codes), _at(weights), _at(y))
        return (y,)

    return run


def requantize(lib: ctypes.CDLL, op: Requant, x: TensorType, _: None, factors: Factors | None) -> Kernel:
    end = Ending(np.zeros(x.channels, np.int64), op, factors)

    def run(acc: npt.NDArray[Any]) -> tuple[Singles, ...]:
        acc, step = _pixels(acc)
        y = np.empty(acc.shape, np.float32)
        lib.requant(end.arg, _at(acc), *(ctypes.c_int64(n) for n in (x.pixels, x.channels, step)), _at(y))
        return (y,)

    return run


def max_pool(lib: ctypes.CDLL, op: MaxPool, x: TensorType) -> Kernel:
    window, shape = _window(op.window, x), (*op.window.out_size(x.height, x.width), x.channels)

    def run(image: npt.NDArray[Any]) -> tuple[Singles, ...]:
        image, step = _pixels(image)
        y = np.empty(shape, np.float32)
        lib.max_pool(window(step), _at(image), ctypes.c_float(x.lowest), _at(y))
        return (y,)

    return run


def concat(lib: ctypes.CDLL, op: Concat, x: TensorType) -> Kernel | None:
    """Channels in turn; maps behind each other are NumPy's."""
    if not op.interleave:
        return None

    def run(*maps: npt.NDArray[Any]) -> tuple[Singles, ...]:
        found = [_pixels(m) for m in maps]
        y = np.empty((x.height, x.width, len(maps) * x.channels), np.float32)
        pointers = (ctypes.c_void_p * len(maps))(*(_at(m).value for m, _ in found))
        steps = (ctypes.c_int64 * len(maps))(*(step for _, step in found))
        lib.interleave(pointers, steps, *(ctypes.c_int64(n) for n in (len(maps), x.pixels, x.channels)), _at(y))
        return (y,)

    return run


def upsample(lib: ctypes.CDLL, op: Upsample, x: TensorType) -> Kernel:
    shape = (x.height * op.factor, x.width * op.factor, x.channels)

    def run(image: npt.NDArray[Any]) -> tuple[Singles, ...]:
        image, step = _pixels(image)
        y = np.empty(shape, np.float32)
        lib.upsample(_at(image), *(ctypes.c_int64(n) for n in (*x.shape, step, op.factor)), _at(y))
        return (y,)

    return run


#: Operators whose sums may be finished by a requantizer; the others.
SUMS: dict[type[Op], Callable[..., Kernel]] = {Conv: conv, Depthwise: depthwise, Deform: deform, Requant: requantize}
MOVES: dict[type[Op], Callable[..., Kernel | None]] = {MaxPool: max_pool, Concat: concat, Upsample: upsample}
