# amaranth: UnusedElaboratable=no
"""Which pointwise convolutions share the engine (hw/engine.py), and what that takes."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Literal

from hw.engine import EngineLayer, EngineUnit, Spilled
from hw.lib.dot import Dot
from hw.lib.finisher import PARAMETERS
from hw.lib.packing import packing_of
from hw.lib.spool import Waiting
from hw.params import Lanes, Multiplier, Range
from sw.errors import CompileError
from sw.graph import Graph, Node
from sw.ops import Conv, Requant, TensorType
from sw.ops.base import weight_range
from sw.ops.conv import POINT

#: Name of the engine's unit in a design.
ENGINE = "engine"
#: Share of a round of all other layers' jobs that a tile is taken to wait.
ENGINE_WAIT = 0.7
#: What the core multiplies weights with: bytes (hw.lib.pool.as_bytes).
BYTE = Range(low=0, high=255)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A layer's place on the engine: pixels of a job, and tiles kept before and behind it on chip, or blocks kept in memory."""

    tile: int
    in_slots: int = 1
    out_slots: int = 1
    in_blocks: int = 0
    out_blocks: int = 0


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """The shared engine of a design: its size, and the convolutions (by node name) that it computes, each with the requantization behind
    it.

    ``store``: where its tiles wait; in external memory ``simd`` are the bytes of a word, the rings on chip hold ``operands`` and
    ``results`` words, and ``queues`` says which other links wait there: (unit.port of the reader) to blocks.
    """

    pe: int
    simd: int
    lanes: int = 1
    multiplier: Multiplier = "inferred"
    data_bits: int = 128
    places: Mapping[str, Place] = field(default_factory=dict)
    store: Literal["chip", "memory"] = "chip"
    operands: int = 0
    results: int = 0
    queues: Mapping[str, int] = field(default_factory=dict)

    @property
    def stream(self) -> int:
        """Lanes of all its streams: in memory two beats make a word."""
        return self.simd // 2 if self.store == "memory" else self.simd

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"places": {n: asdict(p) for n, p in self.places.items()}, "queues": dict(self.queues)}

    @staticmethod
    def of(record: Mapping[str, Any]) -> EnginePlan:
        """The plan of a record."""
        return EnginePlan(**{**record, "places": {n: Place(**p) for n, p in record["places"].items()}})


def requant_of(graph: Graph, node: Node) -> Node | None:
    """The requantization that follows a convolution which the engine can compute; None if it cannot.

    It computes pointwise convolutions of at most 8 bits to at most 8 bits that round half up.
    """
    if not isinstance(node.op, Conv) or node.op.window != POINT or graph.tensors[node.inputs[0]].type.bits > 8:
        return None
    readers = graph.consumers(node.outputs[0])
    if len(readers) != 1 or not isinstance(readers[0].op, Requant) or node.outputs[0] in graph.outputs:
        return None
    return readers[0] if readers[0].op.bits <= 8 and readers[0].op.rounding == "half_up" else None


def members(graph: Graph, plan: EnginePlan | None) -> dict[str, tuple[Node, Node]]:
    """The (convolution, requantization) of each layer of the plan, in its order. CompileError if one cannot be there."""
    result = {}
    for name in plan.places if plan else ():
        try:
            node = graph.node(name)
        except KeyError:
            raise CompileError(f"the engine's plan names {name}, which the network does not have") from None
        after = requant_of(graph, node)
        if after is None:
            taken = "pointwise convolutions of at most 8 bits, requantized to at most 8, half up"
            raise CompileError(f"{name} cannot share the engine: it takes {taken}")
        result[name] = (node, after)
    return result


def on_engine(graph: Graph, plan: EnginePlan | None) -> frozenset[str]:
    """Names of all nodes that the engine computes."""
    return frozenset(n.name for pair in members(graph, plan).values() for n in pair)


def lanes(kind: TensorType, count: int) -> Lanes:
    """Beats of ``count`` channels of a map."""
    return Lanes(lanes=count, bits=kind.bits, signed=kind.signed)


