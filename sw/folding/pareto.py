"""Area against frame rate: the smallest design that the search finds at ever longer intervals."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hw.params import Multiplier
from sw import estimate
from sw.errors import CompileError
from sw.folding.fold import floor_cycles
from sw.folding.schedule import size_fifos
from sw.folding.search import Choice, Search, search
from sw.frontends import qonnx
from sw.lower import lower
from sw.passes import run_all
from sw.targets import Device

#: Points of the curve, and how much longer the last interval is than the first.
POINTS, SPAN = 9, 64


def pareto_points(
    model: Path, device: Device, *, clock_hz: float, multiplier: Multiplier | None = None, step: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """A record a point, the fastest first: cycles a frame, frames a second at ``clock_hz``, area, greatest share of the device and whether
    that fits, what limits. The area of queues and gearboxes is that of the slowest design everywhere. Points that no folding reaches are
    left out, and those that are not smaller than a faster one. CompileError if the model cannot be lowered.
    """
    graph, _ = run_all(qonnx.load(model))
    first = floor_cycles(graph)
    step("queues and gearboxes")
    like = Search(graph, device, multiplier or device.multiplier, {})
    slow = search(graph, device, target=first * SPAN, multiplier=multiplier, like=like)
    design = lower(graph, slow.folds, slow.engine)
    design.links = size_fifos(design)
    around = estimate.around(design)
    found: list[dict[str, Any]] = []
    for k in range(POINTS):
        target = round(first * SPAN ** (k / (POINTS - 1)))
        step(f"{target:,} cycles a frame")
        try:
            choice = search(graph, device, target=target, multiplier=multiplier, around=around, like=like)
        except CompileError:
            continue
        found.append(_record(choice, clock_hz))
    return [p for k, p in enumerate(found) if all(p["share"] < q["share"] for q in found[:k])]


def _record(choice: Choice, clock_hz: float) -> dict[str, Any]:
    share = max(choice.shares.values())
    return {
        "cycles": choice.interval, "fps": clock_hz / choice.interval, **choice.area.record(), "share": share, "fits": share <= 1,
        "limit": choice.limit, "engine_layers": len(choice.engine.places) if choice.engine else 0,
    }  # fmt: skip
