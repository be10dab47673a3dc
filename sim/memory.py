# amaranth: UnusedElaboratable=no
"""An external memory around a unit, with latency and stalls, for tests and measurements of units in any simulator."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import memory, stream, wiring

from hw.lib.fifo import Fifo
from hw.lib.memory import ReadPort, WritePort
from hw.params import Lanes

#: Commands of each port that the memory accepts ahead.
COMMANDS = 16
#: Bytes that a command writes at most, if the unit does not say (``row_bytes``).
ROW = 4096


def memory_ports(unit: Any) -> dict[str, ReadPort | WritePort]:
    """The ports to memory among a unit's members."""
    members = {n: m.signature for n, m in unit.signature.members.items() if m.is_signature}
    return {n: s for n, s in members.items() if isinstance(s, ReadPort | WritePort)}


class InMemory(wiring.Component):  # type: ignore[misc]
    """``unit`` with its ports to memory (hw.lib.memory) in a memory of its own; its streams are left.

    A command's first word comes ``latency`` cycles or more after it was accepted, then a word a cycle; latencies overlap. Words written
    lie in a queue and reach the memory only ``latency`` cycles after the command's last word; then ``done`` follows. ``stalls`` is how
    often in 16 cycles, at random, each side of a port pauses. The memory holds ``image``, from address 0 on (default: the unit's own,
    if it has one); elsewhere what was never written reads as a pattern, not 0.
    """

    def __init__(self, unit: Any, *, latency: int = 8, stalls: int = 0, seed: int = 1, image: bytes | None = None) -> None:
        self.unit, self.latency, self.stalls, self.seed = unit, latency, stalls, seed
        self.ports = memory_ports(unit)
        (self.bits,) = {port.data_bits for port in self.ports.values()}
        self.initial: bytes = image if image is not None else unit.image() if hasattr(unit, "image") else b""
        members = unit.signature.members
        super().__init__({n: m for n, m in members.items() if m.is_signature and isinstance(m.signature, stream.Signature)})

    @property
    def frame_cycles(self) -> int:
        """The unit's."""
        cycles: int = self.unit.frame_cycles
        return cycles

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        for name in self.signature.members:
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(unit, name))
        self.now, noise = Signal(32), Signal(32, init=self.seed * 0x9E3779B1 & 0xFFFFFFFF)
        m.d.sync += [self.now.eq(self.now + 1), noise.eq(Cat(noise[31] ^ noise[21] ^ noise[1] ^ noise[0], noise))]
        self.noise = noise
        m.submodules.words = words = memory.Memory(shape=self.bits, depth=len(self.content()), init=self.content())
        for name, port in self.ports.items():
            (self.read if isinstance(port, ReadPort) else self.write)(m, words, getattr(unit, name), name)
        return m

    def content(self) -> list[int]:
        """The words that the memory begins with."""
        size = self.bits // 8
        whole = self.initial.ljust(getattr(self.unit, "region_bytes", 0), b"\x5a")
        return [int.from_bytes(whole[k : k + size], "little") for k in range(0, len(whole), size)]

    def willing(self, at: int) -> Any:
        """Whether a side goes on in this cycle; ``at`` tells sides apart."""
        return Cat(self.noise[at], self.noise[at + 3], self.noise[at + 7], self.noise[at + 12]) >= self.stalls

    def queue(self, m: Module, name: str, port: Any, willing: Any) -> tuple[Fifo, Any, Any]:
        """A queue of commands, each with the time before which nothing happens: (queue, address in words, words)."""
        layout = port.command.payload.shape()
        fifo = Fifo(Lanes(lanes=layout.size + 32, bits=1, signed=False), COMMANDS, "registers")
        m.submodules[name] = fifo
        m.d.comb += [fifo.i.valid.eq(port.command.valid & willing), port.command.ready.eq(fifo.i.ready & willing)]
        m.d.comb += fifo.i.payload.as_value().eq(Cat(port.command.payload.as_value(), self.now + self.latency))
        head = fifo.o.payload.as_value()
        command = port.command.payload.shape()(head[: layout.size])
        return fifo, command.address[(self.bits // 8).bit_length() - 1 :], command.words

    def read(self, m: Module, words: memory.Memory, port: Any, name: str) -> None:
        """Commands in turn, a word a cycle."""
        source = words.read_port(domain="comb")
        fifo, address, count = self.queue(m, f"{name}_commands", port, self.willing(0))
        due, at, on = fifo.o.payload.as_value()[-32:], Signal(16), Signal()
        m.d.comb += on.eq(fifo.o.valid & (due <= self.now))
        held, word = Signal(), Signal(self.bits)
        m.d.comb += [source.addr.eq(address + at), port.data.valid.eq(held), port.data.payload.eq(word)]
        with m.If(~held | port.data.ready):
            fetch = on & self.willing(8)
            m.d.sync += held.eq(fetch)
            with m.If(fetch):
                m.d.sync += [word.eq(source.data), at.eq(at + 1)]
                with m.If(at == count - 1):
                    m.d.sync += at.eq(0)
                    m.d.comb += fifo.o.ready.eq(1)

    def write(self, m: Module, words: memory.Memory, port: Any, name: str) -> None:
        """Words wait in a queue until their command is complete and ``latency`` cycles have passed."""
        sink = words.write_port()
        fifo, address, count = self.queue(m, f"{name}_commands", port, self.willing(4))
        rows = 2 * getattr(self.unit, "row_bytes", ROW) * 8 // self.bits
        m.submodules.data = data = Fifo(Lanes(lanes=self.bits, bits=1, signed=False), rows + COMMANDS)
        willing = self.willing(13)
        m.d.comb += [data.i.valid.eq(port.data.valid & willing), data.i.payload.as_value().eq(port.data.payload)]
        m.d.comb += port.data.ready.eq(data.i.ready & willing)
        waiting, at, wait, on = Signal(32), Signal(16), Signal(range(self.latency + 2)), Signal()
        m.d.comb += on.eq(fifo.o.valid & (wait == self.latency + 1) & data.o.valid)
        m.d.comb += [sink.addr.eq(address + at), sink.data.eq(data.o.payload.as_value()), sink.en.eq(on), data.o.ready.eq(on)]
        m.d.sync += waiting.eq(waiting + (port.data.valid & port.data.ready) - on)
        with m.If(fifo.o.valid & (wait != self.latency + 1) & (waiting + at >= count)):
            m.d.sync += wait.eq(wait + 1)
        with m.If(on):
            m.d.sync += at.eq(at + 1)
            with m.If(at == count - 1):
                m.d.sync += [at.eq(0), wait.eq(0), port.done.eq(1)]
                m.d.comb += fifo.o.ready.eq(1)
        with m.If(~(on & (at == count - 1))):
            m.d.sync += port.done.eq(0)
