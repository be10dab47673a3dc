# amaranth: UnusedElaboratable=no
"""AXI4 masters behind a unit's ports to memory (hw/lib/memory.py): commands become bursts."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.axi_read import PAGE, read_signature
from hw.lib.fifo import Fifo
from hw.lib.memory import ReadPort, WritePort
from hw.params import Lanes


def write_signature(address_bits: int, data_bits: int) -> wiring.Signature:
    """The write channels of AXI4 as the master sees them, one identifier."""
    ask = {"awid": Out(1), "awaddr": Out(address_bits), "awlen": Out(8), "awsize": Out(3), "awburst": Out(2), "awlock": Out(1)}
    ask |= {"awcache": Out(4), "awprot": Out(3), "awvalid": Out(1), "awready": In(1)}
    words = {"wdata": Out(data_bits), "wstrb": Out(data_bits // 8), "wlast": Out(1), "wvalid": Out(1), "wready": In(1)}
    return wiring.Signature({**ask, **words, "bid": In(1), "bresp": In(2), "bvalid": In(1), "bready": Out(1)})


class Bursts(wiring.Component):
    """Cuts commands into bursts of at most ``burst`` words, none across a 4 kB boundary; one every two cycles at most.

    Members: ``command``: as of a port; ``base``: added to its address; ``address`` (in words), ``length`` (1..burst), ``last``: of the next
    burst, while ``planned``; ``go``: it is issued; ``idle``: nothing is left to issue.
    """

    command: stream.Interface

    def __init__(self, port: ReadPort | WritePort, *, address_bits: int, burst: int) -> None:
        self.size, self.burst = (port.data_bits // 8).bit_length() - 1, burst
        super().__init__({
            "command": In(port.members["command"].signature), "base": In(address_bits), "address": Out(address_bits - self.size),
            "length": Out(range(burst + 1)), "last": Out(1), "planned": Out(1), "go": In(1), "idle": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        left, command = Signal(16), self.command
        m.d.comb += [command.ready.eq(left == 0), self.idle.eq((left == 0) & ~command.valid), self.last.eq(left == self.length)]
        with m.If((left == 0) & command.valid):
            m.d.sync += [left.eq(command.payload.words), self.address.eq((self.base + command.payload.address) >> self.size)]
        page = (PAGE >> self.size) - self.address[: 12 - self.size]  # words up to the boundary
        most = Mux(left < self.burst, left, self.burst)
        with m.If(~self.planned & (left != 0)):
            m.d.sync += [self.length.eq(Mux(page < most, page, most)), self.planned.eq(1)]
        with m.If(self.go):
            m.d.sync += [left.eq(left - self.length), self.address.eq(self.address + self.length), self.planned.eq(0)]
        return m


def _check(port: ReadPort | WritePort, address_bits: int, burst: int, outstanding: int) -> None:
    if not 1 <= burst <= 256 or burst * port.data_bits // 8 > PAGE:
        raise ValueError(f"burst must be in 1..{min(256, PAGE * 8 // port.data_bits)}, not {burst!r}")
    if outstanding < 1:
        raise ValueError(f"outstanding must be a positive integer, not {outstanding!r}")
    if not port.address_bits <= address_bits <= 64:
        raise ValueError(f"address_bits must be in {port.address_bits}..64, not {address_bits!r}")


class AxiReader(wiring.Component):
    """A read port served by AXI4. A burst is asked for when the queue has room for all of it, so read data never wait.

    ``outstanding`` full bursts of ``burst`` words are under way at most; together they cover the memory's latency. Data with an error
    response are delivered like any other. ValueError if a size does not fit.

    Members: ``port``: as the memory sees it; ``bus``: AXI4 read channels; ``base``: byte address of the port's region, a multiple of the
    word; ``error``: an error response arrived in this cycle; ``idle``: nothing is to be read or under way.
    """

    def __init__(self, port: ReadPort, *, address_bits: int = 40, burst: int = 16, outstanding: int = 8) -> None:
        _check(port, address_bits, burst, outstanding)
        self.data_bits, self.depth = port.data_bits, burst * outstanding
        self.bursts = Bursts(port, address_bits=address_bits, burst=burst)
        super().__init__({
            "port": In(port), "bus": Out(read_signature(address_bits, port.data_bits)), "base": In(address_bits),
            "error": Out(1), "idle": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.bursts, bus, bursts = self.bursts, self.bus, self.bursts
        m.submodules.queue = queue = Fifo(Lanes(lanes=self.data_bits, bits=1, signed=False), self.depth)
        wiring.connect(m, wiring.flipped(self.port.command), bursts.command)
        data = self.port.data
        m.d.comb += [data.payload.eq(queue.o.payload.as_value()), data.valid.eq(queue.o.valid), queue.o.ready.eq(data.ready)]
        m.d.comb += [queue.i.payload.as_value().eq(bus.rdata), queue.i.valid.eq(bus.rvalid), bus.rready.eq(queue.i.ready)]
        m.d.comb += [self.error.eq(bus.rvalid & bus.rready & bus.rresp[1]), bursts.base.eq(self.base)]
        m.d.comb += [bus.arsize.eq(bursts.size), bus.arburst.eq(1), bus.arcache.eq(0b0011)]  # incrementing, modifiable, bufferable
        room = Signal(range(self.depth + 1), init=self.depth)  # words of the queue that hold nothing and are promised to no burst
        m.d.comb += bursts.go.eq(bursts.planned & (room >= bursts.length) & (~bus.arvalid | bus.arready))
        m.d.sync += room.eq(room - Mux(bursts.go, bursts.length, 0) + (data.valid & data.ready))
        with m.If(bus.arready):
            m.d.sync += bus.arvalid.eq(0)
        with m.If(bursts.go):
            m.d.sync += [bus.arvalid.eq(1), bus.araddr.eq(Cat(Const(0, bursts.size), bursts.address)), bus.arlen.eq(bursts.length - 1)]
        m.d.comb += self.idle.eq(bursts.idle & ~bus.arvalid & (room == self.depth))
        return m


class AxiWriter(wiring.Component):
    """A write port served by AXI4: bursts are asked for as commands come, words follow, and a command is done with its last response.

    At most ``outstanding`` bursts wait for their response. ValueError if a size does not fit. Members as of :class:`AxiReader`, with
    write channels.
    """

    def __init__(self, port: WritePort, *, address_bits: int = 40, burst: int = 16, outstanding: int = 8) -> None:
        _check(port, address_bits, burst, outstanding)
        self.outstanding = outstanding
        self.bursts = Bursts(port, address_bits=address_bits, burst=burst)
        super().__init__({
            "port": In(port), "bus": Out(write_signature(address_bits, port.data_bits)), "base": In(address_bits),
            "error": Out(1), "idle": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.bursts, bus, bursts = self.bursts, self.bus, self.bursts
        wiring.connect(m, wiring.flipped(self.port.command), bursts.command)
        m.d.comb += [bursts.base.eq(self.base), bus.awsize.eq(bursts.size), bus.awburst.eq(1), bus.awcache.eq(0b0011)]
        lengths, responses = (self.queue(m, name, bits) for name, bits in (("lengths", len(bursts.length)), ("responses", 1)))
        room = lengths.i.ready & responses.i.ready
        m.d.comb += bursts.go.eq(bursts.planned & room & (~bus.awvalid | bus.awready))
        m.d.comb += [lengths.i.valid.eq(bursts.go), lengths.i.payload.as_value().eq(bursts.length)]
        m.d.comb += [responses.i.valid.eq(bursts.go), responses.i.payload.as_value().eq(bursts.last)]
        with m.If(bus.awready):
            m.d.sync += bus.awvalid.eq(0)
        with m.If(bursts.go):
            m.d.sync += [bus.awvalid.eq(1), bus.awaddr.eq(Cat(Const(0, bursts.size), bursts.address)), bus.awlen.eq(bursts.length - 1)]
        self.words(m, lengths)
        answered = bus.bvalid & bus.bready
        m.d.comb += [bus.bready.eq(responses.o.valid), responses.o.ready.eq(bus.bvalid), self.error.eq(answered & bus.bresp[1])]
        m.d.sync += self.port.done.eq(answered & responses.o.payload.as_value()[0])
        m.d.comb += self.idle.eq(bursts.idle & ~responses.o.valid)
        return m

    def queue(self, m: Module, name: str, bits: int) -> Fifo:
        """A short queue of numbers."""
        m.submodules[name] = made = Fifo(Lanes(lanes=bits, bits=1, signed=False), self.outstanding, "registers")
        return made

    def words(self, m: Module, lengths: Fifo) -> None:
        """Words in bursts of the lengths that were asked for."""
        bus, data, count = self.bus, self.port.data, Signal.like(self.bursts.length, name="count")
        last: Value = count == lengths.o.payload.as_value() - 1
        taken = bus.wvalid & bus.wready
        m.d.comb += [bus.wdata.eq(data.payload), bus.wstrb.eq(-1), bus.wlast.eq(last)]
        m.d.comb += [bus.wvalid.eq(data.valid & lengths.o.valid), data.ready.eq(bus.wready & lengths.o.valid)]
        m.d.comb += lengths.o.ready.eq(taken & last)
        with m.If(taken):
            m.d.sync += count.eq(Mux(last, 0, count + 1))