def build(graph: Graph, plan: EnginePlan, plain: Sequence[Waiting] = ()) -> EngineUnit:
    """The engine's unit; ``plain``: streams that wait in memory beside its tiles. CompileError if the plan does not fit."""
    layers = []
    for name, (conv, requant) in members(graph, plan).items():
        place = plan.places[name]
        x, y = graph.tensors[conv.inputs[0]].type, graph.tensors[requant.outputs[0]].type
        assert isinstance(conv.op, Conv) and isinstance(requant.op, Requant)
        layers.append(EngineLayer(
            pixels=x.pixels, weights=conv.op.weights.reshape(len(conv.op.weights), -1).tolist(), bias=conv.op.bias.tolist(),
            multiplier=requant.op.multiplier.tolist(), shift=requant.op.shift.tolist(), low=requant.op.low, high=requant.op.high,
            i=lanes(x, plan.stream), o=lanes(y, plan.stream), tile=place.tile, in_slots=place.in_slots, out_slots=place.out_slots,
            in_blocks=place.in_blocks, out_blocks=place.out_blocks,
        ))  # fmt: skip
    memory = Spilled(operands=plan.operands, results=plan.results, plain=plain) if plan.store == "memory" else None
    if memory and plan.simd * 8 != plan.data_bits:
        raise CompileError(f"the engine cannot be built: with tiles in memory simd must be {plan.data_bits // 8}, not {plan.simd}")
    try:
        return EngineUnit(
            layers=layers, pe=plan.pe, lanes=plan.lanes, multiplier=plan.multiplier, data_bits=plan.data_bits, memory=memory
        )  # fmt: skip
    except ValueError as error:
        raise CompileError(f"the engine cannot be built: {error}") from None


def weights_of(nodes: Iterable[Node]) -> Range:
    """The range of all weights of convolutions, 0 and 1 included: that of the core which they share."""
    ranges = [weight_range(n.op) for n in nodes if isinstance(n.op, Conv)]
    return Range(low=min((r.low for r in ranges), default=0), high=max((r.high for r in ranges), default=1))


def multipliers(plan: EnginePlan, weight: Range) -> int:
    """Multipliers of the core (of a kind that packs; else one a product)."""
    packing = packing_of(plan.multiplier, plan.simd, weight, BYTE)
    return -(-plan.pe // (packing.lanes if packing else 1)) * plan.simd


def columns(plan: EnginePlan, weight: Range) -> int:
    """Words of the bus in a row of weights, PE × SIMD of them, as the multipliers take them."""
    return -(-row_bits(plan.pe, plan.simd, weight, plan.multiplier) // plan.data_bits)


@cache
def row_bits(pe: int, simd: int, weight: Range, multiplier: Multiplier) -> int:
    """Bits of such a row; looked up, since a search asks thousands of times."""
    return Dot(pe=pe, simd=simd, weight=weight, i=Lanes(lanes=simd, bits=8, signed=False), kind=multiplier).row_bits


def words(plan: EnginePlan, channels: int, outs: int, row: int) -> int:
    """Words of the bus that a job reads, once: a layer's weights in rows of ``row`` words, and parameters."""
    return -(-outs // plan.pe) * (-(-channels // plan.simd) * row + -(-plan.pe // (plan.data_bits // PARAMETERS)))


def job_cycles(plan: EnginePlan, channels: int, outs: int, tile: int, row: int) -> int:
    """Cycles of a job: its operand sets, or its results' requantization, or its weights, whatever takes longest."""
    fold = tile * max(-(-channels // plan.simd), plan.pe // plan.lanes)
    return max(fold * -(-outs // plan.pe), words(plan, channels, outs, row))


def least_cycles(graph: Graph, plan: EnginePlan, convs: Sequence[Node]) -> int:
    """A bound below the cycles of the jobs of ``convs``, whatever their tiles are and however fast their weights come."""
    total = 0
    for conv in convs:
        x, out = graph.tensors[conv.inputs[0]].type, graph.tensors[conv.outputs[0]].type
        total += x.pixels * max(-(-x.channels // plan.simd), plan.pe // plan.lanes) * -(-out.channels // plan.pe)
    return total


def cycles(graph: Graph, plan: EnginePlan) -> int:
    """Cycles a frame that all jobs take: the engine's ``frame_cycles``, without building it."""
    total, layers = 0, members(graph, plan)
    row = columns(plan, weights_of(conv for conv, _ in layers.values()))
    for name, (conv, _) in layers.items():
        x, out, tile = graph.tensors[conv.inputs[0]].type, graph.tensors[conv.outputs[0]].type, plan.places[name].tile
        total += x.pixels // tile * job_cycles(plan, x.channels, out.channels, tile, row)
    return total
