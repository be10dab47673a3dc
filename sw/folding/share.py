"""Plans for the shared engine: which layers, how wide, how many pixels a job."""
from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Literal

from hw.lib.collect import LEAST_GROUPS
from hw.params import Multiplier
from sw.engine import (
    ENGINE_WAIT,
    EnginePlan,
    Place,
    columns,
    cycles,
    job_cycles,
    least_cycles,
    multipliers,
    requant_of,
    weights_of,
    words,
)
from sw.folding import spill
from sw.folding.deform_memory import lanes_in_word, most_traffic
from sw.folding.fold import Fold, in_memory
from sw.graph import Graph, Node
from sw.ops import Conv, Deform, TensorType
from sw.targets import Device

#: Most of the target interval that the engine's jobs may fill: what is left covers waiting for tiles.
LOAD = 0.93
#: Most of the memory's rate that weights may take.
SHARE = 1.0
#: Pixels of a job for each word in a row of weights, at least.
AHEAD = 1.2
#: Share of a tile's period in which it fills up, or is taken.
FILLING = 1 / 3
#: Jobs that wait in the engine's queues with their results' places reserved.
QUEUED = 3
#: Layers with fewer weights a pixel than this are never worth a place.
LEAST = 12
#: Layers with so few channels out would leave most of the core idle.
NARROW = 8


def ratio(graph: Graph, node: Node) -> float:
    """Weights a pixel."""
    assert isinstance(node.op, Conv)
    return float(node.op.weights.size) / graph.tensors[node.inputs[0]].type.pixels


def worthy(graph: Graph) -> list[Node]:
    """Layers that may share the engine, those with most weights for each pixel first."""
    found = [n for n in graph.nodes if requant_of(graph, n) is not None and ratio(graph, n) >= LEAST]
    return sorted((n for n in found if graph.tensors[n.outputs[0]].type.channels > NARROW), key=lambda n: -ratio(graph, n))


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """A way to use external memory: the engine's plan, if there is one, and the folds of deformable layers whose maps lie there."""

    engine: EnginePlan | None
    pins: Mapping[str, Fold]


def arrangements(
    graph: Graph, device: Device, target: int, multiplier: Multiplier, pins: Mapping[str, Fold], store: Literal["chip", "memory"] = "chip"
) -> Iterator[Arrangement]:
    """Every way worth trying within the memory's rate, but for the one that uses no memory. Nodes in ``pins`` are left alone.

    ``store``: where the engine's tiles wait.
    """
    if not device.memory_bytes:
        return
    maps: dict[str, Fold] = {}
    spent = 0.0
    for node in [None, *_spillable(graph, device, pins)]:
        if node is not None:
            assert isinstance(node.op, Deform)
            traffic = most_traffic(node.op, graph.tensors[node.inputs[0]].type, device.memory_bits)
            spent += (traffic.read_bytes + traffic.write_bytes) / target
            maps[node.name] = in_memory(node, graph.tensors[node.inputs[0]].type, device.memory_bits)
            if spent > SHARE * device.memory_bytes or traffic.cycles > target:
                return
            if store == "chip":
                yield Arrangement(engine=None, pins=dict(maps))
        for plan in plans(graph, device, target, multiplier, spent, pins, store):
            yield Arrangement(engine=plan, pins=dict(maps))


def _spillable(graph: Graph, device: Device, pins: Mapping[str, Fold]) -> list[Node]:
    """Deformable layers whose maps may lie in memory, those with the largest rings first."""
    found = []
    for node in graph.nodes:
        x = graph.tensors[node.inputs[0]].type
        if isinstance(node.op, Deform) and node.op.upsample == 1 and node.name not in pins:
            if x.channels >= LEAST_GROUPS * lanes_in_word(x, device.memory_bits):
                found.append(node)
    return sorted(found, key=lambda n: -graph.tensors[n.inputs[0]].type.channels * graph.tensors[n.inputs[0]].type.width)


