# amaranth: UnusedElaboratable=no
"""Stitches units into the accelerator of one network."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from amaranth import Cat, ClockSignal, Instance, Module, ResetSignal, Shape, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.params import Lanes
from hw.units.base import Unit, signature
from hw.verilog import VerilogModule, ports_of


@dataclass(frozen=True, kw_only=True)
class Port:
    """One stream port of one unit."""

    unit: str
    port: str
    lanes: Lanes


@dataclass(frozen=True, kw_only=True)
class Link:
    """A stream from ``source`` to ``target`` through a FIFO of ``depth`` beats (0: a plain wire)."""

    source: Port
    target: Port
    depth: int = 0

    def __post_init__(self) -> None:
        if self.source.lanes != self.target.lanes:
            raise ValueError(f"link from {self.source} to {self.target}: both ends must carry the same beats")
        if self.depth < 0:
            raise ValueError(f"depth must not be negative, not {self.depth!r}")

    @property
    def name(self) -> str:
        """Name of the FIFO's instance."""
        return f"fifo_{self.target.unit}_{self.target.port}"


def plain_input(member: wiring.Member) -> dict[str, Any]:
    """Bits, sign and initial value of an input that is no stream."""
    shape = Shape.cast(member.shape)
    return {"bits": shape.width, "signed": shape.signed, "value": int(member.init or 0)}


def black_box(part: Unit, module: VerilogModule) -> Instance:
    """An instance of the module in place of ``part``, wired to its ports."""
    clocked = {"clk": ClockSignal(), "rst": ResetSignal()}
    pins: dict[str, Any] = {f"i_{name}": signal for name, signal in clocked.items() if name in module.ports}
    for name, (flow, value) in ports_of(part).items():
        pins[f"{'i' if flow == In else 'o'}_{name}"] = Value.cast(value)
    return Instance(module.name, **pins)


class Accelerator(wiring.Component):
    """All units of a network, wired.

    Parameters: ``units`` by name; ``links`` between them; ``inputs`` and ``outputs``: the unit ports that become ports of the
    accelerator, under the given names; ``probes``: unit output ports that the simulation watches; ``controls``: plain input ports of
    units, (unit, port) by name, such as the threshold of the decoder; ``memories``: ports of units to external memory, likewise;
    ``modules``: Verilog of its :attr:`parts`, which are then instantiated, not elaborated.

    Members: a stream for each input and output, a port for each control and memory; ``probe_valid`` and ``probe_ready``, one bit for each
    probe in order; and ``probe<k>``, the payload of probe k. Without probes the three are absent and the hardware is the same.
    """

    def __init__(
        self,
        *,
        units: Mapping[str, Unit],
        links: Sequence[Link],
        inputs: Mapping[str, Port],
        outputs: Mapping[str, Port],
        probes: Sequence[Port] = (),
        controls: Mapping[str, tuple[str, str]] | None = None,
        memories: Mapping[str, tuple[str, str]] | None = None,
        modules: Mapping[str, VerilogModule] | None = None,
    ) -> None:
        self.units, self.links = dict(units), tuple(links)
        self.inputs, self.outputs, self.probes = dict(inputs), dict(outputs), tuple(probes)
        self.controls, self.memories, self.modules = dict(controls or {}), dict(memories or {}), modules
        members: dict[str, Any] = {name: In(signature(p.lanes)) for name, p in inputs.items()}
        members |= {name: Out(signature(p.lanes)) for name, p in outputs.items()}
        members |= {name: self.units[unit].signature.members[port] for name, (unit, port) in (self.controls | self.memories).items()}
        if probes:
            members |= {"probe_valid": Out(len(probes)), "probe_ready": Out(len(probes))}
            members |= {f"probe{k}": Out(p.lanes.width) for k, p in enumerate(probes)}
        super().__init__(members)

    @property
    def frame_cycles(self) -> int:
        """Steady interval of back-to-back frames: that of the slowest unit."""
        return max(unit.frame_cycles for unit in self.units.values())

    @cached_property
    def parts(self) -> dict[str, Unit]:
        """Units and FIFOs by the names of their instances."""
        return self.units | {link.name: Fifo(lanes=link.source.lanes, depth=link.depth) for link in self.links if link.depth}

    def _stream(self, port: Port) -> Any:
        return getattr(self.units[port.unit], port.port)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name, part in self.parts.items():
            m.submodules[name] = part if self.modules is None else black_box(part, self.modules[name])
        for name, port in self.inputs.items():
            wiring.connect(m, wiring.flipped(getattr(self, name)), self._stream(port))
        for name, port in self.outputs.items():
            wiring.connect(m, self._stream(port), wiring.flipped(getattr(self, name)))
        for name, (owner, control) in self.controls.items():
            m.d.comb += getattr(self.units[owner], control).eq(getattr(self, name))
        for name, (owner, port_name) in self.memories.items():
            wiring.connect(m, getattr(self.units[owner], port_name), wiring.flipped(getattr(self, name)))
        for link in self.links:
            source, target = self._stream(link.source), self._stream(link.target)
            if link.depth:
                fifo: Any = self.parts[link.name]
                wiring.connect(m, source, fifo.i)
                wiring.connect(m, fifo.o, target)
            else:
                wiring.connect(m, source, target)
        self._watch(m)
        return m

    def _watch(self, m: Module) -> None:
        streams = [self._stream(p) for p in self.probes]
        if streams:
            m.d.comb += self.probe_valid.eq(Cat(s.valid for s in streams))
            m.d.comb += self.probe_ready.eq(Cat(s.ready for s in streams))
        for k, s in enumerate(streams):
            m.d.comb += getattr(self, f"probe{k}").eq(s.payload.as_value())
