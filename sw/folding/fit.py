"""Foldings for a device with all that lies around the units: a search, what its queues and gearboxes take, and the search again."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hw.params import Multiplier
from sw import estimate
from sw.engine import EnginePlan
from sw.estimate import Area
from sw.folding import spill
from sw.folding.fold import Fold
from sw.folding.schedule import size_fifos
from sw.folding.search import Choice, Search, room_of, search, shares_of
from sw.graph import Graph
from sw.lower import Design, lower
from sw.targets import Device

#: Times that a search is tried with the queues and gearboxes of the last one.
LOOKS = 5


def built(graph: Graph, choice: Choice) -> Design:
    """The units and links of a choice, FIFOs sized."""
    design = lower(graph, choice.folds, choice.engine)
    design.links = size_fifos(design)
    return design


def fit(
    graph: Graph, device: Device, target: int | None, multiplier: Multiplier | None, pins: dict[str, Fold] | None,
    engine: EnginePlan | None, step: Callable[[str], None],
) -> Choice:  # fmt: skip
    """What a search finds that knows its queues and gearboxes: it looks twice, and more often if the engine's tiles had to go to external
    memory and the design still does not fit. Errors as of :func:`sw.folding.search.search`."""
    around, near = Area(), 0
    like = Search(graph, room_of(device, target), multiplier or device.multiplier, {})
    for look in range(LOOKS):
        step(f"choosing foldings, {'beside queues and gearboxes' if look else 'a first time'}")
        choice = search(
            graph, device, target=target, multiplier=multiplier, pins=pins, engine=engine, around=around, near=near, like=like, step=step
        )
        near = choice.interval
        if look and (choice.engine is None or choice.engine.store == "chip"):
            break
        step("building units and sizing FIFOs")
        design = built(graph, choice)
        if engine is None and choice.engine and choice.engine.store == "memory":
            design, choice = _queued(graph, choice, design)
            engine = choice.engine
            pins = (pins or {}) | {n: f for n, f in choice.folds.items() if f.place == "memory"}
        elif look and shares_of(sum(estimate.design(design).values(), Area()), device).max() <= 1:
            break
        around = estimate.around(design)
    return choice


def _queued(graph: Graph, choice: Choice, design: Design) -> tuple[Design, Choice]:
    """Long queues to memory, too, until none is left: what waits longer for one that went there may become long itself."""
    assert choice.engine is not None
    while (queues := spill.queues(design, design.links)) != choice.engine.queues:
        choice = replace(choice, engine=replace(choice.engine, queues=queues))
        design = built(graph, choice)
    return design, choice
