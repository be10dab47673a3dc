"""The steps of the chain as functions, named like the verbs of the command line.

Each reads what the step before it left in the run folder and writes its own result there. This is the one place whose names point
upward, to models and sim, and they are loaded only when used: the compiler itself needs no PyTorch.
"""
from __future__ import annotations

import contextlib
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sw import compiler
from sw.errors import WarploomError
from sw.files import new_folder, whole_file
from sw.folding.pareto import pareto_points
from sw.report import write_report
from sw.runtime.accelerator import Accelerator, GoldenAccelerator, Progress
from sw.targets import target_of
from sw.verify import verify as compare

#: Name -> where it is. The only names in sw that point upward.
UPWARD = {
    "write_digits": "models.data.digits:write_digits",
    "train": "models.train:train",
    "recipe": "models.recipes:recipe",
    "sensitivity": "models.sensitivity:sensitivity",
    "quantize": "models.quantize:quantize",
    "torch-float": "models.backends:torch_float",
    "torch-quantized": "models.backends:torch_quantized",
    "accelerated": "models.backends:accelerated",
    "stored": "models.backends:stored",
    "find_split": "models.data.voc:find_split",
    "fitting_size": "models.backends:fitting_size",
    "first_samples": "models.backends:first_samples",
    "evaluate": "models.evaluate:evaluate",
    "draw": "models.evaluate:draw_detections",
    "presets": "models.detectors.codenet:PRESETS",
    "describe": "models.counting:describe",
    "ablation": "models.ablation:ablation",
    "bench_deform": "models.bench:bench_deform",
    "bench_golden": "models.bench:bench_golden",
    "zoo": "models.zoo:systems",
    "zoo_system": "models.zoo:system",
    "zoo_claim": "models.zoo.base:ClaimFailed",
    "zoo_bench": "models.zoo.bench:bench",
    "zoo_plot": "models.zoo.bench:plot",
    "zoo_sizes": "models.zoo.counting:variant_sizes",
    "frozen": "models.frozen:FrozenNetwork",
    "exercise": "models.exercise:exercise_offsets",
    "export": "models.export:export_qonnx",
    "untrained": "models.untrained:export_untrained",
    "plot_pareto": "models.plots:plot_pareto",
    "verilator": "sim.accelerator:VerilatorAccelerator",
    "in_memory": "sim.memory:InMemory",
    "measure": "sim.measure:measure",
    "recording": "sim.accelerator:Recording",
    "stalls": "sim.accelerator:Stalls",
}
#: Images that are simulated unless told otherwise.
SIMULATED = 10
BACKENDS = ("torch-float", "torch-quantized", "golden", "rtl")
Quiet = contextlib.nullcontext(None)
#: Opens a progress bar: bars(title) is a context that gives a Progress or None.
Bars = Callable[[str], contextlib.AbstractContextManager[Progress | None]]


