"""Foldings for a device: the fastest that fits its resources, or the smallest that is fast enough.

For a given interval every node has options (lanes, place of the weights), each with an area. Which are best together is a multiple-choice
knapsack with four resources; prices on the resources separate it into one choice a node (Lagrangian relaxation; Everett 1963).
Prices follow the resource that is scarcest. At any prices the cheapest options' total price is a lower bound on the greatest share of
a resource that any choice needs, so a bound above 1 proves that an interval does not fit: the search reports how far the
interval it found is from one that provably does not.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from hw.params import Multiplier, RomKind
from sw import estimate
from sw.engine import ENGINE, EnginePlan
from sw.engine import cycles as engine_cycles
from sw.errors import CompileError
from sw.estimate import Area
from sw.estimate.parts import constants_bits
from sw.folding.fold import Fold, checked, cycles, floor_cycles, options, products, shared_folds, tighter
from sw.folding.share import arrangements
from sw.graph import Graph, Node
from sw.ops import AveragePool, Concat, Conv, Decode, Deform, Depthwise, MaxPool, Split
from sw.ops.base import weight_range
from sw.targets import Device

Shares = npt.NDArray[np.float64]
RESOURCES = ("LUTs", "flip-flops", "multipliers", "block RAM")
#: Rounds of prices at an interval, and how strongly prices follow the shares.
ROUNDS, STRENGTH = 16, 6.0
NOTHING = Area()
#: Rounds that each of several arrangements gets before the best one is looked at closely.
SCREEN = 5
#: Price of a multiplier that a fold of a layer has, beside the prices of what it takes (which add up to 1 for a whole device): of two
#: folds that take about the same, the one with fewer, which are busier.
LANE = 1e-4
#: Share above which tiles of the shared engine are moved to external memory: nothing else fits.
FULL = 1.0
#: The search ends when feasible and infeasible interval are this close.
CLOSE = 1.03
#: Where it first looks about an interval that is expected, as a factor.
NEAR = 1.1


@dataclass(frozen=True, kw_only=True)
class Choice:
    """``folds`` by node, their ``interval`` and estimated ``area``; the share of each resource; the longest interval that
    the prices prove too short (0: none found); what limits; the plan of the shared engine, if there is one."""

    folds: dict[str, Fold]
    interval: int
    area: Area
    shares: dict[str, float]
    too_short: int
    limit: str
    engine: EnginePlan | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may be chosen for a node: folds, cycles a frame of each (n,), its price as multipliers (n,), and what each takes of the
    device (n, 4); ``alike``: which folds have the same lanes."""

    folds: list[Fold]
    times: npt.NDArray[np.int64]
    lanes: npt.NDArray[np.float64]
    shares: Shares
    alike: dict[Fold, list[int]]


def shares_of(area: Area, device: Device) -> Shares:
    """What an area takes of a device, resource by resource."""
    used = (area.lut, area.ff, area.dsp, area.bram36)
    return np.array(used) / (device.luts, device.flip_flops, device.multipliers, device.bram36)


@cache
def _bare(fold: Fold) -> Fold:
    """Its lanes alone: kinds of multipliers, memories and line buffers left out."""
    return replace(fold, memory="auto", multiplier="inferred", lines="ring")


