"""Changing how many channels a beat carries."""
from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from hw.params import Lanes
from hw.units.base import Unit, signature


class Regroup(Unit):
    """Gearbox: the channels of a pixel in beats of ``o_lanes`` instead of ``i.lanes``; pixels never share a beat.

    A shift register holds what has come of a pixel; a beat leaves when it is full or the pixel complete, and in the same
    cycle the next may come in. Interval of a pixel: :attr:`pixel_cycles`, the greater number of beats, or one or two more
    where the sizes do not divide. Latency one cycle after the last beat needed; ready passes through from the output.

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
        m = Module()
        t_in, t_out = self.i_lanes.lanes, self.o_lanes.lanes
        n_in, n_out = self.i_lanes.beats(self.channels), self.o_lanes.beats(self.channels)
        step = gcd(t_in, t_out)
        capacity = t_in + t_out - step
        bits = self.i_lanes.bits
        held = Signal(capacity * bits)
        level = Signal(range(capacity // step + 1))  # in steps; not kept once the pixel is complete
        taken, given = Signal(range(n_in + 1)), Signal(range(n_out))
        complete, emit, final, left = Signal(), Signal(), Signal(), Signal.like(level)
        m.d.comb += [
            complete.eq(taken == n_in),
            self.o.valid.eq(complete | (level >= t_out // step)),
            self.o.payload.as_value().eq(held),
            emit.eq(self.o.valid & self.o.ready),
            final.eq(emit & (given == n_out - 1)),
            left.eq(Mux(final, 0, Mux(emit, level - t_out // step, level))),
            self.i.ready.eq(final | (~complete & (left <= (capacity - t_in) // step))),
        ]
        kept = Signal.like(held)
        m.d.comb += kept.eq(Mux(final, 0, Mux(emit, held >> t_out * bits, held)))
        with m.If(emit):
            m.d.sync += given.eq(Mux(final, 0, given + 1))
        with m.If(self.i.valid & self.i.ready):
            arrived = self.arrived(m, Mux(final, 0, taken) == n_in - 1)
            m.d.sync += [held.eq(kept | self.placed(m, arrived, left, step * bits)), level.eq(left + t_in // step)]
            m.d.sync += taken.eq(Mux(final, 1, taken + 1))
        with m.Else():
            m.d.sync += [held.eq(kept), level.eq(left)]
            with m.If(final):
                m.d.sync += taken.eq(0)
        return m

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
