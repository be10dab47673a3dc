"""What every accelerator, golden, simulated or real, offers to a program."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sw import golden
from sw.fast import FastGolden
from sw.graph import Graph
from sw.ops import Array

#: Called with (frames done, frames in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """Integers of one run: ``outputs`` by graph tensor in the graph's order, ``tensors`` those asked for, each (N, H, W, C).

    ``cycles``: for hardware, the cycle of the first input and of the last output beat of every frame; else empty. ``slowest``: for
    hardware, the mean interval of frames in steady state (sim/accelerator.py says which frames count, and where).
    """

    outputs: dict[str, Array]
    tensors: dict[str, Array]
    cycles: list[tuple[int, int]] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def interval(self) -> float:
        """Steady interval of back-to-back frames in cycles (the mean over all but the first); 0 if unknown."""
        ends = [end for _, end in self.cycles]
        return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0


class Accelerator(ABC):
    """Runs batches of raw images (N, H, W, C) of integers."""

    graph: Graph

    @abstractmethod
    def run(self, images: Array, keep: Collection[str] = (), progress: Progress | None = None) -> Result:
        """Run ``images``; ``keep`` names further tensors to return. ValueError if the images do not fit the input."""


class GoldenAccelerator(Accelerator):
    """The golden model behind the accelerator's interface: all cores, and its fast form unless inner tensors are asked for."""

    def __init__(self, graph: Graph, batch: int = 8) -> None:
        self.graph = graph
        self.batch = batch

    @cached_property
    def _fast(self) -> FastGolden:
        return FastGolden(self.graph)

    def run(self, images: Array, keep: Collection[str] = (), progress: Progress | None = None) -> Result:
        parts = []
        for start in range(0, len(images), self.batch):
            some = images[start : start + self.batch]
            parts.append(golden.run(self.graph, some, keep=set(keep)) if keep else self._fast.run(some))
            if progress:
                progress(min(start + self.batch, len(images)), len(images))
        joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        return Result(outputs={t: joined[t] for t in self.graph.outputs}, tensors={t: joined[t] for t in keep})
