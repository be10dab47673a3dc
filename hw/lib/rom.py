# amaranth: UnusedElaboratable=no
"""Constants read in order."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.params import RomKind


class Rom(wiring.Component):
    """``rows`` of ``bits`` one after the other, for ever: ``data`` is the row that the counter showed at the last ``en``.

    The counter is its own and not merged with equal ones elsewhere, since one counter for many memories drives too much.
    A module of its own: synthesis maps it apart (sw/synth/measure.py).

    Ports: ``en``: the row is fetched; ``next``: the counter moves on; ``data``. ``kind``: where the rows stand.
    """

    en: Signal
    next: Signal
    data: Signal

    def __init__(self, rows: Sequence[int], bits: int, kind: RomKind = "auto") -> None:
        self.rows, self.bits, self.kind = rows, bits, kind
        super().__init__({"en": In(1), "next": In(1), "data": Out(bits)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        style = {} if self.kind == "auto" else {"rom_style": {"lut": "logic", "block": "block"}[self.kind]}
        m.submodules.rows = memory = Memory(shape=self.bits, depth=len(self.rows), init=self.rows, attrs=style)
        port = memory.read_port()
        index = Signal(range(len(self.rows)), attrs={"keep": 1})
        m.d.comb += [port.addr.eq(index), port.en.eq(self.en), self.data.eq(port.data)]
        with m.If(self.next):
            m.d.sync += index.eq(Mux(index == len(self.rows) - 1, 0, index + 1))
        return m
