"""Plans for a shared engine whose tiles wait in external memory, and which other queues wait there beside them."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
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
    in_time = row * device.memory_bits / 8 / (0.6 * device.memory_bytes)  # pixels of a job whose weights come meanwhile

    def worth(name: str) -> tuple[bool, bool, float]:
        s, k = sizes[name], chosen[name]
        return s.tiles[k] < in_time, s.words(k + 1) <= USUAL, s.gains[k]

    left = {n: worth(n) for n, s in sizes.items() if len(s.tiles) > 1}
    moved = sum(s.traffic[0] for s in sizes.values())
    while True:
        traffic = moved * made.data_bits / 8 / target
        over = traffic + spent > RATE * device.memory_bytes
        grow = [n for n, (slow, _, _) in left.items() if over or slow]
        if not grow:
            break
        best = max(grow, key=lambda n: left[n])
        k = chosen[best] = chosen[best] + 1
        moved += sizes[best].traffic[k] - sizes[best].traffic[k - 1]
        if k + 1 < len(sizes[best].tiles):
            left[best] = worth(best)
        else:
            del left[best]
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
    fit the rings, each with its ``traffic`` in words a frame, weights and tiles in front and behind twice; ``gains`` of the next larger
    tile: words saved for each word of the rings that it takes."""

    def __init__(self, graph: Graph, made: EnginePlan, node: Node, row: int) -> None:
        after = requant_of(graph, node)
        assert after is not None
        x, y = graph.tensors[node.inputs[0]].type, graph.tensors[after.outputs[0]].type
        self.front, self.back, self.pixels = -(-x.channels // made.simd), -(-y.channels // made.simd), x.pixels
        self.weights = words(made, x.channels, y.channels, row)
        self.maps = 2 * x.pixels * (self.front + self.back)
        self.made, self.row, self.channels, self.outs = made, row, x.channels, y.channels
        self.tiles = _tiles(x.pixels, self.front, self.back)
        self.traffic = [self.weights * (x.pixels // tile) + self.maps for tile in self.tiles]
        more = [(b - a) * (self.front + self.back) for a, b in pairwise(self.tiles)]
        self.gains = [(a - b) / words for (a, b), words in zip(pairwise(self.traffic), more, strict=True)]

    def cycles(self, tile: int) -> int:
        """Cycles of a job whose weights are there."""
        return job_cycles(self.made, self.channels, self.outs, tile, self.row)

    def words(self, k: int) -> int:
        """Words of a tile of operands or of results, whichever has more."""
        return self.tiles[k] * max(self.front, self.back)


@cache
def _tiles(pixels: int, front: int, back: int) -> list[int]:
    """Pixels of tiles that are whole blocks and fit the rings, ascending."""
    most = min(pixels, MOST_OPERANDS // front, MOST_RESULTS // back)
    return [t for t in range(8, most + 1) if pixels % t == 0 and not t * front % BLOCK and not t * back % BLOCK]


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
        interval = design.interval
        if beats % (2 * BLOCK) == 0 and beats * turns < PACE * interval:
            found[f"{link.target.unit}.{link.target.port}"] = power(MARGIN + beats // (2 * BLOCK))
    return found
