"""Parameter types that hardware and compiler share. No Amaranth here, so that the compiler stays light."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Nested integers, outermost axis first (hardware knows no NumPy).
Ints = Sequence[int]
Ints2 = Sequence[Ints]
Ints3 = Sequence[Ints2]
Ints4 = Sequence[Ints3]


#: How products are formed. "soft": logic only; "inferred": one multiplier each, as the tools find it; "packed27" and "packed18":
#: several weights in one inferred multiplier of 27×18 (UltraScale+) or 18×18 bits (ECP5); "dsp48e2" and "mult18x18d": the same
#: with the primitives instantiated.
Multiplier = Literal["soft", "inferred", "packed27", "packed18", "dsp48e2", "mult18x18d"]


#: Where constants stand: the tools' choice, LUTs, block RAM.
RomKind = Literal["auto", "lut", "block"]


#: Where the map of a deformable layer lies: in a ring of rows on chip, or whole in external memory.
MapPlace = Literal["chip", "memory"]


@dataclass(frozen=True, kw_only=True)
class Range:
    """Integers from ``low`` to ``high``, both included."""

    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """What one beat of a stream carries: ``lanes`` channels of one pixel, each an integer of ``bits``.

    Beats go row by row, pixel by pixel, channel group by channel group. ``lanes`` need not divide the number of
    channels: the last beat of a pixel is partly filled and its unused lanes are 0. Lane 0 (the lowest channel) is
    in the lowest bits of the payload.
    """

    lanes: int
    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise ValueError(f"lanes must be a positive integer, not {self.lanes!r}")
        if not 1 <= self.bits <= 48:
            raise ValueError(f"bits must be in 1..48, not {self.bits!r}")

    @property
    def width(self) -> int:
        """Payload bits of one beat."""
        return self.lanes * self.bits

    @property
    def lowest(self) -> int:
        """The most negative value of a lane."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def highest(self) -> int:
        """The greatest value of a lane."""
        return (1 << self.bits - self.signed) - 1

    def beats(self, channels: int) -> int:
        """Beats that one pixel of ``channels`` takes."""
        return -(-channels // self.lanes)


@dataclass(frozen=True, kw_only=True)
class Window:
    """A K×K window that slides over a map: sizes, stride, dilation and zero padding, each (vertical, horizontal).

    ``pad`` is (top, left, bottom, right), ONNX's order.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        for name, value in (("kernel", self.kernel), ("stride", self.stride), ("dilation", self.dilation)):
            if min(value) < 1:
                raise ValueError(f"{name} must be two positive integers, not {value!r}")
        reach = [(k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True)]
        if min(self.pad) < 0 or max(self.pad[0], self.pad[2]) > reach[0] or max(self.pad[1], self.pad[3]) > reach[1]:
            raise ValueError(f"pad must be between 0 and the window's reach {tuple(reach)}, not {self.pad!r}")

    @property
    def taps(self) -> int:
        """Number of positions in the window."""
        return self.kernel[0] * self.kernel[1]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output map; ValueError if the window does not fit."""
        sizes = []
        for n, k, s, d, before, after in zip(
            (height, width), self.kernel, self.stride, self.dilation, self.pad[:2], self.pad[2:], strict=True
        ):
            size = (n + before + after - (k - 1) * d - 1) // s + 1
            if size < 1:
                raise ValueError(f"a {self.kernel} window with dilation {self.dilation} does not fit {height}x{width} padded by {self.pad}")
            sizes.append(size)
        return sizes[0], sizes[1]


#: Line buffers: a ring; one that is shorter than its rate needs; a place of its own for every pixel (hw.lib.window, hw.lib.paged).
LineBuffer = Literal["ring", "tight", "paged"]
#: How much faster than its input a unit with a tight line buffer must be (hw.lib.window; a stride of 2).
RESTS = 2


@dataclass(frozen=True, kw_only=True)
class DeformRing:
    """The ring of a deformable unit, in rows of the map that arrives, ``height`` of them, frame after frame.

    The unit's own map is that one with every row ``repeat`` times (nearest upsampling; a power of two), and its row y touches its
    rows y - ``reach`` to y + ``reach``.
    """

    height: int
    reach: int
    repeat: int = 1

    @property
    def last(self) -> int:
        """The last row of the unit's own map."""
        return self.height * self.repeat - 1

    def first_read(self, y: int) -> int:
        """The first arriving row that row ``y`` of the outputs touches."""
        return max(y - self.reach, 0) // self.repeat

    def last_read(self, y: int) -> int:
        """The last one; of a ``y`` beyond the frame, counted on into the next one."""
        frame, y = divmod(y, self.last + 1)
        return frame * self.height + min(y + self.reach, self.last) // self.repeat

    def rows(self, banks: int) -> int:
        """The least capacity at full rate: what a row touches, and what the next one does, which arrives meanwhile.

        A multiple of ``banks``, so that banks by parity do not clash where the ring wraps: 2·reach + 2 rows of a high map, but no more
        than two frames: where a map is so low that its last outputs touch all of it, one is read while the next arrives.
        """
        most = max(self.last_read(y + 1) - self.first_read(y) + 1 for y in range(self.last + 1))
        return -(-most // banks) * banks
