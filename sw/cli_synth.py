"""``warploom synth``: a compiled design through the open synthesis tools."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sw import steps
from sw.synth.network import RESOURCES
from sw.targets import DEVICES

#: ``verb(name)`` registers a function.
Verb = Callable[..., Callable[[Callable[..., None]], Callable[..., None]]]


def add_synth(verb: Verb, screen: Console, bars: Callable[[str], Any], say: Callable[[str], None]) -> None:
    """Register the verb."""

    @verb()
    def synth(
        run: Annotated[Path, typer.Option("--run", help="The run folder, with a compiled design.")] = Path("runs/default"),
        device: Annotated[str, typer.Option(help=f"One of {', '.join(sorted(DEVICES))}.")] = "xczu3eg",
        units: Annotated[bool, typer.Option("--units", help="A line for every unit, not only for every kind.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
    ) -> None:
        """Yosys' area of every unit beside its estimate; for lfe5u-85f place, route and pack the whole accelerator."""
        with bars(f"synth {device}") as progress:
            record = steps.synth(run, device=device, progress=progress, step=say)
        if as_json:
            print(json.dumps(record))
            return
        screen.print(area_table(record, units))
        shares = ", ".join(f"{name} {share:.0%}" for name, share in record["shares"].items())
        screen.print(f"{record['interval_cycles']:,} cycles a frame; of {record['device']}: {shares}", markup=False)
        if "mhz" in record:
            clock = f"{record['mhz']:.1f} MHz after place and route, {1e6 * record['mhz'] / record['interval_cycles']:.1f} frames a second"
            screen.print(f"{clock}; bitstream of {record['bitstream_bytes']:,} bytes in {run / f'synth-{device}'}", markup=False)


def area_table(record: dict[str, Any], units: bool) -> Table:
    """Measured areas and the errors of their estimates: a line for each kind of part (and unit), one for all."""
    table = Table("part", "number", *(f"{name} {what}" for name in RESOURCES for what in ("measured", "error")))
    for row in [*(record.get("units", []) if units else []), *record.get("kinds", []), {"kind": "all", **record["total"]}]:
        cells = (text for name in RESOURCES for text in (f"{row['measured'][name]:,}", _error(row, name)))
        table.add_row(row.get("name", row["kind"]), str(row.get("parts", "")), *cells)
    return table


def _error(row: dict[str, Any], name: str) -> str:
    """The estimate's error in percent; where nothing was measured, what was estimated."""
    error = row["error"][name]
    return f"{error:+.0%}" if error is not None else f"({row['estimate'][name]:,})" if row["estimate"][name] else ""
