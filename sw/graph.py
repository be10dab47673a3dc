"""The integer graph: typed tensors, nodes in topological order, and where the file's tensors went."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from .errors import CompileError
from .ops import Array, Op, TensorType


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """A named map of integers; ``scale`` is the real value of one unit: one number, or one a channel."""

    name: str
    type: TensorType
    scale: tuple[Fraction, ...]

    def scale_array(self) -> np.ndarray:
        """The scales as float64, broadcastable against (N, H, W, C)."""
        return np.array([float(s) for s in self.scale])


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """An operator applied to tensors; ``source`` names the node of the file that it comes from."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """How a tensor of the file is recovered: ``steps`` applied in order to ``tensor`` give exactly the file's integers."""

    tensor: str
    steps: tuple[Op, ...] = ()

    def recover(self, values: Array) -> Array:
        """The file's tensor from the graph's, both (N, H, W, C)."""
        for step in self.steps:
            (values,) = step.golden(values)
        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """An immutable network of integer operators.

    ``origins`` and ``removed`` together cover every activation tensor of the file: the first says how to recover it,
    the second which pass removed it and why. ``notes`` lists approximations and explicit requantizations.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    nodes: tuple[Node, ...]
    origins: Mapping[str, Origin] = field(default_factory=dict)
    removed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _named(self) -> dict[str, Node]:
        return {n.name: n for n in reversed(self.nodes)}

    @cached_property
    def _producers(self) -> dict[str, Node]:
        return {t: n for n in reversed(self.nodes) for t in n.outputs}

    @cached_property
    def _consumers(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(node.inputs):
                found.setdefault(tensor, []).append(node)
        return found

    def node(self, name: str) -> Node:
        """The node of that name."""
        if name not in self._named:
            raise KeyError(f"no node named {name!r}")
        return self._named[name]

    def producer(self, tensor: str) -> Node | None:
        """The node that writes ``tensor``, or None for an input."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[Node]:
        """The nodes that read ``tensor``."""
        return list(self._consumers.get(tensor, ()))

    def types(self, names: Iterable[str]) -> list[TensorType]:
        """Types of the named tensors."""
        return [self.tensors[n].type for n in names]

    def multiplications(self) -> int:
        """Multiplications with weights that one frame takes."""
        return sum(n.op.multiplications(*self.types(n.inputs)) for n in self.nodes)

    def rebuilt(self, nodes: Iterable[Node], *, tensors: Mapping[str, Tensor] | None = None, **changes: object) -> Graph:
        """A copy with other nodes, sorted topologically, without tensors that nothing uses."""
        tensors = self.tensors if tensors is None else tensors
        ordered = _sorted(tuple(nodes), self.inputs)
        used = {*self.inputs, *(t for n in ordered for t in (*n.inputs, *n.outputs))}
        kept = {name: t for name, t in tensors.items() if name in used}
        return replace(self, nodes=ordered, tensors=kept, **changes)  # type: ignore[arg-type]


def _sorted(nodes: tuple[Node, ...], inputs: tuple[str, ...]) -> tuple[Node, ...]:
    """Nodes in topological order, otherwise as they came."""
    ready, done, waiting = set(inputs), [], list(nodes)
    while waiting:
        later = []
        for node in waiting:
            if all(t in ready for t in node.inputs):
                done.append(node)
                ready.update(node.outputs)
            else:
                later.append(node)
        if len(later) == len(waiting):
            missing = sorted({t for n in later for t in n.inputs if t not in ready})
            raise CompileError(f"the graph has a cycle or lacks tensors: {later[0].name} waits for {missing[0]}")
        waiting = later
    return tuple(done)


def verify(graph: Graph) -> None:
    """Raise CompileError unless every tensor has one writer, types agree with the operators, and origins resolve."""
    writers = Counter(t for n in graph.nodes for t in n.outputs)
    writers.update(graph.inputs)
    for name, count in writers.items():
        if count > 1:
            raise CompileError(f"tensor {name} has {count} writers")
    for name, count in Counter(n.name for n in graph.nodes).items():
        if count > 1:
            raise CompileError(f"{count} nodes are named {name}")
    known = set(graph.inputs)
    for node in graph.nodes:
        for t in node.inputs:
            if t not in known:
                raise CompileError(f"{node.name} reads {t} before it is written")
        inferred = infer(node, graph.types(node.inputs))
        for t, want in zip(node.outputs, inferred, strict=True):
            if graph.tensors[t].type != want:
                raise CompileError(f"{node.name} writes {want} to {t}, which is declared {graph.tensors[t].type}")
        known.update(node.outputs)
    for t in graph.outputs:
        if t not in known:
            raise CompileError(f"output {t} is never written")
    for name, origin in graph.origins.items():
        if origin.tensor not in known:
            raise CompileError(f"the file's tensor {name} is mapped to {origin.tensor}, which is not in the graph")


def infer(node: Node, types: list[TensorType]) -> tuple[TensorType, ...]:
    """Output types of ``node``; CompileError naming the node if its inputs do not fit."""
    try:
        return node.op.infer(*types)
    except ValueError as error:
        raise CompileError(f"{node.source or node.name} ({node.op.name}): {error}") from None
