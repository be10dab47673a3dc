"""Registers around a unit, so that place and route times the unit and not the pins."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class Shell(wiring.Component):
    """``unit`` between a shift register that feeds every input bit and a pipelined XOR tree that reads every output bit.

    So the whole unit hangs on one pin in and one pin out, nothing of it can be optimized away, each of its ports ends at a
    register, and the shell's own longest path is one LUT. Its function means nothing.

    Members: ``si``: bits shifted in; ``so``: parity of all outputs, some cycles late.
    """

    si: Signal
    so: Signal

    def __init__(self, unit: wiring.Component) -> None:
        self.unit = unit
        super().__init__({"si": In(1), "so": Out(1)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = self.unit
        inputs: list[Value] = []
        outputs: list[Value] = []
        for _, member, value in self.unit.signature.flatten(self.unit):
            (inputs if member.flow == wiring.In else outputs).append(Value.cast(value))
        shift = Signal(len(Cat(inputs)), reset_less=True)
        m.d.sync += shift.eq(Cat(self.si, shift))
        m.d.comb += Cat(inputs).eq(shift)
        level = Signal(len(Cat(outputs)), name="captured", reset_less=True)
        m.d.sync += level.eq(Cat(outputs))
        while len(level) > 1:
            folded = Signal(-(-len(level) // 4), name=f"parity{len(level)}", reset_less=True)
            m.d.sync += folded.eq(Cat(level[k : k + 4].xor() for k in range(0, len(level), 4)))
            level = folded
        m.d.comb += self.so.eq(level)
        return m