class Search:
    """The options of a graph's nodes and their areas, computed once each (``like``: another search of the same graph, family and
    multiplier whose they are), beside an engine."""

    def __init__(
        self, graph: Graph, device: Device, multiplier: Multiplier, pins: Mapping[str, Fold], engine: EnginePlan | None = None,
        like: Search | None = None, around: Area = NOTHING,
    ) -> None:  # fmt: skip
        self.graph, self.device, self.multiplier, self.engine = graph, device, multiplier, engine
        self.shared = shared_folds(graph, engine)
        self.pins = {n: f for n, f in pins.items() if n not in self.shared}
        self.around = around
        self.engine_area = around + (estimate.engine(graph, engine, device.family) if engine and engine.places else Area())
        self.engine_cycles = engine_cycles(graph, engine) if engine and engine.places else 0
        if unknown := sorted(set(pins) - {n.name for n in graph.nodes}):
            raise CompileError(f"the folding file pins {', '.join(unknown)}, which the network does not have")
        for node in graph.nodes:
            if node.name in self.pins:
                checked(node, graph.types(node.inputs), graph.tensors[node.outputs[0]].type, self.pins[node.name])
        #: Name of each node's producer (None: an input) and channels that it reads.
        self.before: list[tuple[str | None, int]] = like.before if like else [_before(graph, n) for n in graph.nodes]
        self.area: Callable[[int, Fold], Area] = like.area if like else cache(self._area)
        #: Whether line buffers may be tight: where tiles had to go to memory nothing else is left.
        self.tight = engine is not None and engine.store == "memory"
        self.tables: dict[object, Callable[[int, int], Options]] = like.tables if like else {}
        self.tried = self.tables.setdefault((device, self.tight), self._twins())

    def _twins(self) -> Callable[[int, int], Options]:
        """:meth:`_tried`, once for all convolutions that differ only in their weights' values."""
        first: dict[object, int] = {}
        same = [first.setdefault(self._sizes(k), k) for k in range(len(self.graph.nodes))]
        tried = cache(self._tried)
        return lambda index, arriving: tried(same[index], arriving)

    def _sizes(self, index: int) -> object:
        """What a node's options and their areas depend on."""
        node = self.graph.nodes[index]
        if not isinstance(node.op, Conv):
            return index
        types = self.graph.types([*node.inputs, *node.outputs])
        bias = constants_bits(int(node.op.bias.min()), int(node.op.bias.max()))
        return (*types, node.op.window, weight_range(node.op), bias)

    def _area(self, index: int, fold: Fold) -> Area:
        node = self.graph.nodes[index]
        out = self.graph.tensors[node.outputs[0]].type
        return estimate.area(node, self.graph.types(node.inputs), out, fold, self.device.family)

    def wide(self, node: Node) -> bool:
        """Whether a node's options do not depend on the beats that come."""
        return isinstance(node.op, Conv | Decode | Depthwise | Deform | MaxPool | AveragePool | Split | Concat)

    def _tried(self, index: int, arriving: int) -> Options:
        """A node's options with their cycles and what each takes of the device; narrow ones first, so that ties go to them."""
        node = self.graph.nodes[index]
        types = self.graph.types(node.inputs)
        found = options(node, types, self.graph.tensors[node.outputs[0]].type, arriving, self.multiplier)
        if isinstance(node.op, Conv):
            kinds: tuple[RomKind, ...] = ("lut", "block")
            found = [replace(f, memory=memory) for f in found for memory in kinds]
        if self.tight:
            found = list(dict.fromkeys([*found, *tighter(node, found)]))
        found.sort(key=lambda f: (f.lanes_out, f.lanes_in))
        times = np.array([cycles(node, types, f) for f in found])
        lanes = np.array([LANE * products(node, f) for f in found])
        shares = np.array([shares_of(self.area(index, f), self.device) for f in found])
        alike: dict[Fold, list[int]] = {}
        for k, fold in enumerate(found):
            alike.setdefault(_bare(fold), []).append(k)
        return Options(folds=found, times=times, lanes=lanes, shares=shares, alike=alike)

    def at(self, target: int, prices: Shares) -> tuple[dict[str, Fold] | None, float]:
        """The cheapest option of every node (None if one has none), and the price of all without that of multipliers, at the least."""
        result: dict[str, Fold] = dict(self.shared)
        least = float(prices @ shares_of(self.engine_area, self.device))
        for index, node in enumerate(self.graph.nodes):
            if node.name in self.shared:
                continue
            if node.name in self.pins:
                result[node.name] = self.pins[node.name]
                least += float(prices @ shares_of(self.area(index, self.pins[node.name]), self.device))
                continue
            before, channels = self.before[index]
            arriving = min(result[before].lanes_out, channels) if before is not None else channels
            tried = self.tried(index, 0 if self.wide(node) else arriving)
            prices_of = np.where(tried.times <= target, tried.shares @ prices, np.inf)
            if (cheapest := float(prices_of.min())) == np.inf:
                return None, np.inf
            least += cheapest
            result[node.name] = tried.folds[int((prices_of + tried.lanes).argmin())]
        return result, least

    def total(self, folds: Mapping[str, Fold]) -> Area:
        """Area of all nodes, of the engine, and of what is ``around``."""
        result = self.engine_area
        for index, node in enumerate(self.graph.nodes):
            if node.name not in self.shared:
                result += self.area(index, folds[node.name])
        return result

    def best(self, target: int, rounds: int = ROUNDS) -> tuple[dict[str, Fold] | None, float, float]:
        """(folds with the least greatest share, that share, a lower bound on it) at an interval."""
        prices = np.full(4, 0.25)
        found: tuple[dict[str, Fold] | None, float] = (None, math.inf)
        bound = 0.0
        for _ in range(rounds):
            folds, least = self.at(target, prices)
            if folds is None:
                return None, math.inf, math.inf
            shares = shares_of(self.total(folds), self.device)
            bound, most = max(bound, least), float(shares.max())
            if most < found[1]:
                found = (folds, most)
            weights = prices * np.exp(STRENGTH * (shares / most - 1))
            prices = 0.5 * prices + 0.5 * weights / weights.sum()
        return found[0], found[1], bound

    def improved(self, folds: dict[str, Fold], target: int) -> tuple[dict[str, Fold], float]:
        """Folds changed one by one, lanes kept, as long as the greatest share falls; and that share.

        Prices change all equal nodes at once; this is what lets some of them have their weights in LUTs and others in block RAM.
        """
        folds, shares = dict(folds), shares_of(self.total(folds), self.device)
        while True:
            best: tuple[float, str, Fold, Shares] | None = None
            for index, node in enumerate(self.graph.nodes):
                if node.name in self.shared or node.name in self.pins or not self.wide(node):
                    continue
                now, tried = folds[node.name], self.tried(index, 0)
                rest = shares - shares_of(self.area(index, now), self.device)
                for k in tried.alike[_bare(now)]:
                    if tried.folds[k] != now and tried.times[k] <= target:
                        most = float((rest + tried.shares[k]).max())
                        if most < (best[0] if best else float(shares.max())) - 1e-9:
                            best = (most, node.name, tried.folds[k], rest + tried.shares[k])
            if best is None:
                return folds, float(shares.max())
            _, name, folds[name], shares = best


