"""What every system of the zoo provides: variants, what was checked, what maps to hardware, a demonstration and a benchmark."""
from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from torch import Tensor, nn

#: Called with (steps done, steps in all).
Progress = Callable[[int, int], None]


class ClaimFailed(Exception):
    """A demonstration in which the paper's claim does not show."""


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """One part of a system and whether Warploom's integer units can take it."""

    part: str
    verdict: Literal["as is", "after a change", "no"]
    note: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of a demonstration, one number a seed for ours and for the baseline.

    The claim: the mean of ``ours`` is ``expected`` ("higher" or "lower") than the baseline's by at least ``margin`` (a negative
    margin allows a loss of that size).
    """

    name: str
    ours: list[float]
    baseline: list[float]
    expected: Literal["higher", "lower"]
    margin: float

    @property
    def gain(self) -> float:
        """How far ours is ahead in the expected direction."""
        ahead = fmean(self.ours) - fmean(self.baseline)
        return ahead if self.expected == "higher" else -ahead


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The table of a demonstration, and curves for its plot."""

    rows: tuple[Row, ...]
    curves: dict[str, list[float]] = field(default_factory=dict)

    def check(self) -> None:
        """ClaimFailed unless every row has at least three seeds and shows its claim."""
        for row in self.rows:
            if len(row.ours) < 3 or len(row.baseline) < 3:
                raise ClaimFailed(f"{row.name}: {len(row.ours)} and {len(row.baseline)} seeds; at least three are needed")
            if not row.gain >= row.margin:  # NaN fails too
                raise ClaimFailed(f"{row.name}: ahead by {row.gain:.4g} ({row.expected} is better), claimed {row.margin:.4g}")


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchCase:
    """An operator beside the plain one that it replaces, on the same inputs."""

    name: str
    ours: nn.Module
    baseline: nn.Module
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class System:
    """A published operator, network or method; ``demo`` is "module:function"."""

    name: str
    title: str
    paper: str
    year: int
    kind: Literal["operator", "network", "method"]
    variants: Mapping[str, Callable[..., nn.Module]]
    checked: tuple[str, ...]
    lowering: tuple[Lowering, ...]
    demo: str
    bench: Callable[[], BenchCase]

    def run_demo(self, progress: Progress | None = None) -> DemoResult:
        """Run the demonstration; the caller checks its claim."""
        module, _, function = self.demo.partition(":")
        result: DemoResult = getattr(importlib.import_module(module), function)(progress)
        return result

    def record(self) -> dict[str, Any]:
        """What ``warploom zoo`` lists, ready for JSON."""
        lowering = [{"part": x.part, "verdict": x.verdict, "note": x.note} for x in self.lowering]
        facts = {"name": self.name, "title": self.title, "paper": self.paper, "year": self.year, "kind": self.kind}
        return facts | {"variants": list(self.variants), "checked": list(self.checked), "lowering": lowering}
