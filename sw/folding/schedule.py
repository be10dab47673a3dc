"""FIFO depths from a static schedule: seconds of arithmetic instead of hours of simulation.

The image is fed at the network's own pace; every unit works as early as its inputs allow and never waits for room, but no faster than
it must to keep up. What then piles up on a link is the depth that it needs: with these depths the same schedule runs in hardware, so no
cycle of forks and joins can lock, and a dataflow network that can run never does worse by running eagerly.
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hw.engine import EngineUnit
from hw.lib.deform_memory import DeformMemoryUnit
from hw.lib.fork import Fork
from hw.lib.regroup import Regroup
from hw.top import Link, Port
from hw.units.decode import PEAK
from sw.engine import ENGINE, ENGINE_WAIT
from sw.graph import Node
from sw.lower import Design, identifier, in_ports
from sw.ops import (
    Add,
    AveragePool,
    Concat,
    Conv,
    Decode,
    Deform,
    Depthwise,
    GlobalAveragePool,
    Image,
    MaxPool,
    Multiply,
    Requant,
    Shuffle,
    Split,
    Table,
    Upsample,
)

from . import timing
from .fold import beats
from .timing import Sliding, Times, Timing

#: Frames of the schedule: the second meets what the first has left.
FRAMES = 2
#: Intervals within which all of it happens, with much to spare.
MARGIN = 64
#: Beats that a queue in memory can hold: more than any that is needed.
ENOUGH = 1 << 40
#: Arrivals from one look at a queue to the next (:func:`most_waiting`): a prime, so that bursts are seen in all their phases.
STEP = 509
#: Share of the interval in which a unit does a frame's work.
PACE = 1.0


def size_fifos(design: Design) -> list[Link]:
    """The design's links with the depth that each needs."""
    ends = Counter(_actor(k.target) for k in design.links)  # where several end branches meet, and one may wait for the other
    depths = {k.name: _depth(arrivals, reads, ends[_actor(k.target)] > 1) for k, arrivals, reads in simulate(design)}
    return [replace(k, depth=max(depths[k.name] - _pooled(design, k), 0)) for k in design.links]


def _pooled(design: Design, link: Link) -> int:
    """Beats of the link that the engine's pool holds: a tile, which waits there until it is taken; in memory there is room for all."""
    source = link.source
    while source.unit != ENGINE:
        before = [k for k in design.links if k.target.unit == source.unit]
        if not isinstance(design.units[source.unit], Fork | Regroup) or len(before) != 1:
            return 0
        source = before[0].source
    unit = design.units[ENGINE]
    assert isinstance(unit, EngineUnit)
    if unit.memory is not None:
        return ENOUGH
    layer = unit.layers[int(_actor(source)[1])]
    return layer.out_slots * layer.tile * link.source.lanes.beats(len(layer.weights))


def _depth(arrivals: Times, reads: Times, joins: bool) -> int:
    """Beats on a link at most, with slack for pipelines that are deeper than the schedule assumes."""
    most = most_waiting(arrivals, reads)
    if joins:
        return most + most // 8 + 4 * timing.LATENCY
    return most + 2 if most else 0


def most_waiting(arrivals: Times, reads: Times) -> int:
    """Beats that have come and are not taken, at most; both in order.

    At most n wait if no beat comes before the n-th one in front of it is taken. A look at every ``STEP``-th arrival finds a number that is
    close; then only the beats that come too early for that may have more before them.
    """
    if reads is arrivals:
        return 0

    def waiting(beats: npt.NDArray[np.int64]) -> int:
        return int((beats + 1 - np.searchsorted(reads, arrivals[beats], side="right")).max(initial=0))

    close = waiting(np.arange(0, len(arrivals), STEP))
    late = np.flatnonzero(reads[: len(reads) - close] > arrivals[close:]) + close
    return max(close, waiting(late))


