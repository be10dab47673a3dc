"""ShuffleNet's channel shuffle."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Array, Op, TensorType


@dataclass(frozen=True, kw_only=True, eq=False)
class Shuffle(Op):
    """Channels seen as a (groups, C / groups) matrix, transposed (arXiv 1707.01083, section 3.1)."""

    name = "shuffle"
    groups: int

    def __post_init__(self) -> None:
        if self.groups < 2:
            raise ValueError(f"groups must be at least 2, not {self.groups!r}")

    def permutation(self, channels: int) -> Array:
        """Output channel k is input channel ``permutation[k]``."""
        return np.arange(channels).reshape(self.groups, -1).T.ravel()

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        if x.channels % self.groups:
            raise ValueError(f"groups must divide the {x.channels} channels, not {self.groups!r}")
        return (x,)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        return (x.astype(np.int64)[..., self.permutation(x.shape[3])],)
