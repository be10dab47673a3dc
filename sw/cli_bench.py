"""``warploom bench``: speed of the backends, and of every hardware unit."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.table import Table

from sw import steps
from sw.bench.backends import bench as measure
from sw.bench.codenet import CLOCK_HZ, CONFIGS, bench_codenet
from sw.bench.codenet import KEYS as CODENET_KEYS
from sw.bench.estimates import bench_estimates
from sw.bench.presets import PRESETS, bench_presets, largest
from sw.bench.units import KEYS, bench_units
from sw.cli_synth import area_table
from sw.errors import WarploomError
from sw.estimate import Family
from sw.folding.search import RESOURCES
from sw.targets import DEVICES, target_of

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output; progress goes to standard error.")]
Rounds = Annotated[int, typer.Option(min=1, help="Measurements of each, taken in turn; the median counts.")]
#: Wraps a verb, so that Ctrl-C ends it well.
Wrap = Callable[[Callable[..., None]], Callable[..., None]]


def add_bench(app: typer.Typer, screen: Console, bars: Callable[[str], Any], say: Callable[[str], None], stoppable: Wrap) -> None:
    """Register ``bench`` and its verbs with the command line; ``stoppable`` wraps what Ctrl-C may end."""
    bench = typer.Typer(help="Speed of golden, PyTorch and simulated Verilog as ratios; of hardware units, operators, the golden model.")
    app.add_typer(bench, name="bench")

    @bench.callback(invoke_without_command=True)
    @stoppable
    def backends(
        context: typer.Context,
        run: Annotated[Path | None, typer.Option("--run", help="A run with a compiled design (default: a micro network).")] = None,
        images: Annotated[int, typer.Option(min=1, help="Images a round.")] = 4,
        as_json: Json = False,
    ) -> None:
        """Speed of golden, PyTorch and simulated Verilog in one run, as ratios."""
        if context.invoked_subcommand is not None:
            return
        record = measure(run, images=images)
        if as_json:
            print(json.dumps(record))
            return
        table = Table("backend", "images a second", "times golden")
        for row in record["backends"]:
            table.add_row(row["backend"], f"{row['images_per_second']:.2f}", f"{row['times_golden']:.3f}")
        screen.print(table)
        screen.print(f"{record['run']}, {record['images']} images, {record['cycles_per_second']:,.0f} cycles a second", markup=False)

    @bench.command()
    @stoppable
    def units(
        case: Annotated[str | None, typer.Option("--case", help="One case, or all of a group (the part before the slash).")] = None,
        as_json: Json = False,
    ) -> None:
        """Cycles, efficiency, area and frequency of hardware units; repeat the command to continue after an interruption."""
        with bars("bench units") as progress:
            records = bench_units(case, step=say, done=progress)
        if as_json:
            print(json.dumps(records))
            return
        table = Table(*(key.replace("_", " ") for key in KEYS))
        for record in records:
            table.add_row(*(_text(record[key]) for key in KEYS))
        screen.print(table)

    @bench.command()
    @stoppable
    def presets(
        device: Annotated[str, typer.Option(help=f"One of {', '.join(sorted(DEVICES))}.")],
        preset: Annotated[str | None, typer.Option(help=f"One of {', '.join(PRESETS)} (default: all).")] = None,
        codesign: Annotated[bool, typer.Option("--codesign", help="Besides, relatives: fewer offsets, pointwise first.")] = False,
        as_json: Json = False,
    ) -> None:
        """The largest of CoDeNet's presets that a device holds, from pixels to boxes, and its cycles a frame: estimates."""
        records = bench_presets(device, preset, codesign=codesign, step=say)
        if as_json:
            print(json.dumps(records))
            return
        table = Table("preset", "network", "multiplications", "fits", "cycles a frame", "frames a second", *RESOURCES, "limit")
        for r in records:
            shares = ("" if r["shares"] is None else f"{r['shares'][name]:.0%}" for name in RESOURCES)
            speed = (f"{r['cycles_per_frame']:,}", f"{r['fps']:.1f}") if r["cycles_per_frame"] else ("", "")
            table.add_row(r["preset"], r["network"], f"{r['multiplications']:,}", "yes" if r["fits"] else "no", *speed, *shares, r["limit"])
        screen.print(table)
        best, target = largest(records), target_of(device)
        found = "none fits" if best is None else f"{best['preset']} with {best['cycles_per_frame']:,} cycles a frame"
        screen.print(f"largest on {device} at an assumed {target.clock_hz / 1e6:g} MHz: {found}", markup=False)

    @bench.command()
    @stoppable
    def codenet(
        config: Annotated[str | None, typer.Option("--config", help=f"One of {', '.join(CONFIGS)} (default: all).")] = None,
        folder: Annotated[Path | None, typer.Option(help="Where models, designs and records lie (default: build/bench/codenet).")] = None,
        as_json: Json = False,
    ) -> None:
        """CoDeNet's configurations in the budget of one XCZU3EG: whole frames in Verilator against golden, area by Yosys; resumes."""
        records = bench_codenet(config, folder=folder, step=say)
        if as_json:
            print(json.dumps(records))
            return
        table = Table(*(key.replace("_", " ") for key in CODENET_KEYS if key != "estimated"), "fps at 250 MHz", "times CoDeNet")
        for record in records:
            fps = CLOCK_HZ / record["cycles_per_frame"]
            faster = f"{fps / CONFIGS[record['config']].published_fps:.1f}"
            table.add_row(*(_text(record[key]) for key in CODENET_KEYS if key != "estimated"), f"{fps:.0f}", faster)
        screen.print(table)

    @bench.command()
    @stoppable
    def deform(
        rounds: Rounds = 5,
        device: Annotated[str | None, typer.Option(help="cpu or cuda (default: cuda where there is one).")] = None,
        as_json: Json = False,
    ) -> None:
        """The deformable operator beside a plain depthwise convolution, torchvision's and Triton's where present."""
        with bars("bench deform") as progress:
            record = steps.upward("bench_deform")(rounds=rounds, device=device, progress=progress)
        if as_json:
            print(json.dumps(record))
            return
        table = Table("map", "pass", "operator", "milliseconds", "times plain")
        for row in record["rows"]:
            place = "x".join(map(str, row["map"]))
            table.add_row(place, row["pass"], row["operator"], f"{row['seconds'] * 1e3:.2f}", f"{row['times_plain']:.2f}")
        screen.print(table)
        for line in record["absent"]:
            say(f"not compared: {line}")

    @bench.command("golden")
    @stoppable
    def golden_(
        preset: Annotated[str, typer.Option(help="Which network, as `warploom models` lists them.")] = "b",
        batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 8,
        rounds: Rounds = 15,
        as_json: Json = False,
    ) -> None:
        """Images a second of the golden model beside PyTorch's float network, all cores, in one run."""
        with bars("bench golden") as progress:
            record = steps.upward("bench_golden")(preset=preset, batch=batch, rounds=rounds, progress=progress)
        if as_json:
            print(json.dumps(record))
            return
        title = f"{preset}, batch {batch}, {record['cores']} cores, BLAS {record['blas']}"
        table = Table("backend", "images a second", "times torch", "at best", "CPU ms an image", "times torch's CPU", title=title)
        for row in record["backends"]:
            speed = f"{row['images_per_second']:.2f}", f"{row['times_torch']:.2f}", f"{row['best_times_torch']:.2f}"
            spent = f"{row['cpu_seconds_per_image'] * 1e3:.2f}", f"{row['cpu_times_torch']:.2f}"
            table.add_row(row["backend"], *speed, *spent)
        screen.print(table)

    @bench.command()
    @stoppable
    def estimates(
        family: Annotated[str, typer.Option(help="xcup (UltraScale+) or ecp5.")] = "xcup",
        units: Annotated[bool, typer.Option("--units", help="A line for every unit, not only for every kind.")] = False,
        as_json: Json = False,
    ) -> None:
        """How far estimated areas are from Yosys', on units that the estimates were not fitted to."""
        if family not in get_args(Family):
            raise WarploomError(f"--family must be one of {', '.join(get_args(Family))}, not {family!r}")
        with bars(f"bench estimates {family}") as progress:
            record = bench_estimates(cast(Family, family), progress)
        if as_json:
            print(json.dumps(record))
            return
        screen.print(area_table(record, units))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
