"""Speed of the deformable operator and of the golden model, each beside what it should be held against, in one run and as ratios."""
from __future__ import annotations

import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.detectors.codenet import PRESETS, Codenet, images_to_input
from models.export import export_qonnx
from models.freeze import freeze
from models.ops.deform import SQUARE, Taps, deform_conv
from models.qat import calibrate, prepare
from models.score import torch_network
from sw import golden
from sw.compiler import load_graph
from sw.fast import FastGolden, blas

#: Batch, channels, height, width: config b's decoder stages, and the layer of CoDeNet's table 2.
MAPS = ((8, 1024, 8, 8), (8, 256, 16, 16), (8, 128, 32, 32), (1, 256, 64, 64))


@dataclass(frozen=True)
class Times:
    """Seconds of one way in each round: that passed, and of all cores together, whoever else uses them."""

    wall: list[float]
    cpu: list[float]


def in_turn(ways: dict[str, Callable[[], Any]], rounds: int, progress: Callable[[int, int], None] | None = None) -> dict[str, Times]:
    """Each way's times over ``rounds``, taken in turn after one that does not count: machines are shared and noisy."""
    found = {name: Times([], []) for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started, spent = time.perf_counter(), time.process_time()
            way()
            if turn:
                found[name].cpu.append(time.process_time() - spent)
                found[name].wall.append(time.perf_counter() - started)
        if progress is not None:
            progress(turn + 1, rounds + 1)
    return found


def times_faster(found: dict[str, Times], clock: str, base: tuple[str, ...]) -> dict[str, float]:
    """How often each way fits into the faster one of ``base``, by ``clock`` (wall or cpu): median over the rounds' own ratios, and so is
    which one is faster."""
    times: dict[str, list[float]] = {name: getattr(each, clock) for name, each in found.items()}
    least = [min(each) for each in zip(*(times[name] for name in base), strict=True)]
    fastest = min(base, key=lambda name: median(a / b for a, b in zip(times[name], least, strict=True)))
    return {name: median(a / b for a, b in zip(times[fastest], each, strict=True)) for name, each in times.items()}


def times_faster_at_best(found: dict[str, Times], base: tuple[str, ...]) -> dict[str, float]:
    """How often each way's least wall time fits into the least of ``base``: the rounds that others disturbed least."""
    least = {name: min(each.wall) for name, each in found.items()}
    return {name: min(least[each] for each in base) / seconds for name, seconds in least.items()}


def bench_deform(*, rounds: int = 5, device: str | None = None, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Seconds of depthwise 3x3 operators, forward and with backward, beside the plain convolution's, by map.

    Operators: plain, deform-square and deform-free as they train here, the same as PyTorch code alone (torch-...), and where they are
    present torchvision-free, triton-square (GPU).
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for k, shape in enumerate(MAPS):
        for backward in (False, True):
            ways = {name: _call(run, inputs, device, backward) for name, (run, inputs) in _operators(shape, device).items()}
            seconds = {name: median(times.wall) for name, times in in_turn(ways, rounds).items()}
            rows += [
                {"map": list(shape), "pass": "forward+backward" if backward else "forward", "operator": name, "seconds": each,
                 "times_plain": each / seconds["plain"]}
                for name, each in seconds.items()
            ]  # fmt: skip
        if progress is not None:
            progress(k + 1, len(MAPS))
    absent = [] if importlib.util.find_spec("torchvision") else ["torchvision-free: torchvision is not installed"]
    absent += [] if device == "cuda" else ["triton-square: no GPU"]
    return {"device": device, "threads": torch.get_num_threads(), "rounds": rounds, "rows": rows, "absent": absent}


def _operators(shape: tuple[int, int, int, int], device: str) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    n, c, h, w = shape
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=rng), torch.randn(c, 1, 3, 3, generator=rng)
    o, free = torch.rand(n, 1, h, w, generator=rng) * 15 - 8, torch.rand(n, 18, h, w, generator=rng) * 15 - 8
    square = dataclasses.replace(SQUARE, bounds=(-8, 7))
    found: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
        "plain": (lambda x, k: F.conv2d(x, k, padding=1, groups=c), [x, weight]),
        "deform-square": (lambda x, o, k: deform_conv(x, o, k, groups=c, taps=square), [x, o, weight]),
        "torch-square": (lambda x, o, k: deform_conv(x, o, k, groups=c, taps=square, native=False), [x, o, weight]),
        "deform-free": (lambda x, o, k: deform_conv(x, o, k, groups=c, taps=Taps(bounds=(-8, 7))), [x, free, weight]),
        "torch-free": (lambda x, o, k: deform_conv(x, o, k, groups=c, taps=Taps(bounds=(-8, 7)), native=False), [x, free, weight]),
    }
    if importlib.util.find_spec("torchvision"):
        from torchvision.ops import deform_conv2d

        found["torchvision-free"] = (lambda x, o, k: deform_conv2d(x, o, k, padding=1), [x, free, weight])
    if device == "cuda":
        from models.ops.deform_triton import deform_conv_triton

        found["triton-square"] = (lambda x, o, k: deform_conv_triton(x, o, k, groups=c, taps=square), [x, o, weight])
    return {name: (run, [t.to(device).requires_grad_() for t in inputs]) for name, (run, inputs) in found.items()}


