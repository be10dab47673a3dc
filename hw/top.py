# amaranth: UnusedElaboratable=no
"""Stitches units into the accelerator of one network."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amaranth import Cat, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.params import Lanes
from hw.units.base import Unit, signature


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


class Accelerator(wiring.Component):
    """All units of a network, wired.

    Parameters: ``units`` by name; ``links`` between them; ``inputs`` and ``outputs``: the unit ports that become ports of the
    accelerator, under the given names; ``probes``: unit output ports that the simulation watches; ``controls``: plain input ports of
    units, (unit, port) by name, such as the threshold of the decoder; ``memories``: ports of units to external memory, likewise.

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
    ) -> None:
        self.units, self.links = dict(units), tuple(links)
        self.inputs, self.outputs, self.probes = dict(inputs), dict(outputs), tuple(probes)
        self.controls, self.memories = dict(controls or {}), dict(memories or {})
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

    def _stream(self, port: Port) -> Any:
        return getattr(self.units[port.unit], port.port)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name, unit in self.units.items():
            m.submodules[name] = unit
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
                fifo = Fifo(lanes=link.source.lanes, depth=link.depth)
                m.submodules[link.name] = fifo
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
