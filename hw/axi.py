# amaranth: UnusedElaboratable=no
"""The accelerator behind AXI: pixels and results by AXI4-Stream, control by AXI4-Lite, weights from memory by AXI4."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lib.axi_lite import AxiLite, lite_signature
from hw.lib.axi_master import AxiReader, AxiWriter
from hw.lib.axi_read import AxiRead, read_signature
from hw.lib.axi_stream import FrameIn, FrameOut, stream_bits
from hw.lib.fifo import Fifo
from hw.lib.memory import ReadPort
from hw.params import Lanes
from hw.top import Accelerator

#: Answer of Register.ID: "WARP".
ID = 0x57415250
#: Major, minor, patch: a byte each. Major rises when software must change.
VERSION = 0x010000
#: Bytes of address space.
ADDRESS_BITS = 12


class Register(IntEnum):
    """Byte addresses; all registers have 32 bits. Those of controls and weights: :meth:`AxiAccelerator.addresses`."""

    ID = 0x00  # read only, "WARP"
    VERSION = 0x04  # read only
    CONTROL = 0x08  # bit 0: take frames; bit 1: take one frame, cleared when it begins
    STATUS = 0x0C  # read only, bits of Status
    FRAMES_IN = 0x10  # read only: frames that went in whole, the padded and the cut ones too
    FRAMES_OUT = 0x14  # read only: frames that left by every output
    SHORT_FRAMES = 0x18  # read only: TLAST came early, the frame was filled up with zeros
    LONG_FRAMES = 0x1C  # read only: TLAST came late, the rest was dropped
    LAST_WRONG = 0x20  # read only: number (of FRAMES_IN, from 0) of the last such frame
    READ_ERRORS = 0x24  # read only: error responses of memory, to reads and writes
    CONTROLS = 0x40  # the first control, such as the threshold; 16 at most
    WEIGHTS = 0x80  # base address of the first region of memory, low word, then high word; 240 at most


class Status(IntEnum):
    """Bits of the status register."""

    BUSY = 0  # a frame is inside
    RECEIVING = 1  # a frame has begun and not ended
    DROPPING = 2  # the rest of a long frame is being dropped
    READING = 3  # memory is being read or written


@dataclass(frozen=True, kw_only=True)
class Field:
    """A register: what is read, and the signal that a write changes (None: read only)."""

    value: Value
    target: Signal | None = None


class AxiAccelerator(wiring.Component):
    """``accelerator`` with AXI edges, all in one clock domain.

    Frames that do not have the right length are reported in the counters and neither stop the accelerator nor touch the frames
    after them (:class:`FrameIn`). Each frame taken starts one round of reading for every weight stream, so weights are there
    before the frame gets to their unit; base addresses change between frames only if STATUS.BUSY is 0.

    Parameters
    ----------
    accelerator: with the input ``image``; every other input is a weight stream; its ports to memory become masters of their own
    beats: of a frame, for each input and output stream of the accelerator
    address_bits, data_bits, burst, outstanding: of the weights' read masters (:class:`AxiRead`)

    Members
    -------
    s_axis_t*: image; a beat as in the accelerator, filled up to whole bytes, TLAST with a frame's last
    m_axis_<output>_t*: results, likewise
    s_axil_*: registers (:class:`Register`), 32 bits; m_axi_<input>_*: a read master for each weight stream; m_axi_<port>_*: a master for
    each port to memory
    """

    def __init__(
        self, accelerator: Accelerator, beats: Mapping[str, int], *,
        address_bits: int = 40, data_bits: int = 64, burst: int = 16, outstanding: int = 4,
    ) -> None:  # fmt: skip
        names = {*accelerator.inputs, *accelerator.outputs}
        if set(beats) != names or "image" not in accelerator.inputs:
            raise ValueError(f"beats must be given for {sorted(names)}, image among them, not for {sorted(beats)}")
        self.accelerator, self.beats = accelerator, dict(beats)
        self.lanes: dict[str, Lanes] = {n: p.lanes for n, p in (accelerator.inputs | accelerator.outputs).items()}
        self.image = FrameIn(self.lanes["image"], beats["image"])
        self.outs = {n: FrameOut(self.lanes[n], beats[n]) for n in accelerator.outputs}
        self.readers = {
            n: AxiRead(
                beats=beats[n], o=self.lanes[n], address_bits=address_bits, data_bits=data_bits, burst=burst, outstanding=outstanding
            )
            for n in accelerator.inputs if n != "image"
        }  # fmt: skip
        self.masters: dict[str, AxiReader | AxiWriter] = {}
        for n in accelerator.memories:
            port = accelerator.signature.members[n].signature
            kind = AxiReader if isinstance(port, ReadPort) else AxiWriter
            self.masters[n] = kind(port, address_bits=address_bits, burst=burst, outstanding=outstanding)
        regions = len(self.readers) + len(self.masters)
        if len(accelerator.controls) > 16 or regions > 240:
            raise ValueError(f"at most 16 controls and 240 ports to memory, not {len(accelerator.controls)} and {regions}")
        members: dict[str, Any] = {}
        for prefix, flow, name in [("s_axis", In, "image"), *((f"m_axis_{n}", Out, n) for n in self.outs)]:
            back = Out if flow is In else In
            members |= {f"{prefix}_tdata": flow(stream_bits(self.lanes[name])), f"{prefix}_tlast": flow(1)}
            members |= {f"{prefix}_tvalid": flow(1), f"{prefix}_tready": back(1)}
        members |= {f"s_axil_{n}": member.flip() for n, member in lite_signature(ADDRESS_BITS).members.items()}
        for name in self.readers:
            members |= {f"m_axi_{name}_{n}": member for n, member in read_signature(address_bits, data_bits).members.items()}
        for name, master in self.masters.items():
            members |= {f"m_axi_{name}_{n}": member for n, member in master.bus.signature.members.items()}
        super().__init__(members)

    @property
    def frame_cycles(self) -> int:
        """Steady interval of back-to-back frames, if memory keeps up."""
        return max(self.accelerator.frame_cycles, *self.beats.values())

    @property
    def addresses(self) -> dict[str, int]:
        """Where the registers are, by name in lower case; those of controls and of weights' base addresses under their own names."""
        found = {r.name.lower(): int(r) for r in Register if r not in (Register.CONTROLS, Register.WEIGHTS)}
        found |= {name: Register.CONTROLS + 4 * k for k, name in enumerate(self.accelerator.controls)}
        return found | {name: Register.WEIGHTS + 8 * k for k, name in enumerate([*self.readers, *self.masters])}

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.accelerator = self.accelerator
        self._image(m)
        for name, edge in self.outs.items():
            self._output(m, name, edge)
        fields = self._control(m)
        for k, name in enumerate(self.accelerator.controls):
            port = getattr(self.accelerator, name)
            setting = Signal(port.shape(), name=f"{name}_setting", init=self.accelerator.signature.members[name].init)
            m.d.comb += port.eq(setting)
            fields[Register.CONTROLS + 4 * k] = Field(value=setting, target=setting)
        self._weights(m, fields)
        self._registers(m, fields)
        return m

    def _image(self, m: Module) -> None:
        """Two registers cut the paths to the pins; behind them the frame is made right."""
        lanes = self.lanes["image"]
        m.submodules.image_frame, m.submodules.image_queue = self.image, Fifo(Lanes(lanes=lanes.width + 1, bits=1, signed=False), 2)
        queue, edge = m.submodules.image_queue, self.image
        m.d.comb += [
            queue.i.payload.as_value().eq(Cat(self.s_axis_tdata[: lanes.width], self.s_axis_tlast)),
            queue.i.valid.eq(self.s_axis_tvalid), self.s_axis_tready.eq(queue.i.ready),
            Cat(edge.i.payload.as_value(), edge.last).eq(queue.o.payload.as_value()),
            edge.i.valid.eq(queue.o.valid), queue.o.ready.eq(edge.i.ready),
        ]  # fmt: skip
        wiring.connect(m, edge.o, self.accelerator.image)

    def _output(self, m: Module, name: str, edge: FrameOut) -> None:
        width = self.lanes[name].width
        m.submodules[f"{name}_frame"] = edge
        m.submodules[f"{name}_queue"] = queue = Fifo(Lanes(lanes=width + 1, bits=1, signed=False), 2)
        wiring.connect(m, getattr(self.accelerator, name), edge.i)
        data, last, valid, ready = (getattr(self, f"m_axis_{name}_t{what}") for what in ("data", "last", "valid", "ready"))
        m.d.comb += [
            queue.i.payload.as_value().eq(Cat(edge.o.payload.as_value(), edge.last)),
            queue.i.valid.eq(edge.o.valid), edge.o.ready.eq(queue.i.ready),
            data.eq(queue.o.payload.as_value()[:width]), last.eq(queue.o.payload.as_value()[width]),
            valid.eq(queue.o.valid), queue.o.ready.eq(ready),
        ]  # fmt: skip

    def _control(self, m: Module) -> dict[int, Field]:
        """The fixed registers; counts what happens."""
        edge, control, status = self.image, Signal(2, name="control"), Signal(len(Status), name="status")
        counts = {r: Signal(32, name=r.name.lower()) for r in Register if Register.FRAMES_IN <= r <= Register.LAST_WRONG}
        with m.If(edge.began):
            m.d.sync += control[1].eq(0)
        m.d.comb += edge.go.eq(control.any())
        for register, event in ((Register.FRAMES_IN, edge.ended), (Register.SHORT_FRAMES, edge.short), (Register.LONG_FRAMES, edge.long)):
            m.d.sync += counts[register].eq(counts[register] + event)
        with m.If(edge.short | edge.long):
            m.d.sync += counts[Register.LAST_WRONG].eq(counts[Register.FRAMES_IN])
        # A frame is out when every output has sent its last beat; one output may be frames ahead of another.
        ahead = {n: Signal(16, name=f"{n}_ahead") for n in self.outs}
        out = Signal()
        m.d.comb += out.eq(Cat(a != 0 for a in ahead.values()).all())
        m.d.sync += [a.eq(a + self.outs[n].ended - out) for n, a in ahead.items()]
        m.d.sync += counts[Register.FRAMES_OUT].eq(counts[Register.FRAMES_OUT] + out)
        inside = edge.open | (counts[Register.FRAMES_IN] != counts[Register.FRAMES_OUT])
        m.d.comb += [status[Status.BUSY].eq(inside), status[Status.RECEIVING].eq(edge.open), status[Status.DROPPING].eq(edge.dropping)]
        masters = [*self.readers.values(), *self.masters.values()]
        m.d.comb += status[Status.READING].eq(~Cat(r.idle for r in masters).all() if masters else 0)
        fields = {Register.ID: Field(value=Const(ID, 32)), Register.VERSION: Field(value=Const(VERSION, 32))}
        fields |= {Register.CONTROL: Field(value=control, target=control), Register.STATUS: Field(value=status)}
        return {int(r): f for r, f in fields.items()} | {int(r): Field(value=c) for r, c in counts.items()}

    def _weights(self, m: Module, fields: dict[int, Field]) -> None:
        errors = Signal(32, name="read_errors")
        fields[Register.READ_ERRORS] = Field(value=errors)
        edges: dict[str, Any] = {**self.readers, **self.masters}
        with m.If(Cat(e.error for e in edges.values()).any() if edges else 0):
            m.d.sync += errors.eq(errors + 1)
        for k, (name, reader) in enumerate(edges.items()):
            m.submodules[f"{name}_memory"] = reader
            if name in self.masters:
                wiring.connect(m, getattr(self.accelerator, name), reader.port)
            else:
                wiring.connect(m, reader.o, getattr(self.accelerator, name))
                m.d.comb += reader.start.eq(self.image.began)
            base = [Signal(32, name=f"{name}_base"), Signal(max(len(reader.base) - 32, 0), name=f"{name}_base_high")]
            m.d.comb += reader.base.eq(Cat(base))
            for n, half in enumerate(base):
                fields[Register.WEIGHTS + 8 * k + 4 * n] = Field(value=half, target=half)
            for n, member in reader.bus.signature.members.items():
                outside, inside = getattr(self, f"m_axi_{name}_{n}"), getattr(reader.bus, n)
                m.d.comb += outside.eq(inside) if member.flow is Out else inside.eq(outside)

    def _registers(self, m: Module, fields: Mapping[int, Field]) -> None:
        m.submodules.registers = slave = AxiLite(ADDRESS_BITS)
        for n, member in slave.bus.signature.members.items():
            outside, inside = getattr(self, f"s_axil_{n}"), getattr(slave.bus, n)
            m.d.comb += outside.eq(inside) if member.flow is Out else inside.eq(outside)
        with m.Switch(slave.read_address):
            for address, field in fields.items():
                with m.Case(address):
                    m.d.comb += [slave.read_data.eq(field.value), slave.read_known.eq(1)]
        with m.Switch(slave.write_address):
            for address, field in fields.items():
                if (target := field.target) is not None:
                    with m.Case(address):
                        m.d.comb += slave.write_known.eq(1)
                        with m.If(slave.write):
                            m.d.sync += target.eq((target & ~slave.mask) | (slave.data & slave.mask))
