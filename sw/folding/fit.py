"""Foldings for a device with all that lies around the units: a search, what its queues and gearboxes take, and the search again."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from hw.params import Multiplier
from sw import estimate
from sw.engine import EnginePlan
from sw.errors import CompileError
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
#: Where none so short fits beside the queues of the fastest design: it is made slower by these, one after the other.
SLOWER = (1.1, 1.2, 1.4, 1.8, 2.6, 4.2)


def built(graph: Graph, choice: Choice) -> Design:
    """The units and links of a choice, FIFOs sized."""
    design = lower(graph, choice.folds, choice.engine)
    design.links = size_fifos(design)
    return design


def fit(
    graph: Graph, device: Device, target: int | None, multiplier: Multiplier | None, pins: dict[str, Fold] | None,
    engine: EnginePlan | None, step: Callable[[str], None],
) -> Choice:  # fmt: skip
    """What a search finds that knows its queues and gearboxes: it looks twice, and more often while what it builds does not fit.

    The queues of a design that is too fast leave little room or none beside them, so if only a much slower one fits there, intervals that
    are longer and longer are aimed at until what is built fits. Errors as of :func:`sw.folding.search.search`.
    """
    like = Search(graph, room_of(device, target), multiplier or device.multiplier, {})
    find = partial(search, graph, device, multiplier=multiplier, like=like, step=step)
    step("choosing foldings, a first time")
    first = find(target=target, pins=pins, engine=engine)
    found, error = None, CompileError()
    try:
        found = _beside(graph, device, first, partial(find, target=target), pins, engine, step)
    except CompileError as caught:
        error = caught
    for factor in SLOWER if target is None and engine is None else ():
        aim = round(first.interval * factor)
        if found and found.interval <= aim and _fits(built(graph, found), device):
            break
        longer = fit(graph, device, aim, multiplier, pins, None, step)
        if _fits(built(graph, longer), device):
            return replace(longer, too_short=first.too_short)
    if found is None:
        raise error
    return found


def _beside(
    graph: Graph, device: Device, choice: Choice, find: Callable[..., Choice], pins: dict[str, Fold] | None, engine: EnginePlan | None,
    step: Callable[[str], None],
) -> Choice:  # fmt: skip
    """The choice that is found beside the queues and gearboxes of the one before, until it fits or comes again. Where the engine's tiles
    went to external memory, long queues do, too, and that plan stays."""
    seen: list[object] = []
    for look in range(1, LOOKS + 1):
        step("building units and sizing FIFOs")
        design = built(graph, choice)
        if engine is None and choice.engine and choice.engine.store == "memory":
            design, choice = _queued(graph, choice, design)
            engine = choice.engine
            pins = (pins or {}) | {n: f for n, f in choice.folds.items() if f.place == "memory"}
        elif look > 1 and (look == LOOKS or (choice.folds, choice.engine) in seen or _fits(design, device)):
            break
        seen.append((choice.folds, choice.engine))
        step("choosing foldings, beside queues and gearboxes")
        choice = find(pins=pins, engine=engine, around=estimate.around(design, device.family), near=choice.interval)
    return choice


def _fits(design: Design, device: Device) -> bool:
    """Whether the whole design is estimated to fit."""
    return bool(shares_of(sum(estimate.design(design, device.family).values(), Area()), device).max() <= 1)


def _queued(graph: Graph, choice: Choice, design: Design) -> tuple[Design, Choice]:
    """Long queues to memory, too, until none is left: what waits longer for one that went there may become long itself."""
    assert choice.engine is not None
    while (queues := spill.queues(design, design.links)) != choice.engine.queues:
        choice = replace(choice, engine=replace(choice.engine, queues=queues))
        design = built(graph, choice)
    return design, choice