def simulate(design: Design) -> Iterator[tuple[Link, Times, Times]]:
    """Every link with the times at which its beats come and are taken, one after the other: those of all links are gigabytes."""
    incoming = dict.fromkeys(((p.unit, p.port) for p in design.inputs.values()), _image(design))
    into = {(k.target.unit, k.target.port): k for k in design.links}
    after: dict[str, list[Link]] = {}
    for link in design.links:
        after.setdefault(link.source.unit, []).append(link)
    waiting = Counter(_actor(p) for p in [*(k.target for k in design.links), *design.inputs.values()])
    ready = [_actor(p) for p in design.inputs.values()]
    while ready:
        actor = ready.pop()
        unit = actor[0]
        ports = _in_ports(design, *actor)
        arrivals = [incoming.pop((unit, p)) for p in ports]
        result = _timing(design, *actor, arrivals)
        yield from ((into[unit, p], a, r) for p, a, r in zip(ports, arrivals, result.reads, strict=True) if (unit, p) in into)
        outs = _out_ports(design, *actor)
        for link in (k for k in after.get(unit, []) if _actor(k.source) == actor):
            incoming[link.target.unit, link.target.port] = result.writes[outs.index(link.source.port)]
            waiting[_actor(link.target)] -= 1
            if not waiting[_actor(link.target)]:
                ready.append(_actor(link.target))


def _image(design: Design) -> Times:
    """When the image's pixels come: in 32 bits where no time comes near their end, for half the work."""
    (image,) = design.graph.inputs
    pixels = design.graph.tensors[image].type.pixels
    frame = np.arange(pixels, dtype=np.int64) * design.interval // pixels
    times = np.concatenate([frame + f * design.interval for f in range(FRAMES)])
    return times.astype(np.int32) if MARGIN * design.interval < 1 << 31 else times


def _actor(port: Port) -> tuple[str, str]:
    """Whose schedule a port belongs to: a unit's, or one layer's of the engine."""
    return port.unit, re.sub(r"[io](\d+)$", r"\1", port.port) if port.unit == ENGINE else ""


def _in_ports(design: Design, unit: str, layer: str) -> list[str]:
    if layer:
        return [re.sub(r"(\d+)$", r"i\1", layer)]
    node = design.nodes.get(unit)
    return ["i"] if node is None else [name for name, _ in in_ports(node, design.folds[node.name])]


def _out_ports(design: Design, unit: str, layer: str) -> list[str]:
    if layer:
        return [re.sub(r"(\d+)$", r"o\1", layer)]
    node, made = design.nodes.get(unit), design.units[unit]
    if isinstance(made, Fork):
        return [f"o{k}" for k in range(made.outputs)]
    return ["o"] if node is None or len(node.outputs) == 1 else [f"o{k}" for k in range(len(node.outputs))]


def _timing(design: Design, unit: str, layer: str, arrivals: Sequence[Times]) -> Timing:
    made = design.units[unit]
    if isinstance(made, EngineUnit):
        return _engine_timing(made, layer, arrivals[0])
    if isinstance(made, Fork):
        times = _in_step(design, unit, arrivals[0])
        return Timing(reads=(times,), writes=(times,) * made.outputs)
    if isinstance(made, Regroup):
        return timing.regroup(arrivals[0], made.channels, made.i_lanes.lanes, made.o_lanes.lanes)
    pace = max(1.0, PACE * design.interval / made.frame_cycles)
    return _node_timing(design, design.nodes[unit], arrivals, pace)


