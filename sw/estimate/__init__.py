"""Area of every unit from its sizes alone: structures of known parts, priced for a family of devices.

``sw.estimate.parts`` and ``units`` follow hw/lib and hw/units; memories are placed by the hardware's own rule (hw/lib/store.py). The few
constants were fitted to Yosys; ``warploom synth`` and ``warploom bench estimates`` print how far they are off.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hw.lib.fork import Fork
from hw.lib.regroup import Regroup
from sw.engine import ENGINE, EnginePlan
from sw.estimate import parts
from sw.estimate.area import Area, Family, Structure, price, ram, store_area
from sw.estimate.engine import engine as engine_structure
from sw.estimate.units import UNITS, regroup
from sw.folding.fold import Fold
from sw.graph import Graph, Node
from sw.lower import Design
from sw.ops import Op, TensorType

__all__ = ["Area", "Family", "area", "around", "design", "engine", "fifo", "fork", "gearbox", "memories", "memory", "unit"]


def area(node: Node, types: list[TensorType], out: TensorType, fold: Fold, family: Family = "xcup") -> Area:
    """The unit of ``node``."""
    return unit(node.op, types, out, fold, family)


def unit(op: Op, types: Sequence[TensorType], out: TensorType, fold: Fold, family: Family = "xcup") -> Area:
    """The unit of an operator."""
    return price(UNITS[type(op)](op, list(types), out, fold), family)


def memory(width: int, depth: int, family: Family = "xcup") -> Area:
    """A memory of ``depth`` words with a port to write and one to read, where the rule of hw/lib/store.py puts it."""
    return price(ram(width, depth), family)


def fifo(width: int, depth: int, family: Family = "xcup") -> Area:
    """A queue of ``depth`` beats of ``width`` bits."""
    return price(parts.queue(width, depth), family)


def fork(outputs: int, family: Family = "xcup") -> Area:
    """A fork to so many outputs, however wide."""
    return price(parts.fork(outputs), family)


def gearbox(channels: int, bits: int, lanes_in: int, lanes_out: int, family: Family = "xcup") -> Area:
    """A gearbox from one number of lanes to another."""
    return price(regroup(channels, bits, lanes_in, lanes_out), family)


def engine(graph: Graph, plan: EnginePlan, family: Family = "xcup") -> Area:
    """The shared engine."""
    return price(engine_structure(graph, plan), family)


def design(built: Design, family: Family = "xcup") -> dict[str, Area]:
    """Every unit of a design by its name, and every FIFO by its link's."""
    return {name: price(structure, family) for name, structure in structures(built).items()}


def structures(built: Design) -> dict[str, Structure]:
    """What every unit and FIFO of a design is made of."""
    found = {name: _unit(built, name) for name in built.units}
    return found | {k.name: parts.queue(k.source.lanes.width, k.depth) for k in built.links if k.depth}


def memories(built: Design, family: Family = "xcup") -> list[dict[str, Any]]:
    """Every memory of a design: its unit and the unit's kind, constants (weights and parameters) or a buffer, size, place, and what it
    takes."""
    rows = []
    for name, structure in structures(built).items():
        node = built.nodes.get(name)
        kind = node.op.name if node else type(built.units[name]).__name__.lower() if name in built.units else "fifo"
        for store in structure.stores:
            rows.append({
                "unit": node.name if node else name, "kind": kind, "holds": "buffer" if store.written else "constants",
                "place": store.place, "width": store.width, "depth": store.depth, "bits": store.width * store.depth,
                **store_area(store, family).record(),
            })  # fmt: skip
    return rows


def around(built: Design, family: Family = "xcup") -> Area:
    """Queues, gearboxes and forks of a design: what lies around the units of its nodes."""
    own = {*built.nodes, ENGINE}
    total = Area()
    for name, part in design(built, family).items():
        if name not in own:
            total += part
    return total


def _unit(built: Design, name: str) -> Structure:
    unit, node = built.units[name], built.nodes.get(name)
    if name == ENGINE and built.engine is not None:
        return engine_structure(built.graph, built.engine)
    if isinstance(unit, Fork):
        return parts.fork(unit.outputs)
    if isinstance(unit, Regroup):
        return regroup(unit.channels, unit.i_lanes.bits, unit.i_lanes.lanes, unit.o_lanes.lanes)
    if node is None:
        raise ValueError(f"{name} must be a fork, a gearbox or the unit of a node, not {type(unit).__name__}")
    graph = built.graph
    types, out = graph.types(node.inputs), graph.tensors[node.outputs[0]].type
    return UNITS[type(node.op)](node.op, types, out, built.folds[node.name])
