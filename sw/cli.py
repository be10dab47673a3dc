"""The command line: one verb a step. Every verb that prints figures takes --json."""
from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from hw.params import Multiplier
from sw import steps
from sw.cli_ablation import add_ablation
from sw.cli_bench import add_bench
from sw.cli_synth import add_synth
from sw.cli_train import add_training, parse_size
from sw.cli_zoo import add_verbs
from sw.demo import demo as whole_chain
from sw.detections import THRESHOLD, TOP_K, Boxes
from sw.errors import WarploomError

#: Two threads of OpenMP that spin while they wait starve everything else on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

app = typer.Typer(
    help="Quantized detectors with deformable convolutions, from PyTorch to an FPGA: "
    "data, train, quantize, compile, simulate, verify, detect, report. One verb a step; each reads what the one before wrote.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
stopped = threading.Event()
errors = Console(stderr=True)
#: Files and pipes have no width: tables are then as wide as they must be.
screen = Console(width=None if sys.stdout.isatty() else 200)

Run = Annotated[Path, typer.Option("--run", help="The run folder: every step reads from it and writes to it.")]
Data = Annotated[Path | None, typer.Option("--data", help="A data set in Pascal VOC layout (default: the one the run was trained on).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output; progress goes to standard error.")]
Split = Annotated[str, typer.Option(help="Which list of ImageSets/Main to use.")]


class Interrupted(Exception):
    """Ctrl-C, under a name that typer does not swallow."""


def stoppable(function: Callable[..., None]) -> Callable[..., None]:
    """``function``, whose KeyboardInterrupt keeps a name of its own."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            raise Interrupted from None

    return run


def verb(name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a verb of the command line."""
    return lambda function: app.command(name)(stoppable(function))


class BackendName(StrEnum):
    """Ways to run the network."""

    torch_float = "torch-float"
    torch_quantized = "torch-quantized"
    golden = "golden"
    rtl = "rtl"


@contextlib.contextmanager
def bars(title: str) -> Iterator[Any]:
    """A progress bar on standard error."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=errors, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def interrupt(number: int, frame: object) -> None:
    """Ctrl-C: Python may swallow the exception inside a destructor, so it is remembered and raised at the next step too."""
    stopped.set()
    raise KeyboardInterrupt


def say(text: str) -> None:
    """A line of progress."""
    if stopped.is_set():
        raise KeyboardInterrupt
    errors.print(f"[dim]· {text}[/dim]")


def show(record: dict[str, Any], as_json: bool, *keys: str) -> None:
    """The record as JSON, or the named figures as a table."""
    if as_json:
        print(json.dumps(record))
        return
    table = Table(show_header=False, box=None)
    for key in keys:
        table.add_row(key, _text(record.get(key)))
    screen.print(table)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@verb()
def data(
    kind: Annotated[str, typer.Argument(help="Which embedded set: digits.")] = "digits",
    out: Annotated[Path, typer.Option(help="Folder to write (Pascal VOC layout).")] = Path("data/digits"),
    hard: Annotated[bool, typer.Option("--hard", help="3 to 8 digits from 10 pixels, contrast down to 0.3.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    as_json: Json = False,
) -> None:
    """Write the embedded data set: handwritten digits on photographs, no download."""
    if kind != "digits":
        raise WarploomError(f"the only embedded set is 'digits', not {kind!r}; any VOC folder can be given to --data instead")
    with bars("draw scenes") as progress:
        record = steps.data(out, hard=hard, seed=seed, progress=progress)
    show(record, as_json, "data", "images")


@verb()
def models(
    layers: Annotated[str | None, typer.Option(help="Show the layers of this preset.")] = None,
    as_json: Json = False,
) -> None:
    """List the networks: parameters, multiply-accumulates, sizes."""
    rows = steps.models()
    if as_json:
        print(json.dumps(rows))
        return
    if layers is not None and layers not in [row["name"] for row in rows]:
        raise WarploomError(f"--layers must be one of {', '.join(row['name'] for row in rows)}, not {layers!r}")
    table = Table("preset", "input", "width", "stem", "params", "MACs", "thop MACs", "W4 bytes")
    for row in rows:
        size = "x".join(map(str, row["input"]))
        counts = (f"{row[key]:,}" for key in ("params", "macs", "thop_macs", "w4_bytes"))
        table.add_row(row["name"], size, str(row["width"]), row["stem"], *counts)
    screen.print(table)
    for layer in next((row["layers"] for row in rows if row["name"] == layers), []):
        weights = f"{layer['params']:>10,} {layer['macs']:>14,}"
        screen.print(f"{layer['name']:24} {layer['op']:12} {layer['output']!s:18} {weights}", markup=False)


@verb()
def evaluate(
    run: Run = Path("runs/default"),
    backend: Annotated[BackendName, typer.Option(help="What runs the network.")] = BackendName.torch_quantized,
    data: Data = None,
    split: Split = "test",
    images: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    flip_test: Annotated[bool, typer.Option("--flip-test", help="Two passes, averaged over the mirror image; labelled as such.")] = False,
    coco: Annotated[bool, typer.Option("--coco", help="COCO's figures too (AP over IoU 0.5 to 0.95, by size), without NMS.")] = False,
    as_json: Json = False,
) -> None:
    """AP50 of one backend on a data set (area metric, single pass; the 11-point figure beside it), without and with NMS."""
    record = steps.evaluate(run, backend=backend.value, data=data, split=split, images=images, flip_test=flip_test, coco=coco, bars=bars)
    keys = ("ap50", "ap50_nms", "ap50_11", "ap50_11_nms", "metric", *(("coco",) if coco else ()))
    show(record, as_json, "backend", "split", "images", *keys)


def _show_pareto(points: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(points))
        return
    table = Table("cycles a frame", "frames a second", "LUT", "FF", "multipliers", "BRAM36", "greatest share", "fits", "limit")
    for p in points:
        sizes = (f"{p[k]:,}" for k in ("lut", "ff", "dsp", "bram36"))
        table.add_row(f"{p['cycles']:,}", f"{p['fps']:.1f}", *sizes, f"{p['share']:.0%}", "yes" if p["fits"] else "no", p["limit"])
    screen.print(table)


def _boxes(detections: int | None, threshold: float | None) -> Boxes | None:
    """What was asked for; None: whatever the network is fit for."""
    if detections == 0 and threshold is not None:
        raise WarploomError("--threshold is about boxes, and --detections 0 leaves maps: give one")
    if detections in (None, 0) and threshold is None:
        return None
    return Boxes(top_k=detections or TOP_K, threshold=THRESHOLD if threshold is None else threshold)


@verb("compile")
def compile_(
    model: Annotated[Path | None, typer.Argument(help="A QONNX file (default: the run's model.onnx).")] = None,
    run: Run = Path("runs/default"),
    cycles: Annotated[int | None, typer.Option(min=1, help="Most cycles a frame of any unit (default: as few as folding can do).")] = None,
    folding: Annotated[Path | None, typer.Option(help="JSON file that pins nodes to lanes.")] = None,
    device: Annotated[str | None, typer.Option(help="Search foldings for this device: as fast as fits, or --cycles, or --fps.")] = None,
    fps: Annotated[float | None, typer.Option(min=0.001, help="Frames a second at --clock: sets --cycles.")] = None,
    clock: Annotated[float, typer.Option(min=1, help="Assumed clock in Hz.")] = 250e6,
    multiplier: Annotated[str | None, typer.Option(help=f"Kind of multipliers: {', '.join(get_args(Multiplier))}.")] = None,
    axi: Annotated[bool, typer.Option("--axi", help="Write accelerator_axi.v too: the accelerator behind AXI.")] = False,
    detections: Annotated[int | None, typer.Option(min=0, help="Boxes a frame, decoded on the chip; 0: leave the head maps.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Least score of a box; a register may change it.")] = None,
    prove: Annotated[int, typer.Option(min=0, help="Random images on which each pass must leave golden's answer as it was.")] = 0,
    fastest: Annotated[bool, typer.Option("--max", help="As fast as fits --device: what happens without --cycles and --fps.")] = False,
    pareto: Annotated[bool, typer.Option("--pareto", help="Area against frame rate on --device instead: table and plot.")] = False,
    as_json: Json = False,
) -> None:
    """Compile QONNX to a streaming accelerator in Verilog: run/compiled."""
    if (fps is not None) + (cycles is not None) + fastest > 1:
        raise WarploomError("--fps, --cycles and --max say how fast it shall be: give one")
    if (fastest or pareto) and device is None:
        raise WarploomError("--max and --pareto are about a device: give --device")
    if pareto and (fastest or folding or axi or prove or cycles is not None or fps is not None):
        raise WarploomError("--pareto only plans, at intervals of its own: leave out --max, --cycles, --fps, --folding, --axi and --prove")
    if multiplier not in (None, *get_args(Multiplier)):
        raise WarploomError(f"--multiplier must be one of {', '.join(get_args(Multiplier))}, not {multiplier!r}")
    outputs: dict[str, Any] = {"maps": detections == 0, "boxes": _boxes(detections, threshold)}
    if pareto:
        assert device is not None
        points = steps.pareto(run, device=device, clock_hz=clock, model=model, multiplier=multiplier, step=say, **outputs)
        _show_pareto(points, as_json)
        return
    target = cycles if fps is None else int(clock / fps)
    options: dict[str, Any] = {"target_cycles": target, "folding": folding, "device": device, "multiplier": multiplier, "axi": axi}
    options |= {"prove": prove, **outputs}
    record = steps.compile(run, model=model, step=say, **options)
    if "choice" in record:
        say(record["choice"]["limit"])
    for note in record["notes"]:
        say(note)
    summary = {**record, "folder": str(run / "compiled"), "nodes": len(record["nodes"])}
    show(record if as_json else summary, as_json, "folder", "nodes", "multiplications", "multipliers", "interval_cycles")


@verb()
def simulate(
    run: Run = Path("runs/default"),
    data: Data = None,
    split: Split = "test",
    images: Annotated[int, typer.Option(min=1, help="How many images, back to back.")] = 10,
    stall: Annotated[float, typer.Option(min=0.0, max=0.99, help="Chance per cycle that source and sinks wait.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the stalls.")] = 1,
    as_json: Json = False,
) -> None:
    """Simulate every cycle of the accelerator in Verilator on images of the data set."""
    record = steps.simulate(run, data=data, split=split, images=images, stall=stall, seed=seed, bars=bars)
    show(record, as_json, "images", "latency_cycles", "interval_cycles", "planned_interval_cycles", "multipliers_used", "cycles_per_second")


@verb()
def verify(
    run: Run = Path("runs/default"),
    data: Data = None,
    split: Split = "test",
    images: Annotated[int, typer.Option(min=1, help="How many images to compare.")] = 10,
    exercise: Annotated[int, typer.Option(min=0, help="Images for the second set of weights, which reaches every offset (0: none).")] = 4,
    torch: Annotated[bool, typer.Option(help="Compare with frozen PyTorch too (off for a foreign model).")] = True,
    as_json: Json = False,
) -> None:
    """Compare PyTorch, golden and Verilog at every tensor; non-zero exit on any difference."""
    record = steps.verify(run, data=data, split=split, images=images, exercise=exercise, torch=torch, step=say, bars=bars)
    if as_json:
        print(json.dumps(record))
    else:
        _print_verification(record)
    if record["mismatches"]:
        raise typer.Exit(1)


def _print_verification(record: dict[str, Any]) -> None:
    for part, title in ((record, "trained weights"), (record.get("exercise"), "weights made to reach every offset")):
        if part is None:
            continue
        table = Table("node", "tensor", "compared", "shape", "values", "mismatches", title=f"{title}, {part['images']} images")
        for row in part["tensors"]:
            shape = "x".join(map(str, row["shape"]))
            pair = f"{row['left']} = {row['right']}"
            table.add_row(row["node"], row["tensor"], pair, shape, f"{row['values']:,}", str(row["mismatches"]))
        screen.print(table)
        for gone in part["removed"]:
            screen.print(f"removed: {gone['tensor']}: {gone['reason']}", markup=False)
        for layer, found in part["offsets"].items():
            counts = " ".join(f"{h['code']}:{h['count']}" for h in found["histogram"])
            ends = "both ends included" if found["proves"] else f"range {found['low']}..{found['high']} not exercised"
            screen.print(f"offsets of {layer}: {found['distinct']} distinct ({ends}), code:count {counts}", markup=False)
    show(record, False, "images", "tensors_compared", "tensors_removed", "values_compared", "mismatches")
    if record["first_mismatch"]:
        screen.print("first mismatch:", record["first_mismatch"])


@verb()
def detect(
    run: Run = Path("runs/default"),
    data: Data = None,
    split: Split = "test",
    images: Annotated[int | None, typer.Option(min=1, help="Only the first so many of the simulated images.")] = None,
    as_json: Json = False,
) -> None:
    """Draw the Verilog's boxes beside ground truth: run/detect/*.png."""
    record = steps.detect(run, data=data, split=split, images=images)
    show({**record, "folder": str(run / "detect")}, as_json, "folder", "images")


@verb()
def report(run: Run = Path("runs/default"), as_json: Json = False) -> None:
    """Write one page with all figures of a run: report.md, report.html, report.json."""
    record = steps.report(run)
    show({**record, "report": str(run / "report.html")}, as_json, "report")


@verb()
def demo(
    run: Run = Path("runs/demo"),
    data: Annotated[Path | None, typer.Option("--data", help="A VOC folder instead of the embedded digits.")] = None,
    trunk: Annotated[Path | None, typer.Option(help="ShuffleNetV2 x0.5 state dict to start from, with --data.")] = None,
    size: Annotated[str | None, typer.Option(help="Input HEIGHTxWIDTH, with --data (default: fits the images).")] = None,
    images: Annotated[int, typer.Option(min=1, help="Test images to simulate and verify.")] = 10,
    as_json: Json = False,
) -> None:
    """The whole chain in one go; repeat the command to continue after an interruption."""
    record = whole_chain(run, data=data, trunk=trunk, size=parse_size(size), images=images, say=say, bars=bars)
    keys = ("images_verified", "tensors_compared", "values_compared", "mismatches", "interval_cycles", "minutes", "report")
    flat = {f"AP50 {b}": v for b, v in record["ap50"].items()} | {"quantization_loss": record.get("quantization_loss")}
    show(record if as_json else {**flat, **record}, as_json, *flat, *keys)
    for failure in record["failed"]:
        errors.print(f"falls short: {failure}", markup=False)
    if record["failed"]:
        raise typer.Exit(1)


add_bench(app, screen, bars, say, stoppable)
add_training(verb, show, bars)
add_ablation(verb, screen, say)
add_synth(verb, screen, bars, say)
add_verbs(app, screen, bars)


def main() -> None:
    """Entry point: messages instead of tracebacks (WARPLOOM_DEBUG=1 shows them)."""
    signal.signal(signal.SIGINT, interrupt)
    try:
        app()
    except Interrupted:
        errors.print("interrupted; earlier results are whole, and the same command goes on from there", markup=False)
        sys.exit(130)
    except (WarploomError, ValueError, OSError, RuntimeError) as error:
        if os.environ.get("WARPLOOM_DEBUG"):
            raise
        errors.print(f"error: {error}", markup=False, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
