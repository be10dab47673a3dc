# amaranth: UnusedElaboratable=no
"""A whole accelerator on an LFE5U-85F with open tools: Yosys, nextpnr-ecp5, ecppack. Only what is placed and routed has a measured clock.

The accelerator hangs between registers on one pin in and one out (hw/shell.py), so that its streams, which are wider than the package has
pins, cost no pins and nothing of it is optimized away. The bitstream is for the tool's sake: on a board the shell gives way to real edges.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hw.shell import Shell
from hw.verilog import VerilogModule, convert
from sw import estimate
from sw.cache import cached_build
from sw.estimate import Area
from sw.files import whole_file
from sw.lower import Design
from sw.modules import modules_of
from sw.synth.measure import SCRIPTS, TOP, module_of, netlist_folder, readable, routed
from sw.synth.network import entry
from sw.synth.tools import versions, yosys
from sw.synth.workers import Progress, each
from sw.targets import Device

#: What is left in the folder: the configuration and the bitstream.
PRODUCTS = ("accelerator.config", "accelerator.bit")
#: What lies between the modules, which are black boxes to it; then everything as one module of the family's cells.
GLUE = ("read_json parts.json", "blackbox *", f"read_verilog {TOP}.v", *SCRIPTS["ecp5"], f"select {TOP}", "write_json -selected glue.json")
TOGETHER = (
    "read_json all.json", "read_verilog -lib +/ecp5/cells_sim.v +/ecp5/cells_bb.v", f"hierarchy -check -top {TOP}", "flatten",
    "opt_clean -purge", f"select {TOP}", "write_json -selected netlist.json",
)  # fmt: skip


def linked(glue: str, modules: Sequence[VerilogModule], progress: Progress | None = None) -> dict[str, Any]:
    """One netlist for ECP5 of module ``unit``, the Verilog ``glue``, which instantiates ``modules``.

    Each module is synthesized by itself, in processes, and cached: the work grows no faster than the design, and a change repeats one
    module's.
    """
    tasks = [(readable(module.named(TOP)), "ecp5") for module in modules]
    parts = {m.name: module_of(folder) for m, folder in zip(modules, each(netlist_folder, tasks, progress), strict=True)}

    def build(folder: Path) -> None:
        (folder / f"{TOP}.v").write_text(glue)
        (folder / "parts.json").write_text(json.dumps({"creator": "warploom", "modules": parts}))
        yosys(GLUE, folder)
        top = json.loads((folder / "glue.json").read_text())["modules"][TOP]
        (folder / "all.json").write_text(json.dumps({"creator": "warploom", "modules": parts | {TOP: top}}))
        yosys(TOGETHER, folder)
        for path in folder.iterdir():
            if path.name != "netlist.json":
                path.unlink()

    folder = cached_build(["linked", versions(), *GLUE, *TOGETHER, glue, *(m.named(TOP) for m in modules)], build)
    found: dict[str, Any] = json.loads((folder / "netlist.json").read_text())["modules"][TOP]
    return found


def place(design: Design, device: Device, folder: Path, *, step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Synthesize, place, route and pack a design; ToolError if it does not fit. Everything is cached by the Verilog."""
    step("writing Verilog")
    modules = modules_of(design.accelerator().parts, primitives=True).of
    glue = convert(Shell(design.accelerator(modules=modules)), TOP, primitives=True)
    distinct = {module.name: module for module in modules.values()}
    step(f"Yosys, ecp5: {len(distinct)} modules")
    count: Progress = lambda done, total: step(f"{done} of {total} modules") if done % 20 == 0 else None  # noqa: E731
    netlist = linked(readable(glue), [distinct[name] for name in sorted(distinct)], count)
    step("nextpnr and ecppack")
    found = routed(netlist)
    folder.mkdir(parents=True, exist_ok=True)
    for name in PRODUCTS:
        with whole_file(folder / name) as path:
            shutil.copyfile(found / name, path)
    timing = json.loads((found / "timing.json").read_text())
    area = Area(**json.loads((found / "area.json").read_text()))
    estimated = sum(estimate.design(design, "ecp5").values(), Area())
    bitstream = (folder / "accelerator.bit").stat().st_size
    total = entry([estimated], [area], parts=len(design.units))
    return {"total": total, "mhz": timing["mhz"], "slowest_path": timing["path"], "bitstream_bytes": bitstream}
