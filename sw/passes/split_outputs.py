"""Very wide pointwise layers are computed in parts of their outputs, which are then put side by side.

The shared engine keeps the results of a tile on chip, all channels of its pixels: with thousands of them that is much memory for a few
pixels. Each output of a convolution and its requantization depends on no other, so the parts are exact.
"""
from __future__ import annotations

from dataclasses import replace
from math import ceil

from sw.graph import Graph, Node, Tensor
from sw.ops import Concat, Conv, Requant
from sw.ops.conv import POINT

#: Most outputs of a layer, and what the channels of all parts but the last are a multiple of.
MOST, WHOLE = 2048, 16


def run(graph: Graph) -> Graph:
    """Split every pointwise convolution with more than :data:`MOST` outputs and its requantization."""
    for conv in graph.nodes:
        after = _requantized(graph, conv)
        if after is not None:
            graph = _split(graph, conv, after)
    return graph


def _requantized(graph: Graph, conv: Node) -> Node | None:
    """What requantizes the sums of a layer that is to be split; None if it is not."""
    if not isinstance(conv.op, Conv) or conv.op.window != POINT or len(conv.op.bias) <= MOST:
        return None
    (sums,), readers = conv.outputs, graph.consumers(conv.outputs[0])
    return readers[0] if len(readers) == 1 and isinstance(readers[0].op, Requant) and sums not in graph.outputs else None


def _split(graph: Graph, conv: Node, after: Node) -> Graph:
    assert isinstance(conv.op, Conv) and isinstance(after.op, Requant)
    outs, (sums,), (result,) = len(conv.op.bias), conv.outputs, after.outputs
    size = ceil(outs / ceil(outs / MOST) / WHOLE) * WHOLE
    tensors, nodes, parts = dict(graph.tensors), [n for n in graph.nodes if n not in (conv, after)], []
    for k, first in enumerate(range(0, outs, size)):
        some = slice(first, first + size)
        point = replace(conv.op, weights=conv.op.weights[some], bias=conv.op.bias[some])
        scale = replace(after.op, multiplier=after.op.multiplier[some], shift=after.op.shift[some])
        (acc,) = point.infer(graph.tensors[conv.inputs[0]].type)
        (out,) = scale.infer(acc)
        names = f"{sums}.{k}", f"{result}.{k}"
        for name, kind, whole in zip(names, (acc, out), (sums, result), strict=True):
            scales = graph.tensors[whole].scale
            tensors[name] = Tensor(name=name, type=kind, scale=scales[some] if len(scales) > 1 else scales)
        nodes.append(replace(conv, name=f"{conv.name}.{k}", op=point, outputs=names[:1]))
        nodes.append(replace(after, name=f"{after.name}.{k}", op=scale, inputs=names[:1], outputs=names[1:]))
        parts.append(names[1])
    nodes.append(Node(name=f"{after.name}.whole", op=Concat(), inputs=tuple(parts), outputs=(result,), source=after.source))
    gone = {k for k, o in graph.origins.items() if o.tensor == sums}
    origins = {k: o for k, o in graph.origins.items() if k not in gone}
    removed = {**graph.removed, **{k: f"split_outputs: computed in {len(parts)} parts" for k in gone}}
    return graph.rebuilt(nodes, tensors=tensors, origins=origins, removed=removed)
