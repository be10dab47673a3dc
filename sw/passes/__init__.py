"""Exact rewrites of the integer graph, one a file: ``run(graph) -> graph``, golden's answer unchanged.

Each pass keeps ``origins`` true: every tensor of the file can still be recovered from the graph, or is listed as removed.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sw.errors import CompileError
from sw.golden import run as run_golden
from sw.graph import Graph, verify

from . import fold_upsample_into_deform, fuse_shuffle, move_upsample, remove_dead, split_outputs

#: In the order in which they run.
PASSES: dict[str, Callable[[Graph], Graph]] = {
    "remove_dead": remove_dead.run,
    "fuse_shuffle": fuse_shuffle.run,
    "move_upsample": move_upsample.run,
    "fold_upsample_into_deform": fold_upsample_into_deform.run,
    "split_outputs": split_outputs.run,
}


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a pass did: nodes, multiplications a frame and values of all tensors a frame, each before and after."""

    name: str
    nodes: tuple[int, int]
    multiplications: tuple[int, int]
    values: tuple[int, int]


def run_all(graph: Graph, *, prove: int = 0, seed: int = 0) -> tuple[Graph, list[Pass]]:
    """All passes, each followed by a check of the graph: (the graph, what each pass did).

    ``prove``: random images on which golden's outputs must be the same before and after each pass, value by value. CompileError if
    they are not.
    """
    done = []
    (name,) = graph.inputs
    kind = graph.tensors[name].type
    images = np.random.default_rng(seed).integers(kind.lowest, kind.highest + 1, (prove, *kind.shape))
    wanted = run_golden(graph, images, keep=()) if prove else {}
    for title, run in PASSES.items():
        before, graph = graph, run(graph)
        verify(graph)
        if prove:
            found = run_golden(graph, images, keep=())
            if wrong := [t for t in graph.outputs if not np.array_equal(found[t], wanted[t])]:
                raise CompileError(f"the pass {title} changes {', '.join(wrong)}: a bug of the compiler, please report it with the model")
        pairs = zip(_sizes(before), _sizes(graph), strict=True)
        nodes, multiplications, values = pairs
        done.append(Pass(name=title, nodes=nodes, multiplications=multiplications, values=values))
    return graph, done


def _sizes(graph: Graph) -> tuple[int, int, int]:
    values = sum(t.type.pixels * t.type.channels for t in graph.tensors.values())
    return len(graph.nodes), graph.multiplications(), values
