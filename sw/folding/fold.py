"""How wide every unit is: lanes in and out of each node, chosen for a target interval or pinned by the user."""
from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import gcd
from pathlib import Path

from hw.lib.packing import PACKERS, packing_of
from hw.lib.paged import check_pace, entries_needed
from hw.lib.taps import taps_cycles
from hw.params import RESTS, LineBuffer, MapPlace, Multiplier, Range, RomKind
from hw.units.decode import decode_cycles
from sw.engine import EnginePlan, on_engine
from sw.errors import CompileError
from sw.folding.deform_memory import lanes_in_word, most_traffic
from sw.graph import Graph, Node
from sw.ops import AveragePool, Concat, Conv, Decode, Deform, Depthwise, MaxPool, Op, Requant, Split, TensorType
from sw.ops.base import weight_range


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Lanes of a node's input and output streams. For a convolution: SIMD and PE, kind of multipliers and place of the weights.

    ``taps`` of a depthwise convolution's window are multiplied a cycle: 1, a row of them, or all. ``place``: of a deformable layer's map;
    in memory its lanes are the channels in a word of ``data_bits``. ``lines``: line buffer of a depthwise convolution or max pool, "tight"
    at half the rate (hw.lib.window), "paged" at the full one (hw.lib.paged). ``cells``: keys that the decoder's sorter compares at once.
    """

    lanes_in: int
    lanes_out: int
    multiplier: Multiplier = "inferred"
    memory: RomKind = "auto"
    taps: int = 1
    place: MapPlace = "chip"
    data_bits: int = 128
    cells: int = 0
    lines: LineBuffer = "ring"


def in_memory(node: Node, x: TensorType, data_bits: int) -> Fold:
    """The fold of a deformable layer whose map lies in external memory."""
    lanes = lanes_in_word(x, data_bits)
    return Fold(lanes_in=lanes, lanes_out=lanes, place="memory", data_bits=data_bits)


def beats(channels: int, lanes: int) -> int:
    """Beats a pixel takes."""
    return -(-channels // lanes)


@cache
def _out(op: Op, types: tuple[TensorType, ...]) -> TensorType:
    """Type of an operator's first output; looked up, since finding an accumulator's width reads all weights."""
    return op.infer(*types)[0]


def cycles(node: Node, types: list[TensorType], fold: Fold) -> int:
    """Cycles between two back-to-back frames of the node's unit, as the unit's ``frame_cycles`` says."""
    x = types[0]
    out = _out(node.op, tuple(types))
    reading = x.pixels * beats(x.channels, fold.lanes_in)
    if isinstance(node.op, Conv):
        vector = node.op.window.taps * beats(x.channels, fold.lanes_in)
        return max(reading, out.pixels * vector * beats(out.channels, fold.lanes_out))
    if isinstance(node.op, Depthwise) and fold.taps > 1:
        window = node.op.window
        return taps_cycles(x.height, x.width, beats(x.channels, fold.lanes_in), window, window.taps // fold.taps)
    if isinstance(node.op, Deform) and fold.place == "memory":
        return most_traffic(node.op, x, fold.data_bits).cycles
    if isinstance(node.op, Depthwise | Deform | MaxPool | AveragePool):
        taps = node.op.weights.shape[0] ** 2 if isinstance(node.op, Deform) else node.op.window.taps
        rests = RESTS if fold.lines == "tight" else 1
        return max(reading, out.pixels * taps * rests * beats(out.channels, fold.lanes_out))
    if isinstance(node.op, Decode):
        return decode_cycles(x.height, x.width, x.channels, fold.lanes_in, node.op.top_k, max(fold.cells, 1))
    if isinstance(node.op, Concat):
        return sum(t.pixels * beats(t.channels, fold.lanes_in) for t in types)
    return max(reading, out.pixels * beats(out.channels, fold.lanes_out))


def _widths(channels: int) -> list[int]:
    """The lane counts worth trying: the narrowest for each number of beats, ascending."""
    return sorted({-(-channels // n) for n in range(1, channels + 1)})


def shared_folds(graph: Graph, engine: EnginePlan | None) -> dict[str, Fold]:
    """The folds of the nodes that the engine computes: its lanes, so that what follows knows the beats that come."""
    return {name: Fold(lanes_in=engine.stream, lanes_out=engine.stream) for name in on_engine(graph, engine)} if engine else {}


def floor_cycles(graph: Graph, shared: Container[str] = ()) -> int:
    """The interval that no folding can beat: every unit at its widest, but for the ``shared`` nodes."""
    slowest = graph.tensors[graph.inputs[0]].type.pixels
    for node in (n for n in graph.nodes if n.name not in shared):
        types = graph.types(node.inputs)
        widest = _widest(node, types, [t.type for t in (graph.tensors[o] for o in node.outputs)])
        slowest = max(slowest, cycles(node, types, widest))
    return slowest


def _widest(node: Node, types: list[TensorType], outs: list[TensorType]) -> Fold:
    if isinstance(node.op, Split | Concat):
        common = _common(node, types)
        return Fold(lanes_in=common, lanes_out=common)
    if isinstance(node.op, Decode):
        return Fold(lanes_in=types[0].channels, lanes_out=outs[0].channels, cells=node.op.top_k)
    return Fold(lanes_in=types[0].channels, lanes_out=outs[0].channels)


def _common(node: Node, types: list[TensorType]) -> int:
    """The widest beat that no part of a split or concat straddles."""
    sizes = node.op.sizes if isinstance(node.op, Split) else tuple(t.channels for t in types)
    return gcd(*sizes)


def choose(
    graph: Graph,
    target: int | None = None,
    pins: Mapping[str, Fold] | None = None,
    multiplier: Multiplier = "inferred",
    engine: EnginePlan | None = None,
) -> dict[str, Fold]:
    """A fold for every node such that none takes more than ``target`` cycles a frame (None: as fast as any folding can be).

    Each node gets the fewest multipliers that meet the target, convolutions those of kind ``multiplier``. ``pins`` overrides
    nodes by name; nodes that the ``engine`` computes have its lanes. CompileError if the target cannot be met, or a pin does not fit its
    node.
    """
    pins = dict(pins or {})
    shared = shared_folds(graph, engine)
    target = floor_cycles(graph, shared) if target is None else target
    result: dict[str, Fold] = dict(shared)
    for node in graph.nodes:
        if node.name in shared:
            continue
        types = graph.types(node.inputs)
        out = graph.tensors[node.outputs[0]].type
        before = graph.producer(node.inputs[0])
        arriving = min(result[before.name].lanes_out, types[0].channels) if before is not None else types[0].channels
        if node.name in pins:
            result[node.name] = checked(node, types, out, pins.pop(node.name))
            continue
        tried = sorted(options(node, types, out, arriving, multiplier), key=lambda f: _cost(node, types[0], f))
        fitting = [f for f in tried if cycles(node, types, f) <= target]
        if not fitting:
            needed = floor_cycles(graph, shared)
            raise CompileError(f"{node.name}: no folding takes at most {target} cycles a frame; the network needs {needed}")
        result[node.name] = fitting[0]
    if pins:
        raise CompileError(f"the folding file pins {', '.join(sorted(pins))}, which the network does not have")
    return result


#: Keys that a decoder's sorter may compare at once.
CELLS = (4, 8, 16, 32, 64)
#: Where multipliers run out.
SOFT: Multiplier = "soft"


def options(node: Node, types: list[TensorType], out: TensorType, arriving: int, multiplier: Multiplier = "inferred") -> list[Fold]:
    """The folds worth trying for a node that is fed ``arriving`` lanes a beat."""
    x = types[0]
    if isinstance(node.op, Conv):
        return [Fold(lanes_in=s, lanes_out=p, multiplier=multiplier) for s in _widths(x.channels) for p in _widths(out.channels)]
    if isinstance(node.op, Requant):  # results of a convolution come in wide beats now and then: fewer multipliers in turn will do
        narrower = [n for n in range(1, arriving + 1) if arriving % n == 0]
        wider = [w for w in _widths(x.channels) if w > arriving]
        return [Fold(lanes_in=n, lanes_out=n, multiplier=multiplier) for n in [*narrower, *wider]]
    if isinstance(node.op, Split | Concat):
        common = _common(node, types)
        return [Fold(lanes_in=n, lanes_out=n) for n in range(1, common + 1) if common % n == 0]
    if isinstance(node.op, Depthwise | Deform):
        return [Fold(lanes_in=n, lanes_out=n, multiplier=kind) for n in _widths(x.channels) for kind in dict.fromkeys((multiplier, SOFT))]
    if isinstance(node.op, Decode):
        cells = [n for n in CELLS if n < node.op.top_k]
        return [Fold(lanes_in=n, lanes_out=out.channels, cells=c) for n in _widths(x.channels) for c in (*cells, node.op.top_k)]
    if isinstance(node.op, MaxPool | AveragePool):
        return [Fold(lanes_in=n, lanes_out=n) for n in _widths(x.channels)]
    # The rest takes the beats that come, or wider ones where those are too slow.
    return [Fold(lanes_in=n, lanes_out=n) for n in sorted({arriving, *(w for w in _widths(x.channels) if w > arriving)})]


def may_be_tight(node: Node) -> bool:
    """Whether a node has a line buffer that may be tight (hw/lib/window.py): with stride 1 each is."""
    return isinstance(node.op, Depthwise | MaxPool) and 1 < node.op.window.stride[0] <= RESTS


def tighter(node: Node, folds: list[Fold]) -> list[Fold]:
    """The same with tight line buffers, where a node has one whose stride is 2, and a depthwise convolution's weights in LUTs."""
    kinds: tuple[RomKind, ...] = ("auto", "lut") if isinstance(node.op, Depthwise) else ("auto",)
    buffers: tuple[LineBuffer, ...] = ("tight", "ring") if may_be_tight(node) else ("ring",)
    if len(kinds) == len(buffers) == 1:
        return []
    return [replace(f, lines=lines, memory=kind) for f in folds if f.taps == 1 for lines in buffers for kind in kinds]


