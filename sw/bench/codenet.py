"""CoDeNet's configurations whole, in the budget of its own part: cycles from Verilator, area from Yosys, every tensor compared with
golden."""
from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sw import steps
from sw.cache import ROOT, digest
from sw.compiler import build_design, compile, load_design
from sw.errors import WarploomError
from sw.files import new_folder, whole_file
from sw.synth.network import synthesize
from sw.verify import verify

DEVICE, CLOCK_HZ = "xczu3eg", 250e6
#: Keys of a record, in order.
KEYS = (
    "config", "cycles_per_frame", "latency_cycles", "multiplier_utilization", "lut", "ff", "dsp", "bram36", "estimated",
    "frames_checked", "values_compared", "mismatches",
)  # fmt: skip
#: What simulates a whole accelerator, in sim/.
HARNESS = ("accelerator.py", "beats.py", "harness.py", "verilator/main.cpp", "verilator/memory.h")
Step = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A preset, most cycles a frame, the interval that is planned for (less, where a shared unit's turns need some room), frames to
    simulate back to back (as many as leave several intervals between half of them and the last that leaves while others enter), and
    CoDeNet's frames a second."""

    preset: str
    cycles: int
    target: int
    frames: int
    published_fps: float


CONFIGS = {
    c.preset: c
    for c in (
        Config(preset="a", cycles=400_000, target=394_000, frames=30, published_fps=32.2),
        Config(preset="b", cycles=400_000, target=394_000, frames=30, published_fps=26.9),
        Config(preset="c", cycles=1_600_000, target=1_590_000, frames=24, published_fps=9.3),
        Config(preset="d", cycles=7_500_000, target=7_500_000, frames=16, published_fps=5.2),
        Config(preset="e", cycles=7_500_000, target=7_500_000, frames=16, published_fps=4.6),
    )
}


def bench_codenet(name: str | None = None, *, folder: Path | None = None, step: Step = lambda _: None) -> list[dict[str, Any]]:
    """A record for each configuration, or the one named.

    Everything lies in ``folder`` (build/bench/codenet of the checkout): the model with its images, the compiled design, what was simulated,
    the record. What is there and depends on nothing that changed is not made again, so a repeated call goes on where it was interrupted.
    Weights are random, ranges calibrated, and offsets exercised (models/untrained.py). WarploomError if there is no such configuration.
    """
    if name is not None and name not in CONFIGS:
        raise WarploomError(f"--config must be one of {', '.join(CONFIGS)}, not {name!r}")
    return [_record(CONFIGS[n], _base(folder) / n, step) for n in ([name] if name else CONFIGS)]


def simulate_codenet(name: str, *, folder: Path | None = None, step: Step = lambda _: None) -> dict[str, Any]:
    """The part of a configuration's record that a simulation of whole frames gives; kept likewise."""
    config = CONFIGS[name]
    return _frames(config, _base(folder) / name, lambda text: step(f"{name}: {text}"))


def _base(folder: Path | None) -> Path:
    return folder or ROOT / "build" / "bench" / "codenet"


def _frames(config: Config, folder: Path, say: Step) -> dict[str, Any]:
    model, compiled = _model(config, folder / "model", say), folder / "compiled"
    compile(model / "model.onnx", compiled, target_cycles=config.target, device=DEVICE, step=say)
    return _simulated(config, model, compiled, folder / "simulated.json", say)


def _record(config: Config, folder: Path, step: Step) -> dict[str, Any]:
    say: Step = lambda text: step(f"{config.preset}: {text}")  # noqa: E731
    record, compiled = _frames(config, folder, say), folder / "compiled"
    say("area of every unit by Yosys")
    area = synthesize(build_design(compiled), "xcup", lambda done, total: say(f"{done} of {total} units"))
    planned = {"cycles_per_frame": load_design(compiled)["interval_cycles"]}
    record |= area["total"]["measured"] | {"config": config.preset, "estimated": planned | area["total"]["estimate"]}
    with whole_file(folder / "record.json") as file:
        file.write_text(json.dumps(record | {"kinds": area["kinds"]}, indent=1))
    return {k: record[k] for k in KEYS}


def _model(config: Config, folder: Path, say: Step) -> Path:
    """The model and its images, made once."""
    images = folder / "images.npy"
    if not images.is_file() or len(np.load(images)) != config.frames:
        say("weights, ranges, offsets")
        with new_folder(folder) as made:
            steps.upward("untrained")(config.preset, made, config.frames)
    return folder


def _simulated(config: Config, model: Path, compiled: Path, path: Path, say: Step) -> dict[str, Any]:
    """Frames back to back in Verilator, every tensor compared with golden; what is there is kept if nothing that it depends on changed."""
    design = load_design(compiled)
    files = [compiled / n for n in ("accelerator_sim.v", "memory.bin", "model.onnx")] + [model / "images.npy"]
    key = digest([config.preset, str(config.frames), *(f.read_bytes() for f in files), *_harness()])
    if not path.is_file() or json.loads(path.read_text()).get("key") != key:
        found = _simulate(config, model, compiled, say) | {"key": key}
        with whole_file(path) as file:
            file.write_text(json.dumps(found, indent=1))
    record: dict[str, Any] = json.loads(path.read_text())
    # Queues may take long to fill: the interval of the slowest unit is the least that counts.
    record["cycles_per_frame"] = max(math.ceil(record["slowest_stream"]), design["interval_cycles"])
    record["multiplier_utilization"] = design["multiplications"] / (design["lanes"] * record["cycles_per_frame"])
    return record


def _harness() -> list[bytes]:
    """The sources of the simulation."""
    return [(ROOT / "sim" / name).read_bytes() for name in HARNESS]


def _simulate(config: Config, model: Path, compiled: Path, say: Step) -> dict[str, Any]:
    images = np.load(model / "images.npy").astype(np.int64)
    accelerator = steps.upward("verilator")(compiled, watchdog=4_000_000)
    say("building the simulation")
    _ = accelerator.program
    say(f"simulating {len(images)} frames")
    checked = verify(accelerator.graph, images, None, accelerator, progress=lambda done, total: say(f"frame {done} of {total}"))
    if not all(o["proves"] for o in checked.offsets.values()):
        raise WarploomError(f"{config.preset}: a deformable layer saw too few offsets for the comparison to prove anything")
    ends = [end for _, end in checked.cycles]
    return {
        "last_interval": ends[-1] - ends[-2], "slowest_stream": checked.slowest, "latency_cycles": ends[0] - checked.cycles[0][0],
        "frames_checked": len(images), "values_compared": sum(r.values for r in checked.rows), "mismatches": checked.mismatches,
    }  # fmt: skip
