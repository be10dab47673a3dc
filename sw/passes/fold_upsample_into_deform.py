"""A deformable layer upsamples the map that it reads itself: its ring of rows then holds the small map, for factor 2 almost four times
less (spec: CoDeNet's second and third decoder layer read upsampled maps).

The offsets stay as they are: one for every pixel of the large map.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sw.graph import Graph, Node, Origin
from sw.ops import Deform, Upsample


def run(graph: Graph) -> Graph:
    """Every deformable layer reads the map before a nearest upsampling by a power of two; other readers keep the upsampling."""
    while found := next(_foldable(graph), None):
        graph = _fold(graph, *found)
    return graph


def _foldable(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Upsamplings that a deformable layer reads its map from, and that layer."""
    for node in graph.nodes:
        up = graph.producer(node.inputs[0]) if isinstance(node.op, Deform) else None
        if up is not None and isinstance(up.op, Upsample) and not up.op.factor & up.op.factor - 1:
            yield up, node


def _fold(graph: Graph, up: Node, deform: Node) -> Graph:
    (small,), (large,) = up.inputs, up.outputs
    assert isinstance(up.op, Upsample) and isinstance(deform.op, Deform)
    op = replace(deform.op, upsample=deform.op.upsample * up.op.factor)
    folded = replace(deform, op=op, inputs=(small, *deform.inputs[1:]))
    nodes = [folded if n is deform else n for n in graph.nodes]
    origins = dict(graph.origins)
    if graph.consumers(large) == [deform] and large not in graph.outputs and large not in folded.inputs:
        nodes = [n for n in nodes if n is not up]
        origins = {k: Origin(tensor=small, steps=(up.op, *o.steps)) if o.tensor == large else o for k, o in origins.items()}
    return graph.rebuilt(nodes, origins=origins)
