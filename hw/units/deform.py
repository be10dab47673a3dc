# amaranth: UnusedElaboratable=no
"""Deformable depthwise convolution unit."""
from __future__ import annotations

from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.gather import GatherStage
from hw.lib.mac import Mac
from hw.params import Ints, Ints3, Lanes, Multiplier
from hw.units.base import Unit, signature


class DeformUnit(Unit):
    """Deformable, bounded, one kernel a channel; square (one dilation a pixel) or free (an offset for every tap).

    Golden model: :meth:`sw.ops.deform.Deform.golden`.

    A gather stage reads the four neighbours of each tap's position and interpolates, a row of multipliers accumulates.
    Throughput: one tap of ``i.lanes`` channels a cycle, for every pattern of offsets. Latency: the first result of a
    frame leaves 12 cycles (17 if ``frac_bits`` > 0, 19 if it is 4; one less as of the Mac) and one more for each further tap after row R
    has arrived.
    Interpolation takes no multipliers: three adder trees of ``frac_bits`` + 1 terms a lane.

    Parameters: ``height``, ``width``, ``channels`` of the map that arrives; ``upsample``: a power of two, how often each of its pixels
    stands in the unit's own map in both directions, which is as large as those of offsets and results; ``weights`` (K, K, C), K odd;
    ``bias`` (C,) at the scale of the accumulator, which 2·``frac_bits`` raise; ``low``, ``high``: codes beyond saturate; ``base``: 2^F
    (the default) where the code is s - 1, 0 where it is s itself; ``free``; ``i``; ``offset``: one lane, or with ``free`` two (y, x),
    a beat a tap; ``multiplier``: see :class:`hw.lib.mac.Mac`; ``o``: lanes of ``i``, signed, the exact accumulator. Raises
    ValueError if they do not fit together.
    """

    i: stream.Interface
    offset_i: stream.Interface
    o: stream.Interface

    def __init__(
        self, *, height: int, width: int, channels: int, weights: Ints3, bias: Ints, frac_bits: int, low: int, high: int,
        i: Lanes, offset: Lanes, o: Lanes, base: int | None = None, free: bool = False, upsample: int = 1,
        multiplier: Multiplier = "inferred",
    ) -> None:  # fmt: skip
        size = len(weights)
        if any(len(row) != size for row in weights):
            raise ValueError(f"weights must be (K, K, C), not {size} rows of {[len(row) for row in weights]}")
        if len(bias) != channels:
            raise ValueError(f"bias must have {channels} entries, not {len(bias)}")
        self.gather = GatherStage(
            height=height, width=width, channels=channels, size=size, frac_bits=frac_bits, low=low, high=high, i=i, offset=offset,
            base=base, free=free, upsample=upsample,
        )  # fmt: skip
        self.mac = Mac(weights=[tap for row in weights for tap in row], bias=bias, i=self.gather.out, o=o, multiplier=multiplier)
        super().__init__({"i": In(signature(i)), "offset_i": In(signature(offset)), "o": Out(signature(o))})

    @property
    def frame_cycles(self) -> int:
        """Taps of all pixels and channel groups, the same for every pattern of offsets."""
        return self.gather.frame_cycles

    @property
    def multipliers(self) -> int:
        """Multipliers by weights: one a lane."""
        return self.mac.multipliers

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.gather, m.submodules.mac = self.gather, self.mac
        wiring.connect(m, wiring.flipped(self.i), self.gather.i)
        wiring.connect(m, wiring.flipped(self.offset_i), self.gather.offset_i)
        wiring.connect(m, self.gather.o, self.mac.i)
        wiring.connect(m, self.mac.o, wiring.flipped(self.o))
        return m
