"""What every operator of the integer graph provides."""
from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from hw.params import Range

#: Integers, (N, H, W, C) for activations.
Array = npt.NDArray[np.integer[Any]]


def narrowest(bits: int) -> type[np.signedinteger[Any]]:
    """NumPy's narrowest signed type for integers of so many bits, signed or not."""
    return next(kind for kind in (np.int8, np.int16, np.int32, np.int64) if bits < np.iinfo(kind).bits)


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """A map of integers with zero point 0: height, width, channels, bits and sign of an element."""

    height: int
    width: int
    channels: int
    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.channels) < 1:
            raise ValueError(f"sizes must be positive, not {(self.height, self.width, self.channels)!r}")
        if not 1 <= self.bits <= 48:
            raise ValueError(f"bits must be in 1..48, not {self.bits!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.height, self.width, self.channels

    @property
    def pixels(self) -> int:
        """Pixels of the map."""
        return self.height * self.width

    @property
    def lowest(self) -> int:
        """Least value of an element."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def highest(self) -> int:
        """Greatest value of an element."""
        return (1 << self.bits - self.signed) - 1

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.channels} {'s' if self.signed else 'u'}{self.bits}"


def signed_bits(lowest: int, highest: int) -> int:
    """Bits of the smallest signed type that holds ``lowest..highest``."""
    return max(int(max(highest, 0)).bit_length(), int(-lowest - 1).bit_length() if lowest < 0 else 0) + 1


def accumulator(x: TensorType, weights: Array, bias: Array, *, gain: int = 1) -> tuple[int, int]:
    """Least and greatest value that ``sum(weights · x) · gain + bias`` takes for any ``x``, over all output channels.

    ``weights`` is (outputs, products); ``bias`` is (outputs,) and is added as it is. The bounds come from the actual
    weights (DESIGN.md section 3), so the accumulator is as narrow as it can be and never overflows.
    """
    positive = np.where(weights > 0, weights, 0).sum(axis=1, dtype=np.int64)
    negative = np.where(weights < 0, weights, 0).sum(axis=1, dtype=np.int64)
    low = (positive * x.lowest + negative * x.highest) * gain + bias
    high = (positive * x.highest + negative * x.lowest) * gain + bias
    return min(int(low.min()), 0), max(int(high.max()), 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Op(ABC):
    """One operator: its attributes, its checks, its shapes and its integer meaning.

    ``golden`` is the definition of the operator; hardware and PyTorch are held against it.
    """

    name: ClassVar[str]

    @abstractmethod
    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        """Types of the outputs; ValueError if the inputs do not fit."""

    @abstractmethod
    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        """Compute the outputs exactly, each int64 (N, H, W, C)."""

    def multiplications(self, *inputs: TensorType) -> int:
        """Multiplications with weights that one frame takes (0 for operators that have none)."""
        return 0


@lru_cache(maxsize=1024)
def weight_range(op: Any) -> Range:
    """The range that the weights of an operator that has some span, 0 and 1 included; looked up, since a search asks thousands of times."""
    return Range(low=min(int(op.weights.min()), 0), high=max(int(op.weights.max()), 1))


def expect_channels(name: str, got: int, wanted: int) -> None:
    """ValueError unless the channel counts agree."""
    if got != wanted:
        raise ValueError(f"{name} has {wanted} channels, its input has {got}")


def integers(name: str, values: Array, ndim: int) -> Array:
    """``values`` as a read-only int64 array of ``ndim`` axes, or TypeError/ValueError naming ``name``."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, not {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, not shape {array.shape}")
    array = array.astype(np.int64)
    array.setflags(write=False)
    return array
