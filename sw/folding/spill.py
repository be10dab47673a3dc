"""Plans for a shared engine whose tiles wait in external memory, and which other queues wait there beside them."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil

from hw.lib.movers import AHEAD, MARGIN
from hw.lib.spool import BLOCK
from hw.params import Multiplier
from hw.top import Link
from sw.engine import EnginePlan, Place, columns, job_cycles, least_cycles, members, requant_of, weights_of, words
from sw.graph import Graph, Node
from sw.lower import Design, in_ports
from sw.targets import Device

#: Most of the interval that the jobs may fill, and most of the memory's rate that all traffic may take: the engines of d and e alone, fed
#: faster than they can, do useful work in 92 % of the cycles at this share of the rate (a chip whose bus is never busy: 97 %).
LOAD, RATE = 0.88, 0.81
#: Most words of a tile of operands, and of results: what the rings on chip can hold.
MOST_OPERANDS, MOST_RESULTS = 2560, 4608
#: Words of a usual tile: the next one comes, or the last one goes, while such a tile is computed, and larger ones only if traffic asks.
USUAL = 1280
#: Words that the rings grow by: the depth of a block RAM.
GRAIN = 512
#: Bits of a queue that is worth two blocks on chip on either side and the traffic.
LONG = 16_000
#: Streams that may wait beside the engine's, and the share of the interval in which the beats of each must come back.
STREAMS, PACE = 20, 0.7
#: Tiles that a queue in memory holds.
TILES = 4


def power(blocks: int) -> int:
    """The least power of two."""
    return 1 << max(blocks - 1, 1).bit_length()


def plan(
    graph: Graph, device: Device, nodes: Sequence[Node], target: int, multiplier: Multiplier, spent: float
) -> EnginePlan | None:
    """The narrowest engine for ``nodes`` with tiles in memory; ``spent``: bytes a cycle of the memory's rate that are taken. None if no
    width, or no tile, is enough."""
    simd = device.memory_bits // 8
    work = sum(n.op.multiplications(*graph.types(n.inputs)) for n in nodes)
    first = max(work // (simd * target), 2)
    for pe in range(int(first), 4 * int(first) + 8):
        if pe % 2:
            continue  # two requantizers
        made = EnginePlan(pe=pe, simd=simd, lanes=2, multiplier=multiplier, data_bits=device.memory_bits, store="memory")
        if least_cycles(graph, made, nodes) > LOAD * target:
            continue  # the tiles need not be looked for
        tiled = with_tiles(graph, device, made, nodes, target, spent)
        if tiled is not None and busy(graph, device, tiled, target, spent) <= LOAD * target:
            return tiled
    return None


def busy(graph: Graph, device: Device, made: EnginePlan, target: int, spent: float) -> float:
    """Cycles a frame that all jobs take when their weights have only the rest of the memory's rate."""
    layers = members(graph, made)
    row = columns(made, weights_of(conv for conv, _ in layers.values()))
    sizes = [(_Sizes(graph, made, conv, row), made.places[name].tile) for name, (conv, _) in layers.items()]
    maps = sum(s.maps for s, _ in sizes) / target
    rate = device.memory_bytes * 8 / made.data_bits - maps - spent * 8 / made.data_bits
    return sum(s.pixels // tile * max(s.cycles(tile), s.weights / rate) for s, tile in sizes)


def with_tiles(graph: Graph, device: Device, made: EnginePlan, nodes: Sequence[Node], target: int, spent: float) -> EnginePlan | None:
    """Pixels a job: as few as keep all traffic within the memory's rate, more first in usual tiles and where a word of a ring saves most
    reading."""
    row = columns(made, weights_of(nodes))
    sizes = {n.name: _Sizes(graph, made, n, row) for n in nodes}
    if any(not s.tiles for s in sizes.values()):
        return None
    chosen = {name: 0 for name in sizes}
    while True:
        traffic = sum(s.traffic(chosen[n]) for n, s in sizes.items()) * made.data_bits / 8 / target
        slow = {n for n, s in sizes.items() if s.tiles[chosen[n]] < row * device.memory_bits / 8 / (0.6 * device.memory_bytes)}
        grow = [n for n in sizes if chosen[n] + 1 < len(sizes[n].tiles) and (n in slow or traffic + spent > RATE * device.memory_bytes)]
        if not grow:
            break
        best = max(grow, key=lambda n: (n in slow, sizes[n].words(chosen[n] + 1) <= USUAL, sizes[n].gain(chosen[n])))
        chosen[best] += 1
    if traffic + spent > RATE * device.memory_bytes:
        return None
    places = {}
    for name, s in sizes.items():
        tile = s.tiles[chosen[name]]
        kept = [power(MARGIN + max(TILES * tile * w // BLOCK, AHEAD)) for w in (s.front, s.back)]
        places[name] = Place(tile=tile, in_blocks=kept[0], out_blocks=kept[1])
    fronts, backs = ([places[n].tile * w for n, s in sizes.items() for w in [getattr(s, side)]] for side in ("front", "back"))
    # Operands of a usual job arrive while the largest is used, and the other way round; results are written soon.
    operands = ceil((max(fronts) + sorted(fronts)[len(fronts) // 2]) / GRAIN) * GRAIN
    return replace(made, places=places, operands=operands, results=ceil(max(backs) / GRAIN) * GRAIN)


class _Sizes:
    """A layer's words: ``front``, ``back`` a pixel, ``maps`` there and back a frame, ``weights`` a job; ``tiles`` that are whole blocks and
    fit the rings."""

    def __init__(self, graph: Graph, made: EnginePlan, node: Node, row: int) -> None:
        after = requant_of(graph, node)
        assert after is not None
        x, y = graph.tensors[node.inputs[0]].type, graph.tensors[after.outputs[0]].type
        self.front, self.back, self.pixels = -(-x.channels // made.simd), -(-y.channels // made.simd), x.pixels
        self.weights = words(made, x.channels, y.channels, row)
        self.maps = 2 * x.pixels * (self.front + self.back)
        self.made, self.row, self.channels, self.outs = made, row, x.channels, y.channels
        self.tiles = [
            t for t in range(8, x.pixels + 1)
            if x.pixels % t == 0 and not t * self.front % BLOCK and not t * self.back % BLOCK
            and t * self.front <= MOST_OPERANDS and t * self.back <= MOST_RESULTS
        ]  # fmt: skip

    def cycles(self, tile: int) -> int:
        """Cycles of a job whose weights are there."""
        return job_cycles(self.made, self.channels, self.outs, tile, self.row)

    def traffic(self, k: int) -> int:
        """Words a frame: weights, and tiles in front and behind twice."""
        return self.weights * (self.pixels // self.tiles[k]) + self.maps

    def words(self, k: int) -> int:
        """Words of a tile of operands or of results, whichever has more."""
        return self.tiles[k] * max(self.front, self.back)

    def gain(self, k: int) -> float:
        """Words saved for each word of the rings that the next larger tile takes."""
        more = (self.tiles[k + 1] - self.tiles[k]) * (self.front + self.back)
        return (self.traffic(k) - self.traffic(k + 1)) / more


def queues(design: Design, links: Sequence[Link]) -> Mapping[str, int]:
    """Links whose beats had better wait in memory: long queues of bytes before units of nodes; blocks of each, a frame at least."""
    assert design.engine is not None
    found = dict(design.engine.queues)
    turns = STREAMS + len(design.engine.places)  # a beat of each stream in turn
    for link in links:
        kind = link.source.lanes
        node = design.nodes.get(link.target.unit)
        if node is None or kind.bits > 8 or link.depth * kind.width < LONG:
            continue
        ports = [name for name, _ in in_ports(node, design.folds[node.name])]
        x = design.graph.tensors[node.inputs[ports.index(link.target.port)]].type
        beats = x.pixels * -(-x.channels // design.engine.stream)
        interval = max(u.frame_cycles for u in design.units.values())
        if beats % (2 * BLOCK) == 0 and beats * turns < PACE * interval:
            found[f"{link.target.unit}.{link.target.port}"] = power(MARGIN + beats // (2 * BLOCK))
    return found
