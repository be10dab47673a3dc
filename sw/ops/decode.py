"""CenterNet decoding on integers: from the head maps to the best boxes."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sw.decode import find_peaks

from .base import Array, Op, TensorType, expect_channels, signed_bits

#: Channels of a record; ``last`` is 1 in the last record of a frame and only there.
FIELDS = ("valid", "label", "score", "x1", "y1", "x2", "y2", "last")


@dataclass(frozen=True, kw_only=True, eq=False)
class Decode(Op):
    """``top_k`` records a frame, best first, as a (top_k, 1, 8) map with the channels of :data:`FIELDS`.

    Inputs: ``hm`` (H, W, C), ``wh`` (H, W, 2) width and height, ``reg`` (H, W, 2) dx and dy, all as in :func:`sw.decode.decode`,
    whose peaks and ranks these are. A peak below ``least`` is none. Scores stay the integers of ``hm``, which the
    sigmoid does not reorder. Boxes are exact: sizes come in units of 2^-``wh_frac`` and shifts in 2^-``reg_frac`` output
    pixels, box corners leave in units of 2^-:attr:`frac_bits` output pixels (one bit more, for the halves). Records beyond
    the number of peaks are 0 but for ``last``. :func:`sw.decode.from_records` turns records into detections.
    """

    name = "decode"
    top_k: int
    least: int
    wh_frac: int
    reg_frac: int

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k!r}")

    @property
    def frac_bits(self) -> int:
        """Fraction bits of the box corners."""
        return max(self.wh_frac + 1, self.reg_frac, 0)

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        hm, wh, reg = inputs
        for name, x in (("wh", wh), ("reg", reg)):
            expect_channels(f"decode's {name}", x.channels, 2)
            if (x.height, x.width) != (hm.height, hm.width):
                raise ValueError(f"{name} must be {hm.height}x{hm.width} like the heat map, not {x.height}x{x.width}")
        half = max(wh.highest, 0) << self.frac_bits - self.wh_frac - 1
        shift = self.frac_bits - self.reg_frac
        furthest = (max(hm.width, hm.height) - 1 << self.frac_bits) + (reg.highest << shift) + half
        bits = signed_bits(min((reg.lowest << shift) - half, hm.lowest), max(furthest, hm.highest, hm.channels - 1, 1))
        return (TensorType(height=self.top_k, width=1, channels=len(FIELDS), bits=bits, signed=True),)

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        hm, wh, reg = (x.astype(np.int64) for x in inputs)
        records = np.zeros((len(hm), self.top_k, 1, len(FIELDS)), np.int64)
        records[:, -1, :, FIELDS.index("last")] = 1
        peaks = find_peaks(hm) & (hm >= self.least)
        for n in range(len(hm)):
            labels, rows, columns = np.nonzero(peaks[n].transpose(2, 0, 1))  # by class, row, column
            best = np.argsort(-hm[n, rows, columns, labels], kind="stable")[: self.top_k]
            labels, rows, columns = labels[best], rows[best], columns[best]
            centre = np.stack([columns, rows], axis=1) << self.frac_bits
            centre += reg[n, rows, columns] << self.frac_bits - self.reg_frac
            half = np.maximum(wh[n, rows, columns], 0) << self.frac_bits - self.wh_frac - 1
            scores = hm[n, rows, columns, labels]
            found = np.column_stack([np.ones_like(labels), labels, scores, centre - half, centre + half])
            records[n, : len(best), 0, :-1] = found
        return (records,)
