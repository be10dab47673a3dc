"""Concat followed by a channel shuffle becomes an interleaving concat: wiring instead of a pixel buffer."""
from __future__ import annotations

from dataclasses import replace

from sw.graph import Graph, Node, Origin
from sw.ops import Concat, Shuffle


def run(graph: Graph) -> Graph:
    """Fuse every shuffle that has one group for each input of the concat before it, if nobody else reads the concat."""
    for shuffle in graph.nodes:
        if isinstance(shuffle.op, Shuffle):
            concat = graph.producer(shuffle.inputs[0])
            if concat is not None and _fits(graph, concat, shuffle.op):
                graph = _fuse(graph, concat, shuffle)
    return graph


def _fits(graph: Graph, concat: Node, shuffle: Shuffle) -> bool:
    if not isinstance(concat.op, Concat) or concat.op.interleave or len(graph.consumers(concat.outputs[0])) > 1:
        return False
    channels = {t.channels for t in graph.types(concat.inputs)}
    return concat.outputs[0] not in graph.outputs and len(channels) == 1 and len(concat.inputs) == shuffle.groups


def _fuse(graph: Graph, concat: Node, shuffle: Node) -> Graph:
    (before,), (after,) = concat.outputs, shuffle.outputs
    fused = replace(concat, op=Concat(interleave=True), outputs=(after,))
    nodes = [fused if n is concat else n for n in graph.nodes if n is not shuffle]
    # The concat's own order is the shuffle undone: a shuffle with C / groups groups.
    groups = graph.tensors[before].type.channels // shuffle.op.groups  # type: ignore[attr-defined]
    undo = (Shuffle(groups=groups),) if groups > 1 else ()
    origins = {
        name: Origin(tensor=after, steps=(*undo, *o.steps)) if o.tensor == before else o for name, o in graph.origins.items()
    }
    return graph.rebuilt(nodes, origins=origins)
