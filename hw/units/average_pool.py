# amaranth: UnusedElaboratable=no
"""Average-pooling unit."""
from __future__ import annotations

from typing import Any

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.groups import last_group, used_lanes
from hw.lib.ring import counter
from hw.lib.window import WindowStage
from hw.params import Lanes, Window
from hw.units.base import Unit, signature


class AveragePoolUnit(Unit):
    """Exact sum of every window, 0 outside the map. Golden model: :meth:`sw.ops.average_pool.AveragePool.golden`.

    Throughput: one tap of ``i.lanes`` channels a cycle. Latency: five cycles from the last beat that a result needs.

    Parameters: ``height``, ``width``, ``channels`` of the input map; ``window``; ``i``; ``o``: as many lanes, wide
    enough for the sums. Raises ValueError if the window or the lanes do not fit.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, height: int, width: int, channels: int, window: Window, i: Lanes, o: Lanes) -> None:
        check_sums(i, o, window.taps)
        self.window = WindowStage(height=height, width=width, channels=channels, window=window, i=i, order="group")
        self.channels = channels
        super().__init__({"i": In(signature(i)), "o": Out(signature(o))})

    @property
    def frame_cycles(self) -> int:
        """Taps of all output pixels and channel groups, or input beats if those are more."""
        return self.window.frame_cycles

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.window = self.window
        wiring.connect(m, wiring.flipped(self.i), self.window.i)
        x, first, used = window_words(m, self.window, self.channels, self.o)
        with m.If(self.window.o.valid & self.window.o.ready):
            for k, total in enumerate(self.o.payload):
                m.d.sync += total.eq(Mux(first, 0, total) + Mux(used[k], x[k], 0))
        return m


def window_words(m: Module, window: WindowStage, channels: int, o: stream.Interface) -> tuple[Any, Value, list[Value]]:
    """Words of windows for a unit whose results grow in the payload of ``o``: the current word, whether it is its window's first, and
    which lanes are used. ``o`` is valid once a window's last word has been taken; while it waits, the words wait."""
    taps, word, first = window.window.taps, window.o, Signal(init=1)
    tap = counter(taps, "tap")
    last = tap == taps - 1
    m.d.comb += word.ready.eq(~o.valid | o.ready)
    taken = word.valid & word.ready
    with m.If(word.ready):
        m.d.sync += o.valid.eq(word.valid & last)
    with m.If(taken):
        m.d.sync += [tap.eq(Mux(last, 0, tap + 1)), first.eq(last)]
    return word.payload, first, used_lanes(channels, window.lanes, last_group(m, window.groups, taken & last))


def check_sums(i: Lanes, o: Lanes, count: int) -> None:
    """ValueError unless ``o`` holds sums of ``count`` values of ``i``."""
    if o.lanes != i.lanes or o.signed != i.signed or o.highest < count * i.highest or o.lowest > count * i.lowest:
        raise ValueError(f"o must have {i.lanes} lanes that hold sums of {count} values of {i!r}, not {o!r}")
