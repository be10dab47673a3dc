"""The image as it comes from a camera or a file: channel order and padding."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .base import Array, Op, TensorType

#: Order of the channels that come in; what leaves is always RGB.
Order = Literal["rgb", "bgr"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Image(Op):
    """Raw pixels to the network's input: channels in order red, green, blue, and 0 (black) around the picture.

    The values stay as they are: 8 bits, unsigned, scale 2^-8 (DESIGN.md section 3). Attributes: ``order`` of the channels that
    come, "rgb" or "bgr" (three channels); ``pad`` rows and columns (top, left, bottom, right). In order "rgb" it pads any map with 0.
    """

    name = "image"
    order: Order = "rgb"
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        if self.order not in ("rgb", "bgr"):
            raise ValueError(f"order must be rgb or bgr, not {self.order!r}")
        if min(self.pad) < 0:
            raise ValueError(f"pad must not be negative, not {self.pad!r}")

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        if self.order == "bgr" and x.channels != 3:
            raise ValueError(f"an image in order bgr has 3 channels, not {x.channels}")
        top, left, bottom, right = self.pad
        return (replace(x, height=x.height + top + bottom, width=x.width + left + right),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        x = inputs[0].astype(np.int64)
        top, left, bottom, right = self.pad
        return (np.pad(x[..., ::-1] if self.order == "bgr" else x, ((0, 0), (top, bottom), (left, right), (0, 0))),)
