# amaranth: UnusedElaboratable=no
"""Constants read in order."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lib.store import table
from hw.params import RomKind


class Rom(wiring.Component):
    """``rows`` of ``bits`` one after the other, for ever: ``data`` is the row that the counter showed at the last ``en``.

    The counter is its own and not merged with equal ones elsewhere, since one counter for many memories drives too much.

    Ports: ``en``: the row is fetched; ``next``: the counter moves on; ``data``. ``kind``: where the rows stand (hw/lib/store.py).
    """

    en: Signal
    next: Signal
    data: Signal

    def __init__(self, rows: Sequence[int], bits: int, kind: RomKind = "auto") -> None:
        self.rows, self.bits, self.kind = rows, bits, kind
        super().__init__({"en": In(1), "next": In(1), "data": Out(bits)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        index = Signal(range(len(self.rows)), attrs={"keep": 1})
        m.d.comb += self.data.eq(table(m, "rows", self.rows, self.bits, index, self.en, self.kind))
        with m.If(self.next):
            m.d.sync += index.eq(Mux(index == len(self.rows) - 1, 0, index + 1))
        return m
