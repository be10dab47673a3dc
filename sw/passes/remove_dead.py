"""Remove nodes whose results nobody reads."""
from __future__ import annotations

from sw.graph import Graph


def run(graph: Graph) -> Graph:
    """Drop nodes that lead to no output; their tensors are listed as removed."""
    live = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if live.intersection(node.outputs):
            kept.append(node)
            live.update(node.inputs)
    unread = [t for n in kept for t in n.outputs if t not in live and t not in graph.outputs]
    written = {*graph.inputs, *(t for n in kept for t in n.outputs)}
    gone = {name: o for name, o in graph.origins.items() if o.tensor not in written}
    return graph.rebuilt(
        reversed(kept),
        origins={name: o for name, o in graph.origins.items() if name not in gone},
        removed={**graph.removed, **{name: "remove_dead: leads to no output" for name in gone}},
        notes=(*graph.notes, *(f"{t}: written, but nobody reads it" for t in unread)),
    )
