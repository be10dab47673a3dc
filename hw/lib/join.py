"""Several streams to one."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from amaranth.hdl import Cat, Module
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from hw.params import Lanes
from hw.units.base import Unit, signature


class Join(Unit):
    """A beat of every input side by side, taken together; the counterpart of Fork.

    Throughput one beat a cycle, no latency; ready passes through, so put a queue behind the output.

    Parameters
    ----------
    lanes: what a beat of each input carries
    inputs: how many, at least 1

    Members
    -------
    i0, i1, ...: streams in; o: stream out, ``inputs`` times the lanes, those of i0 lowest
    """

    o: stream.Interface

    def __init__(self, lanes: Lanes, inputs: int) -> None:
        if inputs < 1:
            raise ValueError(f"inputs must be a positive integer, not {inputs!r}")
        self.inputs = inputs
        ports = {f"i{k}": In(signature(lanes)) for k in range(inputs)}
        super().__init__({**ports, "o": Out(signature(replace(lanes, lanes=lanes.lanes * inputs)))})

    @property
    def frame_cycles(self) -> int:
        """One cycle a beat: a join knows no frames."""
        return 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        ports = [getattr(self, f"i{k}") for k in range(self.inputs)]
        m.d.comb += [self.o.valid.eq(Cat(i.valid for i in ports).all())]
        m.d.comb += self.o.payload.as_value().eq(Cat(i.payload.as_value() for i in ports))
        m.d.comb += [i.ready.eq(self.o.valid & self.o.ready) for i in ports]
        return m
