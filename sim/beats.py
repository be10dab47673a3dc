"""Maps of integers to the beats of a stream and back."""
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hw.params import Lanes

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.integer[Any]]


def beat_bytes(lanes: Lanes) -> int:
    """Bytes of one beat in memory: whole 32-bit words, as Verilator keeps wide ports."""
    return -(-lanes.width // 32) * 4


def pack(array: Integers, lanes: Lanes, *, garbage: np.random.Generator | None = None) -> Bytes:
    """Integers (..., C), pixels in stream order, to beats (n, :func:`beat_bytes`), little-endian, lane 0 lowest.

    Unused lanes of a pixel's last beat are 0, or random bits if ``garbage`` is given (inputs must not rely on zeros).
    ValueError if a value does not fit a lane.
    """
    if array.size and (array.min() < lanes.lowest or array.max() > lanes.highest):
        raise ValueError(f"values must lie in {lanes.lowest}..{lanes.highest}, not {array.min()}..{array.max()}")
    channels = array.shape[-1]
    beats = lanes.beats(channels)
    padded = np.zeros((array.size // channels, beats * lanes.lanes), np.int64)
    if garbage is not None:
        padded[:, channels:] = garbage.integers(lanes.lowest, lanes.highest + 1, (len(padded), beats * lanes.lanes - channels))
    padded[:, :channels] = array.reshape(-1, channels)
    rows = padded.reshape(-1, lanes.lanes)
    packed = np.zeros((len(rows), beat_bytes(lanes)), np.uint8)
    if lanes.bits in (8, 16, 32):  # whole bytes: no need to take the values apart
        raw = rows.astype(f"<i{lanes.bits // 8}").view(np.uint8)
    else:
        bits = (rows[:, :, None] >> np.arange(lanes.bits)).astype(np.uint8) & 1
        raw = np.packbits(bits.reshape(len(rows), -1), axis=1, bitorder="little")
    packed[:, : raw.shape[1]] = raw
    return packed


def unpack(beats: Bytes, lanes: Lanes, channels: int) -> npt.NDArray[np.int64]:
    """Inverse of :func:`pack`: beats (n, bytes) to (pixels, C); the unused lanes are dropped."""
    bits = np.unpackbits(beats, axis=1, bitorder="little")[:, : lanes.width].reshape(-1, lanes.lanes, lanes.bits)
    place = np.int64(1) << np.arange(lanes.bits, dtype=np.int64)
    if lanes.signed:
        place[-1] = -place[-1]
    values = (bits * place).sum(axis=2, dtype=np.int64)
    maps: npt.NDArray[np.int64] = values.reshape(-1, lanes.beats(channels) * lanes.lanes)[:, :channels]
    return maps


def words(beats: Bytes) -> list[int]:
    """Each beat as one Python integer."""
    return [int.from_bytes(row.tobytes(), "little") for row in beats]


def locate(beat: int, shape: tuple[int, int, int], lanes: Lanes) -> str:
    """Where a beat belongs, in words; ``shape`` is (H, W, C) of a frame."""
    height, width, channels = shape
    pixel, group = divmod(beat, lanes.beats(channels))
    row, column = divmod(pixel, width)
    frame, row = divmod(row, height)
    return f"frame {frame} row {row} column {column} channel group {group}"
