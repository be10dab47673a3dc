"""Concatenate maps along their channels, in order or interleaved."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .base import Array, Op, TensorType


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Op):
    """Inputs one after the other; with ``interleave`` channel n·k + j of the output is channel k of input j of n.

    Interleaving is a concat followed by ShuffleNetV2's channel shuffle with one group an input (arXiv 1807.11164, figure 3);
    in hardware both are wiring.
    """

    name = "concat"
    interleave: bool = False

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        first = inputs[0]
        for x in inputs[1:]:
            if replace(x, channels=1) != replace(first, channels=1):
                raise ValueError(f"concat's inputs must agree in size, bits and sign, not {first} and {x}")
            if self.interleave and x.channels != first.channels:
                raise ValueError(f"interleaved inputs must have equal channels, not {first.channels} and {x.channels}")
        return (replace(first, channels=sum(x.channels for x in inputs)),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        if not self.interleave:
            return (np.concatenate(inputs, axis=3).astype(np.int64),)
        stacked = np.stack(inputs, axis=4).astype(np.int64)
        return (stacked.reshape(*stacked.shape[:3], -1),)
