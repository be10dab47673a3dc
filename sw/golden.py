"""The golden model: runs any integer graph in NumPy, exactly."""
from __future__ import annotations

from collections.abc import Container

import numpy as np

from .graph import Graph
from .ops import Array


def check_images(graph: Graph, images: Array) -> Array:
    """``images`` (N, H, W, C) as integers that fit the graph's input, or ValueError."""
    (name,) = graph.inputs
    kind = graph.tensors[name].type
    if images.ndim != 4 or images.shape[1:] != kind.shape:
        raise ValueError(f"images must be (N, {kind.height}, {kind.width}, {kind.channels}), not {images.shape}")
    if images.dtype.kind not in "iu":
        raise TypeError(f"images must be integers, not {images.dtype}")
    if images.size and (images.min() < kind.lowest or images.max() > kind.highest):
        raise ValueError(f"images must lie in {kind.lowest}..{kind.highest}, not {images.min()}..{images.max()}")
    return images.astype(np.int64)


def run(graph: Graph, images: Array, keep: Container[str] | None = None) -> dict[str, Array]:
    """Run ``images`` (N, H, W, C) through ``graph``.

    Returns the tensors named in ``keep`` (all with ``None``) and the outputs, each int64 (N, H, W, C).
    """
    (name,) = graph.inputs
    values: dict[str, Array] = {name: check_images(graph, images)}
    last_use = {t: k for k, n in enumerate(graph.nodes) for t in n.inputs}
    for k, node in enumerate(graph.nodes):
        results = node.op.golden(*(values[t] for t in node.inputs))
        values.update(zip(node.outputs, results, strict=True))
        for t in node.inputs:
            unused = last_use[t] == k and t not in graph.outputs
            if unused and keep is not None and t not in keep:
                values.pop(t, None)
    wanted = values if keep is None else {t: v for t, v in values.items() if t in keep or t in graph.outputs}
    return dict(wanted)
