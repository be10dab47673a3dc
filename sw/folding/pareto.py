"""Area against frame rate: the smallest design that the search finds at ever longer intervals."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hw.params import Multiplier
from sw.errors import CompileError
from sw.estimate import Area
from sw.folding.fit import Fitting
from sw.folding.fold import floor_cycles
from sw.folding.search import RESOURCES, Choice, shares_of
from sw.graph import Graph
from sw.targets import Device

#: Points of the curve, and how much longer the last interval is than the first.
POINTS, SPAN = 9, 64


def pareto_points(
    graph: Graph, device: Device, *, clock_hz: float, multiplier: Multiplier | None = None, step: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """A record a point, the fastest first: cycles a frame, frames a second at ``clock_hz``, area of all units, queues and gearboxes,
    greatest share of the device and whether that fits, what limits. Points that no folding reaches are left out, and those that are not
    smaller than a faster one.
    """
    first, work = floor_cycles(graph), Fitting(graph, device, multiplier, step)
    found: list[dict[str, Any]] = []
    for k in range(POINTS):
        target = round(first * SPAN ** (k / (POINTS - 1)))
        step(f"{target:,} cycles a frame")
        try:
            choice = work.at(target)
        except CompileError:
            continue
        found.append(_record(choice, work.area(choice), device, clock_hz))
    return [p for k, p in enumerate(found) if all(p["share"] < q["share"] for q in found[:k])]


def _record(choice: Choice, area: Area, device: Device, clock_hz: float) -> dict[str, Any]:
    shares = shares_of(area, device)
    return {
        "cycles": choice.interval, "fps": clock_hz / choice.interval, **area.record(), "share": float(shares.max()),
        "fits": bool(shares.max() <= 1), "limit": f"{RESOURCES[int(shares.argmax())]} at {shares.max():.0%} of {device.name}",
        "engine_layers": len(choice.engine.places) if choice.engine else 0,
    }  # fmt: skip