def plans(
    graph: Graph, device: Device, target: int, multiplier: Multiplier, spent: float = 0.0, pins: Container[str] = (),
    store: Literal["chip", "memory"] = "chip",
) -> Iterator[EnginePlan]:  # fmt: skip
    """Engines for an interval: for ever more of the worthy layers, the least that is fast enough; ``spent`` of the memory's rate is
    taken. ``store``: where tiles wait."""
    # A pinned requantization keeps its convolution off the engine, too: no pin is lost.
    nodes = [n for n in worthy(graph) if n.name not in pins and graph.consumers(n.outputs[0])[0].name not in pins]
    ends = [k for k in range(2, len(nodes) + 1) if k == len(nodes) or ratio(graph, nodes[k - 1]) > 1.5 * ratio(graph, nodes[k])]
    for end in ends:
        if store == "memory":
            if (made := spill.plan(graph, device, nodes[:end], target, multiplier, spent)) is not None:
                yield made
            continue
        found = [p for simd in (8, 16) if (p := fitted(graph, device, nodes[:end], target, simd, multiplier, spent)) is not None]
        if found:
            weight = weights_of(nodes[:end])
            yield min(found, key=lambda p: multipliers(p, weight))


def fitted(
    graph: Graph, device: Device, nodes: Sequence[Node], target: int, simd: int, multiplier: Multiplier, spent: float = 0.0
) -> EnginePlan | None:
    """The narrowest engine of that SIMD whose jobs fill at most LOAD of the interval; None if none does, or memory is too slow."""
    work = sum(n.op.multiplications(*graph.types(n.inputs)) for n in nodes)
    first = max(work // (simd * target), 1)
    for pe in range(int(first), 6 * int(first) + 8):
        lanes = 1 if pe % 2 else 2
        plan = EnginePlan(pe=pe, simd=simd, lanes=lanes, multiplier=multiplier, data_bits=device.memory_bits)
        if least_cycles(graph, plan, nodes) > LOAD * target:
            continue  # the tiles need not be looked for
        tiled = with_tiles(graph, device, plan, nodes, target, spent)
        if tiled is None:
            return None
        single = replace(tiled, lanes=1)
        if cycles(graph, single) <= LOAD * target:
            return single
        if cycles(graph, tiled) <= LOAD * target:
            return tiled
    return None


def with_tiles(
    graph: Graph, device: Device, plan: EnginePlan, nodes: Sequence[Node], target: int, spent: float = 0.0
) -> EnginePlan | None:
    """Pixels a job: as few as memory is fast enough for, more first where a byte of buffer saves most reading."""
    kinds = {n.name: (graph.tensors[n.inputs[0]].type, graph.tensors[n.outputs[0]].type) for n in nodes}
    row = columns(plan, weights_of(nodes))
    reads = {name: words(plan, x.channels, y.channels, row) for name, (x, y) in kinds.items()}
    # A job should not wait for its weights: a row of them is used for more pixels than it has words.
    least = ceil(AHEAD * row)
    tiles = {name: _next_tile(x, least) for name, (x, _) in kinds.items()}

    def rate() -> float:
        return sum(reads[n] * (kinds[n][0].pixels // t) for n, t in tiles.items()) * plan.data_bits / 8 / target

    while rate() + spent > SHARE * device.memory_bytes:
        grown = {n: _next_tile(kinds[n][0], t + 1) for n, t in tiles.items()}
        gains = {}
        for name, tile in grown.items():
            x, y = kinds[name]
            saved, more = x.pixels // tiles[name] - x.pixels // tile, tile - tiles[name]
            if more:
                gains[name] = reads[name] * saved / (more * (x.channels + y.channels))
        if not gains:
            return None
        best = max(gains, key=lambda n: gains[n])
        tiles[best] = grown[best]
    return with_slots(plan, kinds, tiles, target, row)


def with_slots(
    plan: EnginePlan, kinds: dict[str, tuple[TensorType, TensorType]], tiles: dict[str, int], target: int, row: int
) -> EnginePlan:
    """How many tiles each layer keeps: as many as come while one waits for a round of the others' jobs, is computed, and the next fills."""
    jobs = {n: job_cycles(plan, x.channels, y.channels, tiles[n], row) for n, (x, y) in kinds.items()}
    places = {}
    for name, (x, _) in kinds.items():
        period = target * tiles[name] / x.pixels
        held = ENGINE_WAIT * (sum(jobs.values()) - jobs[name]) + jobs[name] + FILLING * period
        left = QUEUED * sum(jobs.values()) / len(jobs) + jobs[name] + FILLING * period
        places[name] = Place(tile=tiles[name], in_slots=ceil(held / period), out_slots=ceil(left / period))
    return replace(plan, places=places)


def _next_tile(x: TensorType, least: int) -> int:
    """The smallest divisor of the map's pixels that is at least ``least``; the map if there is none."""
    return next((t for t in _divisors(x.pixels) if t >= least), x.pixels)


@cache
def _divisors(number: int) -> tuple[int, ...]:
    """All, in order."""
    return tuple(n for n in range(1, number + 1) if number % n == 0)
