"""Cycles, area and frequency of the hardware units: one record for each case of ``cases``."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sw import steps
from sw.bench.cases import cases
from sw.bench.unit_case import UnitCase
from sw.errors import WarploomError
from sw.synth import synthesize

#: Keys of a record, in order.
KEYS = (
    "case", "unit", "interval_cycles", "latency_cycles", "mults_per_cycle", "efficiency", "ratio_to_plain",
    "lut", "ff", "dsp", "bram36", "lut_levels", "fmax_mhz_ecp5",
)  # fmt: skip


def chosen(known: Sequence[str], name: str | None) -> list[str]:
    """Names equal to ``name`` or in its group (``name/...``); all if it is None. WarploomError if there are none."""
    found = [case for case in known if name is None or case == name or case.startswith(f"{name}/")]
    if not found:
        raise WarploomError(f"--case must be one of {', '.join(known)} or the part before a slash, not {name!r}")
    return found


def bench_units(name: str | None = None, *, step: Callable[[str], None] = lambda _: None, done: Any = None) -> list[dict[str, Any]]:
    """Measure the chosen cases. ``step`` is told what begins, ``done(n, total)`` how far it is; all is cached by content.

    Cycles come from simulating back-to-back frames while every value is compared with golden; area and LUT levels are Yosys' for
    xcup, the frequency is nextpnr's for an LFE5U-85F of grade 6 (null where the unit is larger than the device).
    """
    known = cases()
    names = chosen(list(known), name)
    records = []
    for k, case in enumerate(names):
        if done is not None:
            done(k, len(names))
        records.append(_record(known[case], known, step))
    if done is not None:
        done(len(names), len(names))
    return records


def _cycles(case: UnitCase, step: Callable[[str], None]) -> Any:
    step(f"{case.name}: cycles")

    def make() -> Any:
        unit = case.make()
        return unit if case.memory_latency is None else steps.upward("in_memory")(unit, latency=case.memory_latency)

    return steps.upward("measure")(case.name, make, case.model, case.frames, case.interval)


def _record(case: UnitCase, known: dict[str, UnitCase], step: Callable[[str], None]) -> dict[str, Any]:
    cycles = _cycles(case, step)
    on_ecp5 = (case.make_ecp5 or case.make)() if case.fits_ecp5 else None
    found = synthesize(case.make(), on_ecp5, step=lambda text: step(f"{case.name}: {text}"))
    plain = _cycles(known[case.plain], step).interval if case.plain else None
    values = (
        case.name, case.unit, cycles.interval, cycles.latency, case.multipliers,
        case.multiplications / (cycles.interval * case.multipliers) if case.multipliers else None,
        cycles.interval / plain if plain else None,
        *found.xcup.record().values(), found.path.levels, found.fmax_ecp5,
    )  # fmt: skip
    return dict(zip(KEYS, values, strict=True))