def _call(run: Callable[..., Tensor], inputs: list[Tensor], device: str, backward: bool) -> Callable[[], None]:
    def call() -> None:
        if backward:
            torch.autograd.grad(run(*inputs).sum(), inputs)
        else:
            with torch.no_grad():
                run(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def bench_golden(
    *, preset: str = "b", batch: int = 8, rounds: int = 5, folder: Path = Path("build/bench"),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Images a second of the golden model and of PyTorch's float network (both memory layouts), all cores, in one run.

    ``times_torch`` is against the faster of the two layouts, round by round; ``cpu_times_torch`` is the same of CPU time and
    ``best_times_torch`` compares the least wall times, both of which say more on a busy machine. ``blas``: NumPy's library and the
    kernels it chose. Weights are random, batch norms and scales settled on random images.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(sorted(PRESETS))}, not {preset!r}")
    config, cores = PRESETS[preset], len(os.sched_getaffinity(0))
    images = np.random.default_rng(0).integers(0, 256, (batch, *config.size, 3)).astype(np.uint8)
    model = settled(Codenet(config), images)
    path = folder / f"golden-{preset}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    prepared = prepare(model)
    calibrate(prepared, [images_to_input(images[:2])])
    export_qonnx(freeze(prepared), path)
    graph = load_graph(path)
    fast, last = FastGolden(graph, threads=cores), torch_network(Settled(model, torch.channels_last))
    first = torch_network(Settled(model, torch.contiguous_format))
    same = golden.run(graph, images[:1], keep=())
    check = fast.run(images[:1])
    if not all(np.array_equal(same[t], check[t]) for t in graph.outputs):
        raise RuntimeError("the fast golden model differs from the golden model")
    threads = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        ways = {"golden": lambda: fast.run(images), "torch-float": lambda: first(images), "torch-float-channels-last": lambda: last(images)}
        found = in_turn(ways, rounds, progress)
    finally:
        torch.set_num_threads(threads)
    layouts = "torch-float", "torch-float-channels-last"
    (wall, cpu), best = (times_faster(found, clock, layouts) for clock in ("wall", "cpu")), times_faster_at_best(found, layouts)
    rows = [
        {"backend": name, "images_per_second": batch / median(times.wall), "times_torch": wall[name],
         "best_times_torch": best[name], "cpu_seconds_per_image": median(times.cpu) / batch, "cpu_times_torch": cpu[name]}
        for name, times in found.items()
    ]  # fmt: skip
    return {"preset": preset, "batch": batch, "cores": cores, "rounds": rounds, "blas": blas(), "backends": rows}


class Settled(nn.Module):
    """A network whose input has the memory layout that its weights have."""

    def __init__(self, model: nn.Module, layout: torch.memory_format) -> None:
        super().__init__()
        self.model, self.layout = _copy(model).to(memory_format=layout), layout  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Any:
        return self.model(x.contiguous(memory_format=self.layout))


def _copy(model: nn.Module) -> nn.Module:
    assert isinstance(model, Codenet)
    copied = Codenet(model.config)
    copied.load_state_dict(model.state_dict())
    return copied.eval()


def settled(model: Codenet, images: Any) -> Codenet:
    """``model`` in eval mode with random weights, and statistics of batch norm that fit ``images``; offsets that move."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("offset.weight"):
                value.normal_(std=0.1)
        for _ in range(3):
            model.train()(images_to_input(images[:2]))
    return model.eval()