def _before(graph: Graph, node: Node) -> tuple[str | None, int]:
    producer = graph.producer(node.inputs[0])
    return producer.name if producer else None, graph.tensors[node.inputs[0]].type.channels


def search(
    graph: Graph,
    device: Device,
    *,
    target: int | None = None,
    multiplier: Multiplier | None = None,
    pins: Mapping[str, Fold] | None = None,
    engine: EnginePlan | None = None,
    around: Area = NOTHING,
    near: int = 0,
    like: Search | None = None,
    step: Callable[[str], None] = lambda _: None,
) -> Choice:
    """The shortest interval that fits ``device`` (``target`` None), or the smallest area at ``target`` cycles a frame.

    Where the device has external memory, a shared engine for the layers with most weights and deformable maps in memory are tried
    beside everything on chip (sw/folding/share.py); ``engine`` pins a plan instead. ``around``: area that queues, gearboxes
    and forks will take. ``near``: an interval near which the shortest is expected (0: anywhere); ``like``: a search of the same graph,
    device and multipliers, whose areas are known.

    CompileError if nothing fits, naming the resource that is short. Areas are estimates (sw/estimate), so the fastest leaves some of the
    device free (``fill``); what a target takes is for the caller to judge.
    """
    base = Search(graph, room_of(device, target), multiplier or device.multiplier, pins or {}, engine, like, around)
    if target is not None:
        found = _best(base, target, free=engine is None)
        if found.folds is None:
            raise CompileError(f"no folding takes at most {target} cycles a frame; the network needs {floor_cycles(graph, base.shared)}")
        return _choice(found.state, found.folds, 0, device)
    low, high = max(floor_cycles(graph, base.shared), base.engine_cycles), max(_slowest(graph), base.engine_cycles)
    best = _best(base, high, free=engine is None)
    if best.folds is None or best.share > 1:
        raise CompileError(f"{device.name} is too small even at {high} cycles a frame: {_short(best, device)}")
    high = max(_times(best.state, best.folds).values())
    too_short, reach = 0, NEAR
    while high > low * CLOSE:
        middle = round(math.sqrt(low * high))
        if near:
            middle, reach = round(min(max(middle, near / reach), near * reach)), reach * reach
        if not low < middle < high:
            middle = round(math.sqrt(low * high))
        step(f"folding: {middle:,} cycles a frame?")
        found = _best(base, middle, free=engine is None)
        if found.folds is not None and found.share <= 1:
            best, high = found, middle
        else:
            low = middle
            too_short = max(too_short, middle if found.bound > 1 else 0)
    assert best.folds is not None
    return _choice(best.state, best.folds, too_short, device)


