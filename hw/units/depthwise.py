# amaranth: UnusedElaboratable=no
"""Depthwise convolution unit."""
from __future__ import annotations

from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.mac import Mac
from hw.lib.paged import line_buffer
from hw.lib.taps import WindowTaps, taps_cycles
from hw.lib.taps_mac import TapsMac
from hw.lib.window import WindowStage
from hw.params import Ints, Ints3, Lanes, LineBuffer, Multiplier, RomKind, Window
from hw.units.base import Unit, signature


class DepthwiseUnit(Unit):
    """One kernel a channel, bias added. Golden model: :meth:`sw.ops.depthwise.Depthwise.golden`.

    A line buffer emits the taps of each channel group, ``taps`` of them a cycle are multiplied and added. Throughput: ``taps``
    taps of ``i.lanes`` channels a cycle, at most a beat. Latency from the last beat that a result needs with one tap: four
    cycles and those of the Mac; with several, see :class:`hw.lib.taps.WindowTaps`, KH·KW / ``taps`` + 3 and the stages of an adder tree.

    Parameters: ``height``, ``width``, ``channels`` of the input map; ``window``; ``weights`` (KH, KW, C); ``bias`` (C,);
    ``taps`` a cycle: 1, KW (a row of the window) or KH·KW; with one tap a cycle: ``multiplier`` (:class:`hw.lib.mac.Mac`), ``memory``:
    place of the weights, ``lines``: the line buffer (:func:`hw.lib.paged.line_buffer`); ``i``; ``o``: as many lanes, signed, the exact
    accumulator.
    Raises ValueError if they do not fit together.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(
        self, *, height: int, width: int, channels: int, window: Window, weights: Ints3, bias: Ints, i: Lanes, o: Lanes, taps: int = 1,
        multiplier: Multiplier = "inferred", lines: LineBuffer = "ring", memory: RomKind = "auto",
    ) -> None:  # fmt: skip
        if (len(weights), *{len(row) for row in weights}) != window.kernel:
            raise ValueError(f"weights must be (KH, KW, C) with a {window.kernel} kernel, not rows of {[len(row) for row in weights]}")
        if len(bias) != channels:
            raise ValueError(f"bias must have {channels} entries, not {len(bias)}")
        if taps not in (1, window.kernel[1], window.taps):
            raise ValueError(f"taps must be 1, {window.kernel[1]} or {window.taps} with a {window.kernel} kernel, not {taps!r}")
        if lines != "ring" and taps != 1:
            raise ValueError(f"a line buffer for several taps a cycle is neither tight nor paged, not {lines!r} with {taps} taps")
        rows = [tap for row in weights for tap in row]
        self.taps = taps
        self.window: WindowStage | WindowTaps
        self.mac: Mac | TapsMac
        if taps == 1:
            self.window = line_buffer(lines, height=height, width=width, channels=channels, window=window, i=i, order="group")
            self.mac = Mac(weights=rows, bias=bias, i=i, o=o, multiplier=multiplier, memory=memory)
        else:
            self.window = WindowTaps(height=height, width=width, channels=channels, window=window, i=i)
            if o.lanes != i.lanes:
                raise ValueError(f"o must be signed and have {i.lanes} lanes like i, not {o!r}")
            self.mac = TapsMac(weights=rows, bias=bias, at_once=taps, i=self.window.out, o=o)
        super().__init__({"i": In(signature(i)), "o": Out(signature(o))})

    @property
    def frame_cycles(self) -> int:
        """Taps of all output pixels and channel groups over ``taps``, or input beats if those are more.

        A little above either where a row of taps a cycle and a stride take turns in being slower (hw.lib.taps.taps_cycles).
        """
        if isinstance(self.window, WindowStage):
            return self.window.frame_cycles
        stage = self.window
        return taps_cycles(stage.height, stage.width, stage.groups, stage.window, stage.window.taps // self.taps)

    @property
    def multipliers(self) -> int:
        """``taps`` a lane."""
        return self.mac.multipliers

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.window, m.submodules.mac = self.window, self.mac
        wiring.connect(m, wiring.flipped(self.i), self.window.i)
        wiring.connect(m, self.window.o, self.mac.i)
        wiring.connect(m, self.mac.o, wiring.flipped(self.o))
        return m
