# amaranth: UnusedElaboratable=no
"""Units one after the other as one unit."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.regroup import Regroup
from hw.params import Lanes
from hw.units.base import Unit, signature


class Chain(Unit):
    """``units``, each fed by the one before it; where the lanes of two neighbours differ, a gearbox stands between.

    Throughput: that of the slowest part. Latency: the sum of theirs.

    Parameters: ``units`` with one input ``i`` and one output ``o`` each; ``ends``: (channels, pixels) of each unit's output map,
    which a gearbox must know; ``lanes``: (of the input, of the output) of each unit.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, units: Sequence[Any], ends: Sequence[tuple[int, int]], lanes: Sequence[tuple[Lanes, Lanes]]) -> None:
        self.parts: list[Any] = [units[0]]
        for k, ((_, left), (right, _)) in enumerate(pairwise(lanes)):
            if left != right:
                channels, pixels = ends[k]
                self.parts.append(Regroup(channels=channels, i=left, o_lanes=right.lanes, pixels=pixels))
            self.parts.append(units[k + 1])
        super().__init__({"i": In(signature(lanes[0][0])), "o": Out(signature(lanes[-1][1]))})

    @property
    def frame_cycles(self) -> int:
        """Those of the slowest part."""
        cycles: int = max(part.frame_cycles for part in self.parts)
        return cycles

    @property
    def multipliers(self) -> int:
        return sum(part.multipliers for part in self.parts)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        for k, part in enumerate(self.parts):
            m.submodules[f"part{k}"] = part
        wiring.connect(m, wiring.flipped(self.i), self.parts[0].i)
        for left, right in pairwise(self.parts):
            wiring.connect(m, left.o, right.i)
        wiring.connect(m, self.parts[-1].o, wiring.flipped(self.o))
        return m
