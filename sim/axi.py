"""AXI benches: the wrapped accelerator in Verilator, driven by cocotbext-axi through a list of steps."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hw.axi import AxiAccelerator
from hw.lib.axi_master import AxiReader
from hw.lib.axi_stream import stream_bits
from hw.params import Lanes
from sim.beats import pack, words
from sim.run import build_bench, run_bench
from sw.ops.base import Array

#: A step: its name and arguments, see sim.bench_axi.Bench.
Step = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Steps after a reset. ``stalls``: random gaps at every source and random back-pressure at every sink, memory included."""

    name: str
    steps: Sequence[Step]
    stalls: bool = False
    seed: int = 1


def payloads(maps: Array, lanes: Lanes) -> list[int]:
    """Maps (..., C) as the payloads of their beats."""
    return words(pack(maps, lanes))


def packet(frame: Array, lanes: Lanes) -> bytes:
    """A frame (H, W, C) as the bytes of an AXI4-Stream packet: every beat in whole bytes."""
    size = stream_bits(lanes) // 8
    return b"".join(beat.to_bytes(size, "little") for beat in payloads(frame, lanes))


def run_scenarios(dut: AxiAccelerator, scenarios: Sequence[Scenario], work: Path) -> dict[str, dict[str, list[int]]]:
    """Run all scenarios in one simulation; AssertionError names the first step that failed in each.

    Returns the cycles at which frames ended, by scenario and output.
    """
    build = build_bench(dut)
    work.mkdir(parents=True, exist_ok=True)
    plan = {
        "outputs": list(dut.outs), "weights": list(dut.readers),
        "masters": {n: "read" if isinstance(m, AxiReader) else "write" for n, m in dut.masters.items()}, "times": str(work / "times.json"),
        "scenarios": [asdict(s) for s in scenarios],
    }  # fmt: skip
    (work / "plan.json").write_text(json.dumps(plan, default=bytes.hex))
    run_bench(build, "sim.bench_axi", work, {"WARPLOOM_PLAN": str(work / "plan.json")}, tests=1)
    times: dict[str, dict[str, list[int]]] = json.loads((work / "times.json").read_text())
    return times
