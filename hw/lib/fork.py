"""One stream to several readers."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from hw.params import Lanes
from hw.units.base import Unit, signature


class Fork(Unit):
    """Copies every beat to all outputs; each output takes its copy when it likes, the input waits for the slowest.

    Throughput one beat a cycle, no latency; ready passes through, so put a queue behind the outputs.

    Parameters
    ----------
    lanes: what a beat carries
    outputs: number of copies, at least 1

    Members
    -------
    i: stream in; o0, o1, ...: streams out
    """

    i: stream.Interface

    def __init__(self, lanes: Lanes, outputs: int) -> None:
        if outputs < 1:
            raise ValueError(f"outputs must be a positive integer, not {outputs!r}")
        self.outputs = outputs
        super().__init__({"i": In(signature(lanes)), **{f"o{k}": Out(signature(lanes)) for k in range(outputs)}})

    @property
    def frame_cycles(self) -> int:
        """One cycle a beat: a fork knows no frames."""
        return 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        done, served = Signal(self.outputs), Signal(self.outputs)
        m.d.comb += self.i.ready.eq(served.all())
        for k in range(self.outputs):
            o = getattr(self, f"o{k}")
            m.d.comb += [o.payload.eq(self.i.payload), o.valid.eq(self.i.valid & ~done[k]), served[k].eq(done[k] | o.ready)]
        with m.If(self.i.valid):
            with m.If(self.i.ready):
                m.d.sync += done.eq(0)
            with m.Else():
                m.d.sync += done.eq(served)
        return m