def upward(name: str) -> Any:
    """The function or class behind a name of UPWARD."""
    module, _, attribute = UPWARD[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def no_bars(title: str) -> contextlib.AbstractContextManager[Progress | None]:
    """No progress bars."""
    return Quiet


def data(out: Path, *, hard: bool = False, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Write the embedded data set, digits on photographs, in VOC layout to ``out``."""
    upward("write_digits")(out, hard=hard, seed=seed, progress=progress)
    splits = {p.stem: len(p.read_text().split()) for p in sorted((out / "ImageSets" / "Main").glob("*.txt"))}
    return {"data": str(out), "hard": hard, "seed": seed, "images": splits}


def models() -> list[dict[str, Any]]:
    """Every preset with its parameters, multiply-accumulates (true, and as the authors' counter has them) and layers."""
    return [upward("describe")(name, config) for name, config in upward("presets").items()]


def train(run: Path, *, recipe: str | None = None, **options: Any) -> dict[str, Any]:
    """Train a float detector; the options are those of ``models.train.train``, which override those of ``recipe``."""
    given: dict[str, Any] = upward("recipe")(recipe).train if recipe else {}
    result: dict[str, Any] = upward("train")(run, **{**given, **options})
    return result


def quantize(run: Path, *, data: Path | None = None, recipe: str | None = None, **options: Any) -> dict[str, Any]:
    """Quantize it and export QONNX; the options are those of ``models.quantize.quantize``, which override those of ``recipe``."""
    given: dict[str, Any] = upward("recipe")(recipe).quantize if recipe else {}
    result: dict[str, Any] = upward("quantize")(run, data=data or data_of(run), **{**given, **options})
    return result


def sensitivity(run: Path, *, data: Path | None = None, **options: Any) -> dict[str, Any]:
    """AP50 lost by each layer's quantization alone; the options are those of ``models.sensitivity.sensitivity``."""
    result: dict[str, Any] = upward("sensitivity")(run, data=data or data_of(run), **options)
    return result


def ablation(out: Path, **options: Any) -> dict[str, Any]:
    """Train, quantize and evaluate every deformable variant; the options are those of ``models.ablation.ablation``."""
    record: dict[str, Any] = upward("ablation")(out, **options)
    return record


def data_of(run: Path) -> Path:
    """The data set that the run was trained on."""
    try:
        return Path(json.loads((run / "config.json").read_text())["train"]["data"])
    except (OSError, ValueError, KeyError, TypeError):
        raise WarploomError(f"{run}: holds no trained run (config.json); run `warploom train` first, or give --data") from None


def save(run: Path, name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Write a step's record to the run folder, whole or not at all."""
    with whole_file(run / f"{name}.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    return record


def compile(run: Path, *, model: Path | None = None, step: compiler.Step = lambda _: None, **options: Any) -> dict[str, Any]:
    """Compile ``model`` (default: the run's model.onnx) into run/compiled."""
    return compiler.compile(model or run / "model.onnx", run / "compiled", step=step, **options)


def pareto(
    run: Path, *, device: str, clock_hz: float, model: Path | None = None, multiplier: Any = None, boxes: Any = None, maps: bool = False,
    step: compiler.Step = lambda _: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Area against frame rate for ``device``: run/pareto-<device>.json and .png."""
    target = target_of(device)
    graph, _ = compiler.decoded(compiler.load_graph(model or run / "model.onnx"), boxes, maps)
    points = pareto_points(graph, target, clock_hz=clock_hz, multiplier=multiplier, step=step)
    budget = {"lut": target.luts, "ff": target.flip_flops, "dsp": target.multipliers, "bram36": target.bram36}
    with whole_file(run / f"pareto-{device}.json") as file:
        file.write_text(json.dumps({"device": device, "clock_hz": clock_hz, "budget": budget, "points": points}, indent=1))
    with whole_file(run / f"pareto-{device}.png") as file:
        upward("plot_pareto")(points, budget, f"{device}, {clock_hz / 1e6:g} MHz assumed", file)
    return points


def evaluate(
    run: Path,
    *,
    backend: str = "torch-quantized",
    data: Path | None = None,
    split: str = "test",
    images: int | None = None,
    flip_test: bool = False,
    coco: bool = False,
    bars: Bars = no_bars,
) -> dict[str, Any]:
    """AP50 of one backend on the first ``images`` of a split (None: all; for ``rtl`` those that were simulated, or ten), without and
    with NMS; ``flip_test``: two passes, averaged over the mirror image (not from a simulation); ``coco``: COCO's figures too.

    ``golden`` needs no compiled design, the quantized model is enough. ``rtl`` uses the boxes (or head maps) that ``simulate`` wrote where
    they are of these images, and simulates otherwise.
    """
    data = data or data_of(run)
    made, images = _rtl(run, data, split, images) if backend == "rtl" else (_backend(run, backend), images)
    with bars(f"evaluate {backend}") as progress:
        record = upward("evaluate")(made, data, split, images, flip_test=flip_test, coco=coco, progress=progress)
    return save(run, f"evaluate-{backend}" + ("-flip" if flip_test else ""), record)


def _backend(run: Path, name: str) -> Any:
    if name in ("torch-float", "torch-quantized"):
        return upward(name)(run)
    if name == "golden":
        compiled = run / "compiled" if (run / "compiled" / "model.onnx").exists() else run  # the same file, before it is compiled
        return upward("accelerated")("golden", GoldenAccelerator(compiler.load_graph(compiled / "model.onnx")))
    raise WarploomError(f"backend must be one of {', '.join(BACKENDS)}, not {name!r}")


def _rtl(run: Path, data: Path, split: str, images: int | None) -> tuple[Any, int]:
    """The Verilog as a backend, and how many images: what was simulated if it covers them, else the simulator itself."""
    live = upward("accelerated")("rtl", upward("verilator")(run / "compiled"))
    ready = _simulation(run)
    count = images or (len(ready["ids"]) if ready else SIMULATED)
    _, pictures = upward("first_samples")(data, split, live.classes, live.size, count)
    if ready is None or not {p.tobytes() for p in pictures} <= {p.tobytes() for p in ready["images"]}:
        return live, len(pictures)
    graph = compiler.load_model(run / "compiled")
    outputs = {t: ready[f"out{k}"] for k, t in enumerate(graph.outputs)}
    return upward("stored")("rtl", graph, ready["images"], outputs), len(pictures)


def _simulation(run: Path) -> dict[str, Any] | None:
    """What ``simulate`` left, if it is of the design as it is now."""
    design = compiler.load_design(run / "compiled")
    try:
        with np.load(run / "simulation.npz", allow_pickle=False) as file:
            found = dict(file)
    except (OSError, ValueError):
        return None
    return found if str(found["key"]) == design["key"] else None


def simulate(
    run: Path,
    *,
    data: Path | None = None,
    split: str = "test",
    images: int = SIMULATED,
    stall: float = 0.0,
    seed: int = 1,
    bars: Bars = no_bars,
) -> dict[str, Any]:
    """Run the first images of a split through the Verilog, back to back; ``stall``: chance per cycle that an edge waits.

    Every stream between units is recorded in run/simulation, from which ``verify`` reads.
    """
    stalls = upward("stalls")(seed=seed, p_valid=1 - stall, p_ready=1 - stall)
    accelerator = upward("verilator")(run / "compiled", stalls)
    backend = upward("accelerated")("rtl", accelerator)
    samples, pictures = upward("first_samples")(data or data_of(run), split, backend.classes, backend.size, images)
    with bars("build simulator"):
        built = time.monotonic()
        _ = accelerator.program
        built = time.monotonic() - built
    started = time.monotonic()
    with bars("simulate") as progress, new_folder(run / "simulation") as folder:
        result = accelerator.record(pictures, folder, progress=progress)
    seconds = time.monotonic() - started
    design = compiler.load_design(run / "compiled")
    outputs = {f"out{k}": result.outputs[t] for k, t in enumerate(accelerator.graph.outputs)}
    with whole_file(run / "simulation.npz") as path:
        np.savez_compressed(path, key=design["key"], images=pictures, ids=np.array([s.id for s in samples]), **outputs)
    start, end = result.cycles[0]
    record = {
        "split": split,
        "images": len(samples),
        "ids": [s.id for s in samples],
        "stall": stall,
        "latency_cycles": end - start,
        "interval_cycles": result.interval,
        "planned_interval_cycles": design["interval_cycles"],
        "multipliers_used": design["multiplications"] / (design["multipliers"] * result.interval) if result.interval else None,
        "simulated_cycles": result.cycles[-1][1],
        "build_seconds": round(built, 1),
        "seconds": round(seconds, 1),
        "cycles_per_second": round(result.cycles[-1][1] / seconds),
    }
    return save(run, "simulate", record)


def verify(
    run: Path,
    *,
    data: Path | None = None,
    split: str = "test",
    images: int = 10,
    exercise: int = 4,
    torch: bool = True,
    step: compiler.Step = lambda _: None,
    bars: Bars = no_bars,
) -> dict[str, Any]:
    """Compare PyTorch, golden and Verilog at every tensor, on ``images`` of a split and, where their offsets prove nothing,
    on a second set of weights made to reach every offset, on ``exercise`` images (0: leave that out).

    The Verilog's tensors come from what ``simulate`` recorded, if that was of these images and of the Verilog as it is now;
    otherwise it is simulated here."""
    accelerator = upward("recording")(run / "compiled", run / "simulation")
    frozen = upward("frozen").load(run / "frozen.pt") if torch else None
    backend = upward("accelerated")("rtl", accelerator)
    _, pictures = upward("first_samples")(data or data_of(run), split, backend.classes, backend.size, max(images, exercise))
    if not accelerator.holds(pictures[:images]):
        accelerator = upward("verilator")(run / "compiled")
    record = _compare(accelerator, frozen, pictures[:images], bars) | {"split": split}
    if frozen is not None and exercise and not record["offsets_prove"]:
        step("making weights that reach every offset")
        other = upward("exercise")(frozen, pictures[:exercise])
        folder = run / "exercise"
        folder.mkdir(parents=True, exist_ok=True)
        upward("export")(other, folder / "model.onnx")
        compiler.compile(folder / "model.onnx", folder / "compiled", step=step, **compiler.outputs_of(run / "compiled"))
        again = _compare(upward("verilator")(folder / "compiled"), other, pictures[:exercise], bars)
        record = _joined(record, again)
    return save(run, "verify", record)


def _compare(accelerator: Accelerator, frozen: Any, pictures: Any, bars: Bars) -> dict[str, Any]:
    tensors = None if frozen is None else frozen.tensors(pictures)
    with bars("verify") as progress:
        return compare(accelerator.graph, pictures, tensors, accelerator, progress).record()


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Totals of both comparisons; the second one stays whole under ``exercise``."""
    totals = {k: first[k] + second[k] for k in ("values_compared", "mismatches")}
    return first | totals | {"first_mismatch": first["first_mismatch"] or second["first_mismatch"], "exercise": second}


def detect(run: Path, *, data: Path | None = None, split: str = "test", images: int | None = None) -> dict[str, Any]:
    """Draw the boxes that the Verilog decoded (or its head maps give) beside ground truth, as PNG files in run/detect."""
    data = data or data_of(run)
    backend, count = _rtl(run, data, split, images)
    with new_folder(run / "detect") as folder:
        drawn = upward("draw")(backend, data, split, count, folder)
        for record in drawn:
            record["picture"] = str(run / "detect" / Path(record["picture"]).name)
    return save(run, "detect", {"backend": "rtl", "split": split, "images": len(drawn), "pictures": drawn})


def zoo_show(name: str) -> dict[str, Any]:
    """One system of the zoo, with the parameters of every variant."""
    found = upward("zoo_system")(name)
    return {**found.record(), "parameters": upward("zoo_sizes")(found)}


def zoo_demo(name: str, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run a system's demonstration and plot it; ``failed`` says which claim does not show, if any."""
    found = upward("zoo_system")(name)
    result = found.run_demo(progress)
    failed = ""
    try:
        result.check()
    except upward("zoo_claim") as error:
        failed = str(error)
    rows = [{k: getattr(r, k) for k in ("name", "ours", "baseline", "expected", "margin")} for r in result.rows]
    return {"name": name, "rows": rows, "failed": failed, "plot": str(upward("zoo_plot")(result, found.title, out / f"{name}.png"))}


def zoo_bench(name: str) -> dict[str, Any]:
    """Time a system's operator beside the plain one that it replaces."""
    record: dict[str, Any] = upward("zoo_bench")(upward("zoo_system")(name))
    return record


def synth(run: Path, *, device: str = "xczu3eg", progress: Progress | None = None, step: compiler.Step = lambda _: None) -> dict[str, Any]:
    """Yosys' area of every unit of run/compiled beside its estimate, or for ``lfe5u-85f`` the whole accelerator placed and routed.

    Imported late: only this step needs the synthesis tools."""
    from sw.synth import chip, network

    target, folder = target_of(device), run / "compiled"
    design = compiler.load_design(folder)
    facts = {"device": target.name, "key": design["key"], "interval_cycles": design["interval_cycles"]}
    if target.placed:
        record = chip.place(compiler.load_built(folder), target, run / f"synth-{device}", step=step)
    else:
        step("building units")
        record = network.synthesize(compiler.load_built(folder), "xcup", progress)
    shares = network.shares(record["total"]["measured"], target)
    return save(run, f"synth-{device}", facts | {"shares": shares} | record)


def report(run: Path) -> dict[str, Any]:
    """Write run/report.md, run/report.html and run/report.json from what the steps have left."""
    return write_report(run)