def _in_step(design: Design, fork: str, arrivals: Times) -> Times:
    """When a fork's beats go on: those of the engine's pool wait there for the slowest branch, pixel by pixel, since its branches have no
    queues of their own (:func:`_pooled`). Branches that join others wait for them instead and do not count."""
    if not any(_pooled(design, k) for k in design.links if k.target.unit == fork):
        return arrivals
    taken = [_taken(design, k, arrivals) for k in design.links if k.source.unit == fork]
    pixels = [reads.reshape(len(reads) // beats, beats)[:, -1] for reads, beats in filter(None, taken)]
    if not pixels:
        return arrivals
    each = len(arrivals) // len(pixels[0])
    times: Times = np.maximum(arrivals, np.repeat(np.maximum.reduce(pixels), each))
    return times


def _taken(design: Design, branch: Link, arrivals: Times) -> tuple[Times, int] | None:
    """When the unit at the end of a branch takes its beats, and how many a pixel has; None if it has other inputs, or is the engine."""
    unit = branch.target.unit
    made = design.units[unit]
    if isinstance(made, Regroup):
        times = timing.regroup(arrivals, made.channels, made.i_lanes.lanes, made.o_lanes.lanes).writes[0]
        (after,) = (k for k in design.links if k.source.unit == unit)
        return _taken(design, after, times)
    ports = [k for k in design.links if k.target.unit == unit]
    if len(ports) != 1 or unit not in design.nodes:
        return None
    x = design.graph.types(design.nodes[unit].inputs)[0]
    (reads,) = _timing(design, unit, "", [arrivals]).reads
    return reads, len(reads) // (FRAMES * x.pixels)


def _engine_timing(engine: EngineUnit, layer: str, arrivals: Times) -> Timing:
    """A layer of the engine, or a stream that only waits in memory."""
    turn = len(engine.layers) + (len(engine.memory.plain) if engine.memory else 0)
    if not layer.isdigit():
        return timing.spool(arrivals, turn)
    k = engine.layers[int(layer)]
    jobs = [other.tile * engine.rows(other) * other.folds(engine.pe) for other in engine.layers]
    job = jobs[int(layer)]
    wait = round(ENGINE_WAIT * (sum(jobs) - job)) + (timing.MEMORY if engine.memory else 0)
    return timing.engine(arrivals, (k.tile, k.i.beats(k.channels), k.o.beats(len(k.weights))), job, wait, turn)


def _node_timing(design: Design, node: Node, arrivals: Sequence[Times], pace: float) -> Timing:
    op, fold, types = node.op, design.folds[node.name], design.graph.types(node.inputs)
    x, out = types[0], design.graph.tensors[node.outputs[0]].type
    if isinstance(op, Requant | Shuffle | Table):
        return timing.elementwise(arrivals[0])
    if isinstance(op, Add | Multiply):
        return timing.join(tuple(arrivals))
    if isinstance(op, Split):
        return timing.split(arrivals[0], op.sizes, fold.lanes_in)
    if isinstance(op, Concat):
        return timing.concat(tuple(arrivals), tuple(t.channels for t in types), fold.lanes_in, op.interleave)
    per_pixel = beats(x.channels, fold.lanes_in)
    if isinstance(op, Decode):
        return timing.decode((arrivals[0], arrivals[1], arrivals[2]), FRAMES, (x.height, x.width, per_pixel), PEAK, op.top_k)
    if isinstance(op, GlobalAveragePool):
        return timing.reduce(arrivals[0], FRAMES, per_pixel)
    if isinstance(op, Image):
        return timing.pad(arrivals[0], FRAMES, (x.height, x.width, per_pixel), op.pad)
    if isinstance(op, Depthwise) and fold.taps > 1:
        return timing.all_taps(arrivals[0], FRAMES, (x.height, x.width, per_pixel), op.window, op.window.taps // fold.taps * pace)
    if isinstance(op, Upsample):
        return timing.upsample(arrivals[0], FRAMES, x.height, x.width * per_pixel, x.width, op.factor, pace)
    if isinstance(op, Conv) and op.window.taps == 1 and op.window.stride == (1, 1):
        return timing.pointwise(arrivals[0], per_pixel, beats(out.channels, fold.lanes_out), pace)
    if isinstance(op, Conv):
        slide = Sliding.of(op.window, FRAMES, x.height, x.width)
        vectors = timing.serve(slide.ready(arrivals[0]), op.window.taps * per_pixel)
        _, writes = timing.matvec(vectors, op.window.taps * per_pixel, beats(out.channels, fold.lanes_out), pace)
        return Timing(reads=(slide.reads(arrivals[0], vectors),), writes=(writes,))
    if isinstance(op, Deform):
        made = design.units[identifier(node.name)]
        slide = Sliding.around(op.ring(x), op.banks, FRAMES, x.width)
        taps = made.pixels_read if isinstance(made, DeformMemoryUnit) else op.weights.shape[0] ** 2
        per_offset = beats(op.offsets, 1 + op.free)  # beats of offsets a pixel; the last of them counts
        ready = np.maximum(slide.ready(arrivals[0]), arrivals[1][per_offset - 1 :: per_offset])
    elif isinstance(op, Depthwise | MaxPool | AveragePool):
        slide = Sliding.of(op.window, FRAMES, x.height, x.width)
        taps, ready = op.window.taps, slide.ready(arrivals[0])
    else:
        raise TypeError(f"no schedule for {op.name}")
    groups = beats(out.channels, fold.lanes_out)
    # A tight line buffer stops its input unless it goes as fast as that, so what follows must take its rows as they come.
    writes = timing.serve(np.repeat(ready, groups), taps * (1 if fold.lines == "tight" else pace))
    done = writes[groups - 1 :: groups]
    reads: tuple[Times, ...] = (slide.reads(arrivals[0], done),)
    if isinstance(op, Deform):
        reads = (*reads, np.repeat(done, per_offset))
    return Timing(reads=reads, writes=(writes + timing.LATENCY,))
