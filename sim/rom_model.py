# amaranth: UnusedElaboratable=no
"""External memory for tests of units: a ROM behind a read port, with latency and pauses."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In

from hw.lib.memory import ReadPort


class RomModel(wiring.Component):  # type: ignore[misc]
    """Answers one command after the other: ``latency`` cycles, then a word a cycle, with pauses of a pseudo-random length where ``pauses``.

    Member ``port``: the port as the memory sees it. For tests; not meant for synthesis.
    """

    def __init__(self, image: bytes, *, address_bits: int, data_bits: int, latency: int = 20, pauses: bool = False) -> None:
        self.size = data_bits // 8
        self.words = [int.from_bytes(image[k : k + self.size], "little") for k in range(0, len(image), self.size)]
        self.latency, self.pauses, self.data_bits = latency, pauses, data_bits
        super().__init__({"port": In(ReadPort(address_bits=address_bits, data_bits=data_bits))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.words = memory = Memory(shape=self.data_bits, depth=len(self.words), init=self.words)
        read = memory.read_port(domain="comb")
        command, data = self.port.command, self.port.data
        left, place, wait, lfsr = Signal(16), Signal(range(len(self.words) + 1)), Signal(16), Signal(16, init=0xACE1)
        m.d.comb += [command.ready.eq(left == 0), read.addr.eq(place), data.payload.eq(read.data)]
        m.d.comb += data.valid.eq((left != 0) & (wait == 0))
        m.d.sync += lfsr.eq(Mux(lfsr[0], (lfsr >> 1) ^ 0xB400, lfsr >> 1))
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.If(command.valid & command.ready):
            shift = (self.size - 1).bit_length()
            m.d.sync += [left.eq(command.payload.words), place.eq(command.payload.address >> shift), wait.eq(self.latency)]
        with m.If(data.valid & data.ready):
            m.d.sync += [left.eq(left - 1), place.eq(place + 1)]
            if self.pauses:
                m.d.sync += wait.eq(Mux(lfsr[:2] == 0, lfsr[3:7], 0))
        return m
