"""Foldings for a device with all that lies around the units: a search, what its queues and gearboxes take, and the search again."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from hw.params import Multiplier
from hw.units.base import Unit
from sw import estimate
from sw.engine import EnginePlan
from sw.errors import CompileError
from sw.estimate import Area
from sw.folding import spill
from sw.folding.fold import Fold
from sw.folding.schedule import size_fifos
from sw.folding.search import Choice, Search, search, shares_of
from sw.graph import Graph
from sw.lower import Design, lower
from sw.targets import Device

#: Times that a search is tried with the queues and gearboxes of the last one.
LOOKS = 5
#: Where none so short fits beside the queues of the fastest design: it is made slower by these, one after the other.
SLOWER = (1.1, 1.2, 1.4, 1.8, 2.6, 4.2)


def built(graph: Graph, choice: Choice, known: dict[object, Unit] | None = None) -> Design:
    """The units and links of a choice, FIFOs sized; ``known``: see :func:`sw.lower.lower`."""
    design = lower(graph, choice.folds, choice.engine, known)
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
    work = Fitting(graph, device, multiplier, step)
    first = work.first(target, pins, engine)
    found, error = None, CompileError()
    try:
        found = work.beside(first, target, pins, engine)
    except CompileError as caught:
        error = caught
    for factor in SLOWER if target is None and engine is None else ():
        aim = round(first.interval * factor)
        if found and found.interval <= aim and work.fits(found):
            break
        longer = work.at(aim, pins)
        if work.fits(longer):
            return replace(longer, too_short=first.too_short)
    if found is None:
        raise error
    return found


class Fitting:
    """Searches of one graph for one device: areas, units and designs that they have in common are made once."""

    def __init__(self, graph: Graph, device: Device, multiplier: Multiplier | None, step: Callable[[str], None]) -> None:
        self.graph, self.device, self.step = graph, device, step
        like = Search(graph, device, multiplier or device.multiplier, {})
        self.search = partial(search, graph, device, multiplier=multiplier, like=like, step=step)
        self.units: dict[object, Unit] = {}
        self.designs: dict[str, Design] = {}

    def first(self, target: int | None, pins: dict[str, Fold] | None, engine: EnginePlan | None) -> Choice:
        """What is found without queues."""
        self.step("choosing foldings, a first time")
        return self.search(target=target, pins=pins, engine=engine)

    def built(self, choice: Choice) -> Design:
        """The design of a choice, to look at (:func:`built`)."""
        key = repr((choice.folds, choice.engine))
        if key not in self.designs:
            self.step("building units and sizing FIFOs")
            self.designs[key] = built(self.graph, choice, self.units)
        return self.designs[key]

    def area(self, choice: Choice) -> Area:
        """What the whole design takes, queues and gearboxes too."""
        return sum(estimate.design(self.built(choice), self.device.family).values(), Area())

    def fits(self, choice: Choice) -> bool:
        """Whether the whole design is estimated to fit."""
        return bool(shares_of(self.area(choice), self.device).max() <= 1)

    def at(self, target: int, pins: dict[str, Fold] | None = None, engine: EnginePlan | None = None) -> Choice:
        """The smallest that is found for an interval, queues and gearboxes known."""
        return self.beside(self.first(target, pins, engine), target, pins, engine)

    def beside(self, choice: Choice, target: int | None, pins: dict[str, Fold] | None, engine: EnginePlan | None) -> Choice:
        """The choice that is found beside the queues and gearboxes of the one before, until it fits or comes again. Where the engine's
        tiles went to external memory, long queues do, too, and that plan stays."""
        seen: list[object] = []
        for look in range(1, LOOKS + 1):
            if engine is None and choice.engine and choice.engine.store == "memory":
                choice = self.queued(choice)
                engine = choice.engine
                pins = (pins or {}) | {n: f for n, f in choice.folds.items() if f.place == "memory"}
            elif look > 1 and (look == LOOKS or (choice.folds, choice.engine) in seen or self.fits(choice)):
                break
            seen.append((choice.folds, choice.engine))
            around = estimate.around(self.built(choice), self.device.family)
            self.step("choosing foldings, beside queues and gearboxes")
            choice = self.search(target=target, pins=pins, engine=engine, around=around, near=choice.interval)
        return choice

    def queued(self, choice: Choice) -> Choice:
        """Long queues to memory, too, until none is left: what waits longer for one that went there may become long itself."""
        assert choice.engine is not None
        design = self.built(choice)
        while (queues := spill.queues(design, design.links)) != choice.engine.queues:
            choice = replace(choice, engine=replace(choice.engine, queues=queues))
            design = self.built(choice)
        return choice