def packed(node: Node, x: TensorType, fold: Fold) -> int:
    """Products that share a multiplier in a convolution's unit, for the weights it really has."""
    if fold.multiplier not in PACKERS:
        return 1
    found = packing_of(fold.multiplier, fold.lanes_in, weight_range(node.op), Range(low=x.lowest, high=x.highest))
    return found.lanes if found else 1


def multipliers(node: Node, x: TensorType, fold: Fold) -> int:
    """Multipliers that a convolution's unit takes; 0 where products are formed in logic."""
    return 0 if fold.multiplier == "soft" else -(-fold.lanes_out // packed(node, x, fold)) * fold.lanes_in


def products(node: Node, fold: Fold) -> int:
    """Multiplications that a layer's unit can start in a cycle, as the unit's ``multipliers`` says; 0 for what is no layer."""
    if isinstance(node.op, Conv):
        return fold.lanes_in * fold.lanes_out
    return fold.lanes_out * fold.taps if isinstance(node.op, Depthwise | Deform) else 0


def _cost(node: Node, x: TensorType, fold: Fold) -> tuple[int, int]:
    """Fewest multipliers first; among equals few PE, since each brings an accumulator and a requantizer."""
    if isinstance(node.op, Conv):
        return 2 * multipliers(node, x, fold) + fold.lanes_in * fold.lanes_out + 3 * fold.lanes_out, fold.lanes_out
    if isinstance(node.op, Decode):  # a window of nine values a lane, a comparison and a place in the row a cell
        return 9 * x.bits * fold.lanes_in + 60 * fold.cells, fold.lanes_in
    return fold.lanes_out, fold.lanes_out


def checked(node: Node, types: list[TensorType], out: TensorType, fold: Fold) -> Fold:
    """The fold, if the node's unit can have it; CompileError that says what it accepts."""
    x = types[0]
    if not 1 <= fold.lanes_in <= x.channels or not 1 <= fold.lanes_out <= out.channels:
        raise CompileError(
            f"{node.name}: a folding of {fold.lanes_in} lanes in and {fold.lanes_out} out does not fit "
            f"{x.channels} channels in and {out.channels} out; accepted: 1..{x.channels} and 1..{out.channels}"
        )
    if not isinstance(node.op, Conv | Decode) and fold.lanes_in != fold.lanes_out:
        raise CompileError(f"{node.name} ({node.op.name}): lanes in and out must be equal, not {fold.lanes_in} and {fold.lanes_out}")
    if isinstance(node.op, Split | Concat) and _common(node, types) % fold.lanes_in:
        raise CompileError(f"{node.name} ({node.op.name}): lanes must divide {_common(node, types)}, not {fold.lanes_in}")
    if fold.lines != "ring":
        _check_lines(node, x, fold)
    if fold.taps != 1 and (not isinstance(node.op, Depthwise) or fold.taps not in (node.op.window.kernel[1], node.op.window.taps)):
        raise CompileError(f"{node.name} ({node.op.name}): taps must be 1, or a row or all of a depthwise window, not {fold.taps}")
    return fold


def _check_lines(node: Node, x: TensorType, fold: Fold) -> None:
    """CompileError if the node's unit cannot have the fold's line buffer."""
    if not isinstance(node.op, Depthwise | MaxPool) or fold.taps != 1 or (fold.lines == "tight" and not may_be_tight(node)):
        raise CompileError(
            f"{node.name} ({node.op.name}): a tight or paged line buffer is for depthwise convolutions and max pools at one tap a cycle, "
            "a tight one with stride 2"
        )
    if fold.lines == "paged":
        try:
            check_pace(node.op.window)
            entries_needed(x.height, x.width, node.op.window, 0)
        except ValueError as error:
            raise CompileError(f"{node.name} ({node.op.name}): {error}") from None


def read_pins(path: Path) -> dict[str, Fold]:
    """Pins from a JSON file: {"node": {"lanes_in": 4, "lanes_out": 8}}, and any other field of :class:`Fold`.

    The key "engine" is left to :func:`read_engine`. The ``folding.json`` of a compiled design is such a file.
    """
    try:
        return {str(k): Fold(**v) for k, v in json.loads(path.read_text()).items() if k != "engine"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CompileError(f'{path}: not a folding file ({error}); wanted: {{"node": {{"lanes_in": 4, "lanes_out": 8}}}}') from None


def read_engine(path: Path) -> EnginePlan | None:
    """The plan of the shared engine in a folding file, under "engine"; None if it has none."""
    try:
        table = json.loads(path.read_text())
        return EnginePlan.of(table["engine"]) if "engine" in table else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CompileError(f"{path}: the engine's plan cannot be read ({error}); wanted: the fields of EnginePlan (sw/engine.py)") from None
