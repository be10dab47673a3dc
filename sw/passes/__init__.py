"""Exact rewrites of the integer graph, one a file: ``run(graph) -> graph``, golden's answer unchanged.

Each pass keeps ``origins`` true: every tensor of the file can still be recovered from the graph, or is listed as removed.
"""
from collections.abc import Callable

from sw.graph import Graph, verify

from . import fold_upsample_into_deform, fuse_shuffle, move_upsample, remove_dead

#: In the order in which they run.
PASSES: dict[str, Callable[[Graph], Graph]] = {
    "remove_dead": remove_dead.run,
    "fuse_shuffle": fuse_shuffle.run,
    "move_upsample": move_upsample.run,
    "fold_upsample_into_deform": fold_upsample_into_deform.run,
}


def run_all(graph: Graph) -> Graph:
    """All passes, each followed by a check of the graph."""
    for run in PASSES.values():
        graph = run(graph)
        verify(graph)
    return graph
