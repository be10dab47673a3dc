# amaranth: UnusedElaboratable=no
"""Changing how many channels a beat carries."""
from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.params import Lanes
from hw.units.base import Unit, signature


class Regroup(Unit):
    """Gearbox: the channels of a pixel in beats of ``o_lanes`` instead of ``i.lanes``; pixels never share a beat.

    A register holds what has come of a pixel; a beat leaves when it is full or the pixel complete, and in the same
    cycle the next may come in. Where one width is a multiple of the other it is loaded or shifted as a whole (one LUT a bit, or
    none), otherwise a shifter places each beat. Interval of a pixel: :attr:`pixel_cycles`, the greater number of beats, or one or
    two more where the sizes do not divide. Latency one cycle after the last beat needed (two from wide to
    narrow, where ready is registered); otherwise ready passes through from the output.

    Parameters
    ----------
    channels: of the map
    i: stream in
    o_lanes: lanes of a beat out
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, channels: int, i: Lanes, o_lanes: int, pixels: int = 1) -> None:
        if channels < 1:
            raise ValueError(f"channels must be a positive integer, not {channels!r}")
        self.channels, self.pixels = channels, pixels
        self.i_lanes, self.o_lanes = i, replace(i, lanes=o_lanes)
        super().__init__({"i": In(signature(i)), "o": Out(signature(self.o_lanes))})

    @property
    def pixel_cycles(self) -> int:
        """Cycles from one pixel to the next at full rate: the schedule of ``elaborate``, stepped in Python."""
        widths = self.i_lanes.lanes, self.o_lanes.lanes
        if max(widths) % min(widths) == 0:
            return max(self.i_lanes.beats(self.channels), self.o_lanes.beats(self.channels))
        taken, given, n_in, n_out = 0, 0, self.i_lanes.beats(self.channels), self.o_lanes.beats(self.channels)
        cycles = 0
        while given < n_out:
            level = taken * self.i_lanes.lanes - given * self.o_lanes.lanes
            emits = taken == n_in or level >= self.o_lanes.lanes
            final = emits and given == n_out - 1
            # A beat of the next pixel comes in with the final beat of this one, so that cycle belongs to the next.
            left = level - emits * self.o_lanes.lanes
            if taken < n_in and left <= self.o_lanes.lanes - gcd(self.i_lanes.lanes, self.o_lanes.lanes):
                taken += 1
            given += emits
            cycles += not final
        return cycles

    @property
    def frame_cycles(self) -> int:
        return self.pixels * self.pixel_cycles

    def elaborate(self, platform: Any) -> Module:
        t_in, t_out = self.i_lanes.lanes, self.o_lanes.lanes
        m = Module()
        if t_in % t_out == 0:
            self.serialize(m, t_in // t_out)
        elif t_out % t_in == 0:
            self.collect(m, t_out // t_in)
        else:
            self.shift(m)
        return m

    def serialize(self, m: Module, ratio: int) -> None:
        """Wide to narrow: a beat is loaded whole and shifted out."""
        n_in, n_out = self.i_lanes.beats(self.channels), self.o_lanes.beats(self.channels)
        held = Signal(self.i_lanes.width, reset_less=True)
        rest, taken = Signal(range(ratio + 1)), Signal(range(n_in))  # beats left in the register; beats of the pixel
        empty, one = Signal(init=1), Signal()  # rest == 0, rest == 1: ready goes far, so it should come from registers
        last = taken == n_in - 1
        # A register slice on the narrow side, where it is cheap, keeps the ready of what follows from the wide side.
        m.submodules.slice = narrow = Fifo(self.o_lanes, 2)
        wiring.connect(m, narrow.o, wiring.flipped(self.o))
        m.d.comb += [
            narrow.i.valid.eq(~empty),
            narrow.i.payload.as_value().eq(held),
            self.i.ready.eq(empty | (one & narrow.i.ready)),
        ]
        final = n_out - (n_in - 1) * ratio  # beats out of a pixel's last beat in
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [held.eq(self.arrived(m, last)), taken.eq(Mux(last, 0, taken + 1))]
            m.d.sync += [rest.eq(Mux(last, final, ratio)), empty.eq(0), one.eq(Mux(last, final == 1, ratio == 1))]
        with m.Elif(~empty & narrow.i.ready):
            m.d.sync += [held.eq(held >> self.o_lanes.width), rest.eq(rest - 1), empty.eq(one), one.eq(rest == 2)]

    def collect(self, m: Module, ratio: int) -> None:
        """Narrow to wide: each beat has its place; the first clears the others."""
        n_in = self.i_lanes.beats(self.channels)
        places = [Signal(self.i_lanes.width, name=f"place{k}", reset_less=True) for k in range(ratio)]
        level, taken = Signal(range(ratio)), Signal(range(n_in))  # beats in the register; beats of the pixel
        last = taken == n_in - 1
        m.d.comb += [self.o.payload.as_value().eq(Cat(places)), self.i.ready.eq(~self.o.valid | self.o.ready)]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            arrived = self.arrived(m, last)
            full = last | (level == ratio - 1)
            m.d.sync += [self.o.valid.eq(full), level.eq(Mux(full, 0, level + 1)), taken.eq(Mux(last, 0, taken + 1))]
            for k, place in enumerate(places):
                with m.If(level == k):
                    m.d.sync += place.eq(arrived)
                with m.Elif(level == 0):
                    m.d.sync += place.eq(0)

    def shift(self, m: Module) -> None:
        """Any widths: beats are placed behind what is left of those before. What decides is kept in registers of its own."""
        t_in, t_out = self.i_lanes.lanes, self.o_lanes.lanes
        n_in, n_out = self.i_lanes.beats(self.channels), self.o_lanes.beats(self.channels)
        step = gcd(t_in, t_out)
        capacity = t_in + t_out - step
        bits = self.i_lanes.bits
        held = Signal(capacity * bits)
        level = Signal(range(capacity // step + 1))  # in steps; not kept once the pixel is complete
        after = Signal.like(level, name="after", init=-t_out // step % (1 << len(level)))  # level less a beat
        taken, given = Signal(range(n_in + 1)), Signal(range(n_out))
        ends, complete, valid, last = Signal(init=n_in == 1), Signal(), Signal(), Signal(init=n_out == 1)
        take, emit, final, left = Signal(), Signal(), Signal(), Signal.like(level, name="left")
        m.d.comb += [
            self.o.valid.eq(valid),
            self.o.payload.as_value().eq(held),
            emit.eq(valid & self.o.ready),
            final.eq(emit & last),
            left.eq(Mux(final, 0, Mux(emit, after, level))),
            self.i.ready.eq(final | (~complete & (left <= (capacity - t_in) // step))),
            take.eq(self.i.valid & self.i.ready),
        ]
        kept = Signal.like(held, name="kept")
        m.d.comb += kept.eq(Mux(final, 0, Mux(emit, held >> t_out * bits, held)))
        due, now_ends = Mux(final, 0, taken), Mux(final, n_in == 1, ends)
        m.d.sync += [held.eq(kept), level.eq(left), after.eq(left - t_out // step), taken.eq(due)]
        m.d.sync += [ends.eq(now_ends), complete.eq(complete & ~final), valid.eq((complete & ~final) | (left >= t_out // step))]
        with m.If(emit):
            m.d.sync += [given.eq(Mux(final, 0, given + 1)), last.eq(Mux(final, n_out == 1, given == n_out - 2))]
        with m.If(take):
            arrived = self.arrived(m, now_ends)
            m.d.sync += held.eq(kept | self.placed(m, arrived, left, step * bits))
            m.d.sync += [level.eq(left + t_in // step), after.eq(left + (t_in - t_out) // step)]
            m.d.sync += [taken.eq(due + 1), ends.eq(Mux(final, n_in == 2, taken == n_in - 2)), complete.eq(now_ends)]
            m.d.sync += valid.eq(now_ends | (left + t_in // step >= t_out // step))

    def arrived(self, m: Module, last: Any) -> Signal:
        """The beat coming in, with the unused lanes of a pixel's last beat cleared."""
        used = self.channels - (self.i_lanes.beats(self.channels) - 1) * self.i_lanes.lanes
        raw = self.i.payload.as_value()
        clean = Signal(len(raw))
        m.d.comb += clean.eq(Mux(last, raw[: used * self.i_lanes.bits], raw))
        return clean

    def placed(self, m: Module, beat: Signal, level: Signal, step_bits: int) -> Signal:
        """``beat`` moved up behind the ``level`` steps that are there."""
        moved = Signal((self.i_lanes.lanes + self.o_lanes.lanes) * self.i_lanes.bits)
        with m.Switch(level):
            for steps in range(1 << len(level)):
                if steps * step_bits + len(beat) <= len(moved):
                    with m.Case(steps):
                        m.d.comb += moved.eq(Cat(beat) << steps * step_bits)
        return moved
