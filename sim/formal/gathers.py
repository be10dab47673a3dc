"""What the ring of a deformable unit must do, watched at its ports, for offsets that nobody knows beforehand."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Assert, Assume, Module, Mux, Signal, signed
from amaranth.lib.wiring import In

from hw.lib.gather import GatherStage
from sim.formal.harness import Harness, held


class Gathers(Harness):
    """A :class:`hw.lib.gather.GatherStage` with whole dilations, one channel group: one beat of the map and one output pixel are followed.

    Of the pixel, chosen by ``choose`` as its offset comes, the offset is remembered; each of its words must have come before it is given,
    be the followed beat where it is that, and 0 outside the map. ``frames``: how many the unit holds at most; ``pixels``: how many offsets.
    Members besides: ``place``, the beat that is followed; ``code_valid``, ``code``: the offsets' source; ``choose``.
    """

    def __init__(self, unit: GatherStage, frames: int, pixels: int) -> None:
        if unit.frac_bits or unit.offsets.free or unit.groups != 1 or unit.upsample != 1:
            raise ValueError("the unit must have whole dilations, a pixel each, one channel group and no upsampling")
        self.frames, self.pixels, self.size = frames, pixels, unit.height * unit.width
        code = len(unit.offset_i.payload.as_value())
        super().__init__(unit, place=In(range(max(self.size, 2))), code_valid=In(1), code=In(code), choose=In(1))

    def watch(self, m: Module, taken: Signal, given: Signal) -> None:
        unit, size = self.unit, self.size
        m.d.comb += [unit.offset_i.valid.eq(self.code_valid), unit.offset_i.payload.as_value().eq(self.code)]
        held(m, unit.offset_i, "offset", Assume)
        before, known = Signal.like(self.place), Signal()
        m.d.sync += [before.eq(self.place), known.eq(1)]
        m.d.comb += Assume((self.place < size) & (~known | (self.place == before)))

        taps = unit.size**2
        came, tap, went = Signal(range(max(size, 2))), Signal(range(taps)), Signal(range(max(size, 2)))
        pixel_out, frame_in, frame_out = Signal(), Signal(), Signal()
        m.d.comb += [pixel_out.eq(given & (tap == taps - 1)), frame_in.eq(taken & (came == size - 1))]
        m.d.comb += frame_out.eq(pixel_out & (went == size - 1))
        with m.If(taken):
            m.d.sync += came.eq(Mux(frame_in, 0, came + 1))
        with m.If(given):
            m.d.sync += tap.eq(Mux(tap == taps - 1, 0, tap + 1))
        with m.If(pixel_out):
            m.d.sync += went.eq(Mux(frame_out, 0, went + 1))
        behind = Signal(signed(4))  # frame that comes in, less the frame that goes out
        m.d.sync += behind.eq(behind + frame_in - frame_out)
        m.d.comb += Assert((behind >= 0) & (behind <= self.frames))

        following, ahead, wanted = Signal(), Signal(3), Signal.like(self.payload)
        with m.If(following & frame_out):
            m.d.sync += [ahead.eq(ahead - 1), following.eq(ahead != 0)]
        with m.If(taken & self.mark & ~following & (came == self.place)):
            m.d.sync += [following.eq(1), ahead.eq(behind - frame_out), wanted.eq(self.payload)]
        code, chosen = self._pixel(m, pixel_out)
        self._words(m, (came, tap, went, behind), following & (ahead == 0), wanted, code, chosen)

    def _pixel(self, m: Module, pixel_out: Signal) -> tuple[Signal, Signal]:
        """The followed pixel's offset, and whether its words are due."""
        offset = Signal()
        m.d.comb += offset.eq(self.unit.offset_i.valid & self.unit.offset_i.ready)
        inside, ahead, following = Signal(range(self.pixels + 2)), Signal(range(self.pixels + 2)), Signal()
        code = Signal(self.unit.offset_i.payload.shape().elem_shape, name="followed")
        m.d.sync += inside.eq(inside + offset - pixel_out)
        m.d.comb += Assert(inside <= self.pixels)
        with m.If(following & pixel_out):
            m.d.sync += [ahead.eq(ahead - 1), following.eq(ahead != 0)]
        with m.If(offset & self.choose & ~following):
            m.d.sync += [following.eq(1), ahead.eq(inside - pixel_out), code.eq(self.unit.offset_i.payload[0])]
        due = Signal()
        m.d.comb += due.eq(following & (ahead == 0))
        return code, due

    def _words(self, m: Module, counts: tuple[Signal, ...], here: Any, wanted: Signal, code: Signal, chosen: Signal) -> None:
        """Each word of the followed pixel."""
        unit, (came, tap, went, behind) = self.unit, counts
        payload = unit.o.payload.as_value()
        with m.If(unit.o.valid & chosen), m.Switch(went):
            for pixel in range(self.size):
                with m.Case(pixel):
                    self._taps(m, divmod(pixel, unit.width), (came, tap, behind), payload, here, wanted, code)

    def _taps(self, m: Module, at: tuple[int, int], counts: tuple[Signal, ...], payload: Any, here: Any, wanted: Any, code: Any) -> None:
        unit, half, (came, tap, behind) = self.unit, self.unit.size // 2, counts
        with m.Switch(tap):
            for k in range(unit.size**2):
                i, j = k // unit.size - half, k % unit.size - half
                with m.Case(k):
                    for value in range(unit.offsets.low, unit.offsets.high + 1):
                        row, col = at[0] + (value + unit.offsets.base) * i, at[1] + (value + unit.offsets.base) * j
                        with m.If(code == value):
                            if not (0 <= row < unit.height and 0 <= col < unit.width):
                                m.d.comb += Assert(payload == 0)
                                continue
                            beat = row * unit.width + col
                            m.d.comb += Assert((behind > 0) | (came > beat))
                            with m.If(here & (self.place == beat)):
                                m.d.comb += Assert(payload == wanted)
