"""The channel groups of a pixel."""
from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Value

from hw.lib.ring import counter
from hw.params import Lanes


def last_group(m: Module, groups: int, taken: Value, name: str = "group") -> Value:
    """Whether the current beat is a pixel's last; ``taken`` says that it passes."""
    if groups == 1:
        return Const(1)
    group = counter(groups, name)
    with m.If(taken):
        m.d.sync += group.eq(Mux(group == groups - 1, 0, group + 1))
    return group == groups - 1


def used_lanes(channels: int, lanes: Lanes, last: Value) -> list[Value]:
    """Whether each lane of a beat holds a channel; ``last``: the beat is a pixel's last. The others leave a unit as 0."""
    filled = channels - (lanes.beats(channels) - 1) * lanes.lanes
    return [Const(1) if k < filled else ~last for k in range(lanes.lanes)]
