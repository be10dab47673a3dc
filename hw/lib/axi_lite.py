"""AXI4-Lite: a slave with a plain register bus behind it."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

OKAY, SLVERR = 0, 2


def lite_signature(address_bits: int) -> wiring.Signature:
    """The 32-bit bus as its master sees it; names as in the specification (ARM IHI 0022)."""
    write = {"awaddr": Out(address_bits), "awprot": Out(3), "awvalid": Out(1), "awready": In(1)}
    write |= {"wdata": Out(32), "wstrb": Out(4), "wvalid": Out(1), "wready": In(1), "bresp": In(2), "bvalid": In(1), "bready": Out(1)}
    read = {"araddr": Out(address_bits), "arprot": Out(3), "arvalid": Out(1), "arready": In(1)}
    read |= {"rdata": In(32), "rresp": In(2), "rvalid": In(1), "rready": Out(1)}
    return wiring.Signature({**write, **read})


class AxiLite(wiring.Component):
    """Answers one read and one write at a time; address and data of a write may come in either order.

    Members
    -------
    bus: the AXI4-Lite slave, 32 bits
    write: a register is written in this cycle, at ``write_address`` (bytes, a multiple of 4), the bits of ``mask`` from ``data``
    read_address: register being read; ``read_data`` must answer in the same cycle
    write_known, read_known: whether the address may be written or read; SLVERR is answered otherwise
    """

    def __init__(self, address_bits: int) -> None:
        super().__init__({
            "bus": In(lite_signature(address_bits)),
            "write": Out(1), "write_address": Out(address_bits), "data": Out(32), "mask": Out(32), "write_known": In(1),
            "read_address": Out(address_bits), "read_data": In(32), "read_known": In(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        bus = self.bus
        has_address, has_data, act = Signal(), Signal(), Signal()
        m.d.comb += [bus.awready.eq(~has_address), bus.wready.eq(~has_data)]
        m.d.comb += [act.eq(has_address & has_data & (~bus.bvalid | bus.bready)), self.write.eq(act & self.write_known)]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(act):
            m.d.sync += [has_address.eq(0), has_data.eq(0), bus.bvalid.eq(1), bus.bresp.eq(Mux(self.write_known, OKAY, SLVERR))]
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [has_address.eq(1), self.write_address.eq(bus.awaddr & ~3)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [has_data.eq(1), self.data.eq(bus.wdata), self.mask.eq(Cat(bit.replicate(8) for bit in bus.wstrb))]
        m.d.comb += [bus.arready.eq(~bus.rvalid | bus.rready), self.read_address.eq(bus.araddr & ~3)]
        with m.If(bus.arready):
            m.d.sync += bus.rvalid.eq(bus.arvalid)
            m.d.sync += [bus.rdata.eq(Mux(self.read_known, self.read_data, 0)), bus.rresp.eq(Mux(self.read_known, OKAY, SLVERR))]
        return m
