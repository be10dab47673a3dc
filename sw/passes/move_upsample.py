"""Nearest upsampling moves after pointwise work, which then runs on the small map.

A pointwise convolution, its bias and its requantization treat every pixel alone, so they commute with repetition
bit for bit (spec: CoDeNet's heads run three quarters of their 1×1 work on repeated pixels).
"""
from __future__ import annotations

from dataclasses import replace

from sw.graph import Graph, Node, Origin, Tensor
from sw.ops import Conv, Requant, Upsample
from sw.ops.conv import POINT


def run(graph: Graph) -> Graph:
    """Move upsampling down until every one is followed by something that mixes pixels."""
    while True:
        found = next(((up, user) for up in graph.nodes if isinstance(up.op, Upsample) for user in _movable(graph, up)), None)
        if found is None:
            return graph
        graph = _move(graph, *found)


def _movable(graph: Graph, up: Node) -> list[Node]:
    """Readers of ``up`` that treat every pixel alone."""
    result = []
    for user in graph.consumers(up.outputs[0]):
        pointwise = isinstance(user.op, Conv) and user.op.window == POINT
        after_conv = isinstance(user.op, Requant) and len(graph.consumers(up.outputs[0])) == 1
        if (pointwise or after_conv) and user.outputs[0] not in graph.outputs:
            result.append(user)
    return result


def _move(graph: Graph, up: Node, user: Node) -> Graph:
    """``user`` reads the small map; its result is upsampled instead."""
    (small,), (large,), (out,) = up.inputs, up.outputs, user.outputs
    name = f"{out}.small"
    assert isinstance(up.op, Upsample)
    moved = replace(user, inputs=(small,), outputs=(name,))
    (kind,) = moved.op.infer(graph.tensors[small].type)
    tensors = {**graph.tensors, name: Tensor(name=name, type=kind, scale=graph.tensors[out].scale)}
    lift = Node(name=f"{user.name}.upsample", op=up.op, inputs=(name,), outputs=(out,), source=up.source)
    nodes = [moved if n is user else n for n in graph.nodes]
    nodes.append(lift)
    origins = dict(graph.origins)
    if len(graph.consumers(large)) == 1 and large not in graph.outputs:
        nodes = [n for n in nodes if n is not up]
        origins = {k: Origin(tensor=small, steps=(up.op, *o.steps)) if o.tensor == large else o for k, o in origins.items()}
    return graph.rebuilt(nodes, tensors=tensors, origins=origins)
