# amaranth: UnusedElaboratable=no
"""From an integer graph and its foldings to units and links: every node a unit, every edge a stream."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from hw.engine import EngineUnit
from hw.lib.fork import Fork
from hw.lib.memory import ReadPort
from hw.lib.regroup import Regroup
from hw.lib.spool import BLOCK, Waiting
from hw.top import Accelerator, Link, Port, plain_input
from hw.units.base import Unit
from hw.verilog import VerilogModule
from sw.builders import BUILDERS
from sw.engine import ENGINE, EnginePlan, build, lanes, members
from sw.errors import CompileError
from sw.folding.fold import Fold
from sw.graph import Graph, Node
from sw.ops import Decode, Deform, TensorType


def identifier(name: str) -> str:
    """``name`` as a Verilog identifier."""
    return re.sub(r"\W", "_", name)


@dataclass(kw_only=True, eq=False)
class Design:
    """An accelerator before its FIFOs are sized: units, links, and which tensor each watched port carries."""

    graph: Graph
    folds: Mapping[str, Fold]
    engine: EnginePlan | None = None
    units: dict[str, Unit] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    inputs: dict[str, Port] = field(default_factory=dict)
    outputs: dict[str, Port] = field(default_factory=dict)
    ports: dict[str, Port] = field(default_factory=dict)
    memories: dict[str, tuple[str, str]] = field(default_factory=dict)
    controls: dict[str, tuple[str, str]] = field(default_factory=dict)
    waiting: list[Waiting] = field(default_factory=list)
    known: dict[object, Unit] = field(default_factory=dict)

    @cached_property
    def interval(self) -> int:
        """Cycles a frame of the slowest unit; to be asked when all units are there."""
        return max(u.frame_cycles for u in self.units.values())

    @property
    def probes(self) -> dict[str, Port]:
        """Tensors that a unit writes, and the port that carries each."""
        return {t: p for t, p in self.ports.items() if t not in self.graph.inputs}

    def order(self, tensor: str) -> dict[str, Any]:
        """How the beats of a watched stream are ordered if not pixel by pixel: the engine's sums come tile by tile, in it fold by fold."""
        port = self.ports[tensor]
        if port.unit != ENGINE or not port.port.startswith("acc"):
            return {}
        unit, layer = self.units[ENGINE], int(port.port[3:])
        assert isinstance(unit, EngineUnit)
        k = unit.layers[layer]
        folds = k.folds(unit.pe)
        return {"beats": k.pixels * folds * unit.pe // unit.lanes, "order": {"tile": k.tile, "folds": folds, "pe": unit.pe}}

    def memory_ports(self) -> list[dict[str, Any]]:
        """The accelerator's ports to external memory and the region of each, in bytes from the start of :meth:`memory_image`."""
        found, regions, base = [], dict[str, int](), 0
        for name, (unit, port) in self.memories.items():
            made: Any = self.units[unit]
            if unit not in regions:  # all ports of a unit share its region
                regions[unit], base = base, base + -(-made.region_bytes // 4096) * 4096
            signature = made.signature.members[port].signature
            found.append({
                "port": name, "kind": "read" if isinstance(signature, ReadPort) else "write", "address_bits": signature.address_bits,
                "data_bits": signature.data_bits, "base": regions[unit], "bytes": made.region_bytes, "filled": hasattr(made, "image"),
            })  # fmt: skip
        return found

    def control_ports(self) -> list[dict[str, Any]]:
        """The accelerator's plain inputs, each with the value that it has if nobody says otherwise."""
        members = {name: self.units[unit].signature.members[port] for name, (unit, port) in self.controls.items()}
        return [{"port": name, **plain_input(member)} for name, member in members.items()]

    def memory_image(self) -> bytes:
        """What lies in external memory before the first frame."""
        ports = self.memory_ports()
        image = bytearray(max((p["base"] + p["bytes"] for p in ports), default=0))
        for entry, (unit, _) in zip(ports, self.memories.values(), strict=True):
            made: Any = self.units[unit]
            if entry["filled"]:
                filled = made.image()
                image[entry["base"] : entry["base"] + len(filled)] = filled
        return bytes(image)

    def accelerator(self, *, probes: bool = False, modules: Mapping[str, VerilogModule] | None = None) -> Accelerator:
        """The component, with or without the ports that the simulation watches; ``modules``: see :class:`hw.top.Accelerator`."""
        watched = list(self.probes.values()) if probes else []
        return Accelerator(
            units=self.units, links=self.links, inputs=self.inputs, outputs=self.outputs, probes=watched, memories=self.memories,
            controls=self.controls, modules=modules,
        )  # fmt: skip


def lower(graph: Graph, folds: Mapping[str, Fold], engine: EnginePlan | None = None, known: dict[object, Unit] | None = None) -> Design:
    """Build every unit and link; FIFO depths are 0 until sized. CompileError if a fold does not fit its unit.

    ``known``: units of other designs of the graph, taken where they are the same and added to. Designs that share units are to be looked
    at only: hardware of two of them would share submodules.
    """
    design = Design(graph=graph, folds=folds, engine=engine, known={} if known is None else known)
    readers: dict[str, list[Port]] = {t: [] for t in graph.tensors}
    shared = _share(design, readers)
    for node in graph.nodes:
        if node.name not in shared:
            _add(design, node, readers)
    for tensor, ports in readers.items():
        if tensor in graph.outputs:
            if ports:
                raise CompileError(f"output {tensor} is read inside the network too; quantize it once more for the outside")
            design.outputs[identifier(tensor)] = design.ports[tensor]
        elif tensor in graph.inputs:
            _enter(design, tensor, ports)
        elif ports:
            _connect(design, design.ports[tensor], ports, graph.tensors[tensor].type)
    if engine and engine.queues:
        _check_queues(design, engine)
        design.units[ENGINE] = _engine(design, engine)
    return design


def _engine(design: Design, engine: EnginePlan) -> EngineUnit:
    """The engine with the streams that wait in memory so far."""
    key = repr((replace(engine, queues={}), design.waiting))
    if key not in design.known:
        design.known[key] = build(design.graph, engine, tuple(design.waiting))
    unit = design.known[key]
    assert isinstance(unit, EngineUnit)
    return unit


def _share(design: Design, readers: dict[str, list[Port]]) -> set[str]:
    """The engine and its streams; returns the names of the nodes that it computes."""
    if design.engine is None or not design.engine.places:
        return set()
    unit = design.units[ENGINE] = _engine(design, design.engine)
    shared = set()
    for k, (conv, requant) in enumerate(members(design.graph, design.engine).values()):
        layer = unit.layers[k]
        readers[conv.inputs[0]].append(Port(unit=ENGINE, port=f"i{k}", lanes=layer.i))
        design.ports[conv.outputs[0]] = Port(unit=ENGINE, port=f"acc{k}", lanes=unit.acc)
        design.ports[requant.outputs[0]] = Port(unit=ENGINE, port=f"o{k}", lanes=layer.o)
        shared |= {conv.name, requant.name}
    ports = ("weights", "read", "write") if design.engine.store == "memory" else ("weights",)
    design.memories |= {f"{ENGINE}_{port}": (ENGINE, port) for port in ports}
    return shared


def _add(design: Design, node: Node, readers: dict[str, list[Port]]) -> None:
    graph, fold = design.graph, design.folds[node.name]
    types, outs = graph.types(node.inputs), graph.types(node.outputs)
    i, o = lanes(types[0], fold.lanes_in), lanes(outs[0], fold.lanes_out)
    name = identifier(node.name)
    try:
        if (node.name, fold) not in design.known:
            design.known[node.name, fold] = BUILDERS[type(node.op)](node.op, types, i, o, fold)
    except ValueError as error:
        widths = f"{fold.lanes_in} lanes in, {fold.lanes_out} out"
        raise CompileError(f"{node.name} ({node.op.name}) cannot be folded to {widths}: {error}") from None
    design.units[name], design.nodes[name] = design.known[node.name, fold], node
    if fold.place == "memory":
        design.memories |= {f"{name}_{port}": (name, port) for port in ("read", "write")}
    for k, tensor in enumerate(node.outputs):
        port = "o" if len(node.outputs) == 1 else f"o{k}"
        design.ports[tensor] = Port(unit=name, port=port, lanes=lanes(outs[k], fold.lanes_out))
    if isinstance(node.op, Decode):
        design.controls["threshold"] = (name, "least")
    for k, tensor in enumerate(node.inputs):
        port, count = in_ports(node, fold)[k]
        readers[tensor].append(Port(unit=name, port=port, lanes=lanes(types[k], count)))


def in_ports(node: Node, fold: Fold) -> list[tuple[str, int]]:
    """Names and lanes of the ports by which a node's unit takes its inputs."""
    if isinstance(node.op, Deform):
        return [("i", fold.lanes_in), ("offset_i", 1 + node.op.free)]
    if isinstance(node.op, Decode):
        return [("i", fold.lanes_in), ("wh_i", 2), ("reg_i", 2)]
    return [("i" if len(node.inputs) == 1 else f"i{k}", fold.lanes_in) for k in range(len(node.inputs))]


def _enter(design: Design, tensor: str, ports: list[Port]) -> None:
    """The image: one beat a pixel at the accelerator's edge, whatever its readers take."""
    kind = design.graph.tensors[tensor].type
    whole = lanes(kind, kind.channels)
    if len(ports) == 1 and ports[0].lanes == whole:
        design.inputs["image"] = ports[0]
        return
    first = "image_fork"
    design.units[first] = Fork(lanes=whole, outputs=1)
    design.inputs["image"] = Port(unit=first, port="i", lanes=whole)
    _connect(design, Port(unit=first, port="o0", lanes=whole), ports, kind)


def _connect(design: Design, source: Port, targets: Sequence[Port], kind: TensorType) -> None:
    """Wire a producer to its readers: forks where there are several, one gearbox for each width that differs."""
    widths = list(dict.fromkeys(t.lanes.lanes for t in targets))
    starts = _fork(design, source, len(widths), f"{source.unit}_{source.port}_fork")
    for start, width in zip(starts, widths, strict=True):
        group = [t for t in targets if t.lanes.lanes == width]
        at = start
        if width != source.lanes.lanes:
            name = f"{source.unit}_{source.port}_to{width}"
            gear = Regroup(channels=kind.channels, i=source.lanes, o_lanes=width, pixels=kind.pixels)
            design.units[name] = gear
            design.links.append(Link(source=start, target=Port(unit=name, port="i", lanes=source.lanes)))
            at = Port(unit=name, port="o", lanes=group[0].lanes)
        for branch, target in zip(_fork(design, at, len(group), f"{at.unit}_{at.port}_fork{width}"), group, strict=True):
            _link(design, branch, target, kind)


def _link(design: Design, source: Port, target: Port, kind: TensorType) -> None:
    """A link, or two with a queue in memory between."""
    capacity = design.engine.queues.get(f"{target.unit}.{target.port}") if design.engine else None
    if capacity is None:
        design.links.append(Link(source=source, target=target))
        return
    assert design.engine is not None
    beats, k = lanes(kind, design.engine.stream), len(design.waiting)
    words = kind.pixels * beats.beats(kind.channels)
    if words % (block := BLOCK * design.engine.data_bits // beats.width):
        where, why = f"the queue before {target.unit}.{target.port}", "so the end of each would wait for the next"
        raise CompileError(f"{where} cannot lie in memory: a frame's {words} beats are no whole blocks of {block}, {why}")
    design.waiting.append(Waiting(lanes=beats, beats=beats.beats(kind.channels), capacity=capacity))
    _geared(design, source, Port(unit=ENGINE, port=f"plain_i{k}", lanes=beats), kind)
    _geared(design, Port(unit=ENGINE, port=f"plain_o{k}", lanes=beats), target, kind)


def _geared(design: Design, source: Port, target: Port, kind: TensorType) -> None:
    """A link, with a gearbox if the ends differ."""
    if source.lanes != target.lanes:
        name = f"{source.unit}_{source.port}_for_{target.unit}_{target.port}"
        design.units[name] = Regroup(channels=kind.channels, i=source.lanes, o_lanes=target.lanes.lanes, pixels=kind.pixels)
        design.links.append(Link(source=source, target=Port(unit=name, port="i", lanes=source.lanes)))
        source = Port(unit=name, port="o", lanes=target.lanes)
    design.links.append(Link(source=source, target=target))


def _check_queues(design: Design, engine: EnginePlan) -> None:
    """Queues in memory need the engine's spool, and are there for links that exist."""
    if engine.store != "memory":
        raise CompileError("the engine's plan has queues in memory, so its store must be memory")
    known = {f"{k.target.unit}.{k.target.port}" for k in design.links}
    if unknown := sorted(set(engine.queues) - known):
        raise CompileError(f"the engine's plan has queues before {', '.join(unknown)}, which the design does not have")


def _fork(design: Design, source: Port, count: int, name: str) -> Iterable[Port]:
    if count == 1:
        return [source]
    design.units[name] = Fork(lanes=source.lanes, outputs=count)
    design.links.append(Link(source=source, target=Port(unit=name, port="i", lanes=source.lanes)))
    return [Port(unit=name, port=f"o{k}", lanes=source.lanes) for k in range(count)]
