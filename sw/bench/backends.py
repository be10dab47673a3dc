"""Speed of the ways to run one network, measured in one run and compared as ratios: machines are shared and noisy."""
from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sw import compiler, steps
from sw.runtime.accelerator import GoldenAccelerator
from sw.testing import micro_network


def bench(run: Path | None = None, *, images: int = 4, rounds: int = 3) -> dict[str, Any]:
    """Images a second of golden and of the simulated Verilog, and cycles a second, for a run's design or for a micro network.

    Frozen PyTorch is measured too where the run has it. Every figure is the median of ``rounds``, taken in turn.
    """
    run = run or _micro()
    accelerator = steps.upward("verilator")(run / "compiled")
    graph = accelerator.graph
    shape = graph.tensors[graph.inputs[0]].type.shape
    pictures = np.random.default_rng(0).integers(0, 256, (images, *shape)).astype(np.uint8)
    ways: dict[str, Callable[[], Any]] = {"golden": lambda: GoldenAccelerator(graph).run(pictures)}
    if (run / "frozen.pt").is_file():
        frozen = steps.upward("frozen").load(run / "frozen.pt")
        ways["torch-quantized"] = lambda: frozen.maps(pictures)
    _ = accelerator.program
    ways["rtl"] = lambda: accelerator.run(pictures)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    result = None
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            result = way()
            seconds[name].append(time.perf_counter() - started)
    base = median(seconds["golden"])
    rows = [{"backend": n, "images_per_second": images / median(s), "times_golden": base / median(s)} for n, s in seconds.items()]
    assert result is not None
    cycles = result.cycles[-1][1]
    return {"run": str(run), "images": images, "backends": rows, "cycles_per_second": cycles / median(seconds["rtl"])}


def _micro() -> Path:
    """A compiled micro network, kept between calls."""
    folder = Path("build") / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    compiler.compile(micro_network(folder / "model.onnx"), folder / "compiled")
    return folder