def room_of(device: Device, target: int | None) -> Device:
    """What a search may use of a device."""
    return device if target is not None else device.filled


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best folds of the best arrangement at an interval, their greatest share, and a lower bound on any choice's."""

    state: Search
    folds: dict[str, Fold] | None
    share: float
    bound: float


def _best(base: Search, target: int, *, free: bool) -> Found:
    """The best of all arrangements; ``free``: an engine, and maps in memory, may be tried; its tiles in memory only if need be."""
    found = _best_of([base, *(_states(base, target, "chip") if free else ())], target)
    if free and found.share > FULL:
        spilled = list(_states(base, target, "memory"))
        found = min(found, _best_of(spilled, target), key=lambda f: f.share) if spilled else found
    return found


def _states(base: Search, target: int, store: Literal["chip", "memory"]) -> Iterator[Search]:
    """A search for each arrangement that uses external memory."""
    like = base
    for way in arrangements(base.graph, base.device, target, base.multiplier, base.pins, store):
        like = Search(base.graph, base.device, base.multiplier, base.pins | dict(way.pins), way.engine, like, base.around)
        yield like


def _best_of(states: Sequence[Search], target: int) -> Found:
    """The best folds of the best of several arrangements."""
    looked = [(state, state.best(target, ROUNDS if len(states) == 1 else SCREEN)) for state in states]
    state, _ = min(looked, key=lambda pair: pair[1][1])
    folds, share, _ = state.best(target)
    if folds is not None:
        folds, share = state.improved(folds, target)
    return Found(state=state, folds=folds, share=share, bound=min(bound for _, (_, _, bound) in looked))


def _short(found: Found, device: Device) -> str:
    """What there is too little of."""
    if found.folds is None:
        return "everything"
    area = found.state.total(found.folds)
    worst = int(shares_of(area, device.filled).argmax())
    return f"{RESOURCES[worst]} at {shares_of(area, device)[worst]:.0%}, the most is {device.fill[worst]:.0%}"


def _slowest(graph: Graph) -> int:
    """The interval with one lane everywhere."""
    return max(cycles(n, graph.types(n.inputs), Fold(lanes_in=1, lanes_out=1)) for n in graph.nodes)


def _times(state: Search, folds: Mapping[str, Fold]) -> dict[str, int]:
    """Cycles a frame of every unit."""
    nodes = [n for n in state.graph.nodes if n.name not in state.shared]
    times = {n.name: cycles(n, state.graph.types(n.inputs), folds[n.name]) for n in nodes}
    return times | ({ENGINE: state.engine_cycles} if state.shared else {})


def _choice(state: Search, folds: dict[str, Fold], too_short: int, device: Device) -> Choice:
    times = _times(state, folds)
    area = state.total(folds)
    shares = dict(zip(RESOURCES, shares_of(area, device).tolist(), strict=True))
    scarce = RESOURCES[int(shares_of(area, state.device).argmax())]
    slowest = max(times, key=lambda k: times[k])
    limit = f"{scarce} at {shares[scarce]:.0%} of {device.name}; the slowest unit is {slowest} with {times[slowest]:,} cycles"
    return Choice(
        folds=folds, interval=max(times.values()), area=area, shares=shares, too_short=too_short, limit=limit,
        engine=state.engine,
    )  # fmt: skip
