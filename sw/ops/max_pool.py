"""Maximum over a window."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hw.params import Window

from .base import Array, Op, TensorType
from .windows import windows


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool(Op):
    """Greatest value of every window; positions outside the map never win (they hold the type's minimum)."""

    name = "max_pool"
    window: Window

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        height, width = self.window.out_size(x.height, x.width)
        return (replace(x, height=height, width=width),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        x = inputs[0].astype(np.int64)
        return (windows(x, self.window, fill=int(np.iinfo(np.int64).min)).max(axis=(3, 4)),)
