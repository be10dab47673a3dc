"""Time of a zoo operator beside the plain one that it replaces, in one run, as a ratio; parameters, MACs and memory with it."""
from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .base import DemoResult, System
from .counting import macs, parameters


def bench(found: System, rounds: int = 5) -> dict[str, Any]:
    """Forward and backward of both, in turn, medians of ``rounds`` after one warm-up."""
    torch.manual_seed(0)
    case = found.bench()
    models = {"ours": case.ours, "baseline": case.baseline}
    seconds: dict[str, dict[str, list[float]]] = {name: {"forward": [], "backward": []} for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            forward, backward = _once(model, case.inputs)
            if turn:
                seconds[name]["forward"].append(forward)
                seconds[name]["backward"].append(backward)
    rows = []
    for name, model in models.items():
        size = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
        times = {way: median(values) for way, values in seconds[name].items()}
        ratio = {f"{way}_ratio": times[way] / median(seconds["baseline"][way]) for way in times}
        rows.append({"which": name, "parameters": parameters(model), "macs": _macs(model, case.inputs), "bytes": size, **times, **ratio})
    return {"name": found.name, "case": case.name, "rows": rows}


def _macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """What the operator itself says for an image (element-wise products are invisible to the counter), else what is dispatched."""
    own = getattr(model, "macs", None)
    return int(own()) * len(inputs[0]) if callable(own) else macs(model, *inputs)


def _once(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    model.zero_grad()
    inputs = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in inputs)  # some operators have no parameters
    started = time.perf_counter()
    output = model(*inputs)
    forward = time.perf_counter() - started
    first = output[0] if isinstance(output, tuple) else output
    started = time.perf_counter()
    first.float().square().mean().backward()
    return forward, time.perf_counter() - started


def plot(result: DemoResult, title: str, path: Path) -> Path:
    """The curves of a demonstration as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, values in result.curves.items():
        axes.plot(values, label=name)
    axes.set_title(title)
    axes.set_xlabel("step")
    if result.curves:
        axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    return path
