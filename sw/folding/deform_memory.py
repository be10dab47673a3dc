"""What a deformable layer whose map lies in external memory costs: cycles of its unit and bytes that it moves."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sw.errors import CompileError
from sw.ops import Array, Deform, TensorType


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of a frame: ``cycles`` of the unit (hw/lib/deform_memory.py) where memory gives a word a cycle, bytes read and written; and the
    bytes of memory that it takes.

    Finding a pixel's neighbours takes 2·K² cycles (K² without fractions): where its data take fewer, which they cannot if it has that many
    words, the cycles are a few more.
    """

    cycles: int
    read_bytes: int
    write_bytes: int
    region_bytes: int


def lanes_in_word(x: TensorType, data_bits: int) -> int:
    """Channels in a word of the memory, which are the lanes of the unit's streams."""
    return data_bits // (-(-x.bits // 8) * 8)


def _traffic(op: Deform, x: TensorType, data_bits: int, read: int, idle: int) -> Traffic:
    """``read`` pixels read and ``idle`` turns of a pixel's words without data."""
    if op.upsample > 1:
        raise CompileError("a deformable layer that upsamples its map cannot have it in memory")
    words = -(-x.channels // lanes_in_word(x, data_bits))
    pixel_bytes = words * data_bits // 8
    map_bytes = x.pixels * pixel_bytes
    return Traffic(cycles=(read + idle) * words, read_bytes=read * pixel_bytes, write_bytes=map_bytes, region_bytes=2 * map_bytes)


def most_traffic(op: Deform, x: TensorType, data_bits: int) -> Traffic:
    """The most of any offsets: four neighbours a tap, less where whole rows or columns of square taps lie on whole pixels."""
    size = op.weights.shape[0]
    taps = size**2 if not op.frac_bits else 4 * size**2 if op.free else (2 * size - 1) ** 2
    return _traffic(op, x, data_bits, x.pixels * taps, 0)


def traffic_of(op: Deform, x: TensorType, data_bits: int, offset: Array) -> Traffic:
    """Exactly for one frame of ``offset`` codes (H, W, 1) or (H, W, 2·K·K)."""
    read, idle = pixels_read(op, x, offset)
    return _traffic(op, x, data_bits, int(read.sum()), int(idle.sum()))


def pixels_read(op: Deform, x: TensorType, offset: Array) -> tuple[Array, Array]:
    """For each output pixel (H, W): how many neighbours are inside the map and have a weight, and turns without data.

    A pixel whose last tap has no neighbour in its upper row takes one such turn.
    """
    size, read = op.weights.shape[0], np.zeros((x.height, x.width), np.int64)
    rows, columns = np.ogrid[: x.height, : x.width]
    for tap in range(size**2):
        down, right = op.distance(offset[None], *divmod(tap, size))
        upper, lower = _neighbours((rows << op.frac_bits) + down[0], op.frac_bits, x.height)
        wide = sum(_neighbours((columns << op.frac_bits) + right[0], op.frac_bits, x.width))
        read += (upper + lower) * wide
    return read, 1 - np.minimum(upper * wide, 1)  # of the last tap


def _neighbours(place: Array, frac_bits: int, limit: int) -> tuple[Array, Array]:
    """1 where the first, and the second, neighbour of ``place``, in 2^-F pixels, is read: in 0..limit-1 and of a weight that is not 0."""
    first, fraction = place >> frac_bits, place & (1 << frac_bits) - 1
    upper, lower = (first >= 0) & (first < limit), (first >= -1) & (first < limit - 1) & (fraction != 0)
    return upper.astype(np.int64), lower.astype(np.int64)
