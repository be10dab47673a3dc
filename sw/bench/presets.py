"""Which of CoDeNet's presets a device holds, and how fast: the budget of a part by the search and its estimates, without simulation."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sw import compiler, estimate, steps
from sw.cache import ROOT, digest
from sw.errors import CompileError, WarploomError
from sw.estimate import Area
from sw.files import new_folder, whole_file
from sw.folding.search import RESOURCES, shares_of
from sw.graph import Graph
from sw.targets import Device, target_of

#: In order of size: least multiplications first.
PRESETS = ("tiny", "small", "a", "b", "c", "d", "e")
#: The network as it is, and what co-design makes of it: other networks, to be trained anew (docs/architecture.md).
AS_IT_IS = "as it is"
CODESIGNS: dict[str, dict[str, Any]] = {
    "offsets -4..3": {"bounds": (-4, 3)},
    "pointwise first": {"order": "mix-first"},
    "pointwise first, offsets -4..3": {"order": "mix-first", "bounds": (-4, 3)},
}
#: Images that go with a model made for this: none is simulated.
FRAMES = 1
Step = Callable[[str], None]


def bench_presets(
    device: str, preset: str | None = None, *, codesign: bool = False, folder: Path | None = None, step: Step = lambda _: None
) -> list[dict[str, Any]]:
    """A record for each preset, the smallest first, or for the one named: whether it fits the device from pixels to boxes, the least
    cycles a frame, what limits, its estimated area and shares. ``codesign``: behind each, records of its relatives of CODESIGNS.

    Models have random weights and lie in ``folder`` (build/bench/presets of the checkout), made once; a record is made anew when model or
    code changed. WarploomError for a preset or device that there is not.
    """
    if preset is not None and preset not in PRESETS:
        raise WarploomError(f"--preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    target, base = target_of(device), folder or ROOT / "build" / "bench" / "presets"
    networks = {AS_IT_IS: {}, **CODESIGNS} if codesign else {AS_IT_IS: {}}
    return [_record(name, network, target, base, step) for name in ([preset] if preset else PRESETS) for network in networks]


def largest(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The record of the largest preset that fits as it is; None if none does."""
    return next((r for r in reversed(records) if r["fits"] and r["network"] == AS_IT_IS), None)


def _record(name: str, network: str, device: Device, base: Path, step: Step) -> dict[str, Any]:
    fields = CODESIGNS.get(network, {})
    said = name if not fields else f"{name}, {network}"
    folder = base / name / network.translate(str.maketrans(" ", "_", ",.")) if fields else base / name
    model = folder / "model" / "model.onnx"
    if not model.is_file():
        step(f"{said}: weights, ranges, offsets")
        with new_folder(model.parent) as made:
            steps.upward("untrained")(name, made, FRAMES, network=fields)
    path, key = folder / f"{device.name}.json", digest([compiler.source_hash(), device.name, model.read_bytes()])
    if path.is_file() and (found := json.loads(path.read_text()))["key"] == key:
        return dict(found["record"])
    facts = {"preset": name, "network": network, "device": device.name}
    record = facts | _searched(compiler.decoded(compiler.load_graph(model))[0], device, lambda text: step(f"{said}: {text}"))
    with whole_file(path) as file:
        file.write_text(json.dumps({"key": key, "record": record}, indent=1))
    return record


def _searched(graph: Graph, device: Device, step: Step) -> dict[str, Any]:
    """The fastest that fits: the search leaves some of a part free (its ``fill``), and the design that comes of it must not exceed it."""
    facts = {"multiplications": graph.multiplications()}
    try:
        design, choice = compiler.searched(graph, device, None, None, None, None, step)
    except CompileError as error:
        return facts | {"fits": False, "cycles_per_frame": None, "fps": None, "limit": str(error), "area": None, "shares": None}
    area = sum(estimate.design(design, device.family).values(), Area())
    shares = dict(zip(RESOURCES, shares_of(area, device).tolist(), strict=True))
    cycles = design.interval
    return facts | {
        "fits": max(shares.values()) <= 1, "cycles_per_frame": cycles, "fps": device.clock_hz / cycles, "limit": choice.limit,
        "area": area.record(), "shares": shares,
    }  # fmt: skip
