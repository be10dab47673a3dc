"""``warploom zoo``: the software references of published operators and systems."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sw import steps
from sw.errors import WarploomError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Name = Annotated[str, typer.Argument(help="A system's name, as `warploom zoo list` prints it.")]


def add_verbs(app: typer.Typer, screen: Console, bars: Callable[[str], Any]) -> None:
    """Register ``zoo`` and its verbs with the command line."""
    zoo = typer.Typer(invoke_without_command=True)
    app.add_typer(zoo, name="zoo")

    @zoo.callback()
    def plain(context: typer.Context, as_json: Json = False) -> None:
        """Software references of published operators: list (also without a verb), show, demo, bench."""
        if context.invoked_subcommand is None:
            list_(as_json)
        elif as_json:
            raise WarploomError(f"--json goes behind the verb: warploom zoo {context.invoked_subcommand} --json")

    @zoo.command("list")
    def list_(as_json: Json = False) -> None:
        """All systems: paper, year, kind, variants, what maps to hardware."""
        records = [s.record() for s in steps.upward("zoo")().values()]
        if as_json:
            print(json.dumps(records))
            return
        table = Table("name", "title", "paper", "year", "kind", "variants", "lowers as is")
        for r in records:
            whole = sum(x["verdict"] == "as is" for x in r["lowering"])
            counts = str(len(r["variants"])), f"{whole} of {len(r['lowering'])}"
            table.add_row(r["name"], r["title"], r["paper"], str(r["year"]), r["kind"], *counts)
        screen.print(table)

    @zoo.command()
    def show(name: Name, as_json: Json = False) -> None:
        """One system: variants with their parameters, what is checked, what maps to hardware."""
        record = steps.zoo_show(name)
        if as_json:
            print(json.dumps(record))
            return
        screen.print(f"{record['title']} ({record['paper']}, {record['year']})", markup=False)
        table = Table("variant", "parameters")
        for row in record["parameters"]:
            table.add_row(row["variant"], "needs " + ", ".join(row["needs"]) if row["needs"] else f"{row['parameters']:,}")
        screen.print(table)
        screen.print("checked: " + "; ".join(record["checked"]), markup=False)
        for part in record["lowering"]:
            screen.print(f"on hardware, {part['part']}: {part['verdict']}. {part['note']}", markup=False)

    @zoo.command()
    def demo(name: Name, out: Annotated[Path, typer.Option(help="Folder of the plot.")] = Path("runs/zoo"), as_json: Json = False) -> None:
        """The paper's claim against its baseline, in minutes; non-zero exit if it does not show."""
        with bars(f"demo {name}") as progress:
            record = steps.zoo_demo(name, out, progress)
        if as_json:
            print(json.dumps(record))
        else:
            table = Table("figure", "ours", "baseline", "expected", "margin")
            for row in record["rows"]:
                ours, plain = (" ".join(f"{v:.4g}" for v in row[side]) for side in ("ours", "baseline"))
                table.add_row(row["name"], ours, plain, row["expected"], f"{row['margin']:.3g}")
            screen.print(table)
            screen.print(f"plot: {record['plot']}", markup=False)
        if record["failed"]:
            raise WarploomError(f"the claim does not show: {record['failed']}")

    @zoo.command()
    def bench(name: Name, as_json: Json = False) -> None:
        """Forward and backward beside the plain operator, in one run, as ratios."""
        record = steps.zoo_bench(name)
        if as_json:
            print(json.dumps(record))
            return
        table = Table("which", "parameters", "MACs", "bytes", "forward", "backward", title=record["case"])
        for row in record["rows"]:
            times = (f"{row[way] * 1e3:.2f} ms ({row[f'{way}_ratio']:.2f}×)" for way in ("forward", "backward"))
            table.add_row(row["which"], f"{row['parameters']:,}", f"{row['macs']:,}", f"{row['bytes']:,}", *times)
        screen.print(table)
