"""Cutting windows out of padded maps, shared by the operators that slide."""
from __future__ import annotations

import numpy as np

from hw.params import Window

from .base import Array


def windows(x: Array, window: Window, fill: int = 0) -> Array:
    """All windows of ``x`` (N, H, W, C) as a view (N, OH, OW, KH, KW, C); ``fill`` lies outside the map."""
    top, left, bottom, right = window.pad
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    out_h, out_w = window.out_size(x.shape[1], x.shape[2])
    n, h, w, c = padded.strides
    (sh, sw), (dh, dw), (kh, kw) = window.stride, window.dilation, window.kernel
    return np.lib.stride_tricks.as_strided(
        padded,
        (x.shape[0], out_h, out_w, kh, kw, x.shape[3]),
        (n, h * sh, w * sw, h * dh, w * dw, c),
        writeable=False,
    )


def exact_matmul(x: Array, weights: Array) -> Array:
    """``x @ weights`` on integers through BLAS: (..., K) @ (K, M) -> int64 (..., M).

    Float32 while K·max|x|·max|w| < 2^24, else float64, which is exact below 2^53 (DESIGN.md section 3).
    """
    bound = x.shape[-1] * int(np.abs(x).max(initial=0)) * int(np.abs(weights).max(initial=0))
    if bound >= 1 << 53:
        raise ValueError(f"products of up to {bound} do not fit the exact range of float64")
    dtype = np.float32 if bound < 1 << 24 else np.float64
    result: Array = (x.astype(dtype) @ weights.astype(dtype)).astype(np.int64)
    return result
