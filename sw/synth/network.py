# amaranth: UnusedElaboratable=no
"""Area of every unit of a compiled design by Yosys, beside its estimate: ``warploom synth --device xczu3eg``.

Each unit, FIFO, fork and gearbox is a module that stays by itself and is flattened, so the sum leaves out what an optimization across units
might save. Results are cached by the Verilog: equal units once, and an interrupted run goes on where it was.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hw.lib.fifo import Fifo
from sw import estimate
from sw.estimate import Area, Family
from sw.lower import Design
from sw.modules import modules_of
from sw.synth import batch
from sw.synth.workers import Progress
from sw.targets import Device

#: Keys of an area.
RESOURCES = ("lut", "ff", "dsp", "bram36")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of a design: ``kind`` is its operator's name, or fifo, fork, regroup."""

    name: str
    kind: str
    estimate: Area
    unit: Any


def parts(design: Design, family: Family) -> list[Part]:
    """Every unit and FIFO of a design, with its estimate for ``family``."""
    areas = estimate.design(design, family)
    found = [Part(name=n, kind=kind_of(design, n), estimate=areas[n], unit=u) for n, u in design.units.items()]
    queues = [(k.name, Fifo(k.source.lanes, k.depth)) for k in design.links if k.depth]
    return found + [Part(name=name, kind="fifo", estimate=areas[name], unit=fifo) for name, fifo in queues]


def kind_of(design: Design, unit: str) -> str:
    """The operator of a unit, or what it is if it serves no node."""
    return design.nodes[unit].op.name if unit in design.nodes else type(design.units[unit]).__name__.lower()


def measured(found: list[Part], family: Family, progress: Progress | None = None) -> list[Area]:
    """The area of each part: of the very modules that accelerator.v is assembled from."""
    modules = modules_of({part.name: part.unit for part in found}, primitives=True).of
    return batch.areas([modules[part.name] for part in found], family, progress)


def errors(estimated: Area, found: Area) -> dict[str, float | None]:
    """(estimate - measured) / measured of each resource; None where nothing was measured."""
    pairs = zip(estimated.record().items(), found.record().values(), strict=True)
    return {name: (value - real) / real if real else None for (name, value), real in pairs}


def entry(estimated: Iterable[Area], found: Iterable[Area], **more: Any) -> dict[str, Any]:
    """A record of one or several parts: sums of estimates and measurements, and their error."""
    total, real = sum(estimated, Area()), sum(found, Area())
    return {**more, "estimate": total.record(), "measured": real.record(), "error": errors(total, real)}


def compare(found: list[Part], areas: list[Area]) -> dict[str, Any]:
    """Estimates beside measurements: each part, each kind of part, all together."""
    pairs = list(zip(found, areas, strict=True))
    kinds = sorted({part.kind for part in found})
    of_kind = {kind: [(p, a) for p, a in pairs if p.kind == kind] for kind in kinds}
    return {
        "units": [entry([p.estimate], [a], name=p.name, kind=p.kind) for p, a in pairs],
        "kinds": [entry((p.estimate for p, _ in g), (a for _, a in g), kind=kind, parts=len(g)) for kind, g in of_kind.items()],
        "total": entry((p.estimate for p in found), areas, parts=len(found)),
    }


def shares(area: dict[str, float], device: Device) -> dict[str, float]:
    """Which part of a device's resources an area takes."""
    have = {"lut": device.luts, "ff": device.flip_flops, "dsp": device.multipliers, "bram36": device.bram36}
    return {name: area[name] / have[name] for name in have}


def synthesize(design: Design, family: Family, progress: Progress | None = None) -> dict[str, Any]:
    """Measure and compare every part of a design."""
    found = parts(design, family)
    return compare(found, measured(found, family, progress))
