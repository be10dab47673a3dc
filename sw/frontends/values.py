"""What an ONNX tensor can stand for while a file is lowered."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from sw.ops import Array

#: A function of real numbers, element by element, in float64.
Function = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Integers:
    """A quantized constant: ``values`` · ``scale`` (flat; one, or one an output channel), ``bits`` wide."""

    values: Array
    scale: tuple[Fraction, ...]
    bits: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Act:
    """An activation: the real value is ``tensor``·``scale`` + ``offset``, clamped to ``low``..``high`` where those are given.

    With ``function`` it is that function of ``tensor``·``scale``, clamped in the same way: a table, once a Quant follows.
    ``quantized`` says that it comes straight from a Quant (or only moved since), so that it may enter a multiplication.
    """

    tensor: str
    scale: tuple[Fraction, ...]
    quantized: bool
    offset: tuple[Fraction, ...] = ()
    low: Fraction | None = None
    high: Fraction | None = None
    function: Function | None = None

    @property
    def plain(self) -> bool:
        """Nothing is pending: the integers are the value."""
        return self.quantized and not self.offset and self.low is None and self.high is None and self.function is None


@dataclass(frozen=True, kw_only=True, eq=False)
class Taps:
    """Offsets of a deformable convolution: (``tensor``·``scale`` - ``shift``) times the tap pattern of a ``kernel``-wide window.

    ``shift`` is 0 where the file quantizes o = s - 1, and 1 where it quantizes the dilation s itself and subtracts 1. ``free``: there is
    no pattern, ``tensor`` has an offset for every tap.
    """

    tensor: str
    scale: Fraction
    kernel: int
    shift: int = 0
    free: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouped:
    """Half a channel shuffle: an activation seen as (1, groups, C / groups, H, W), transposed or not yet."""

    act: Act
    groups: int
    transposed: bool


Value = np.ndarray | Integers | Act | Taps | Grouped
