# amaranth: UnusedElaboratable=no
"""A whole accelerator on an LFE5U-85F with open tools: Yosys, nextpnr-ecp5, ecppack. Only what is placed and routed has a measured clock.

The accelerator hangs between registers on one pin in and one out (hw/shell.py), so that its streams, which are wider than the package has
pins, cost no pins and nothing of it is optimized away. The bitstream is for the tool's sake: on a board the shell gives way to real edges.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hw.shell import Shell
from hw.verilog import assemble
from sw import estimate
from sw.estimate import Area
from sw.files import whole_file
from sw.lower import Design
from sw.modules import modules_of
from sw.synth.measure import TOP, routed
from sw.synth.network import entry
from sw.targets import Device

#: What is left in the folder: the configuration and the bitstream.
PRODUCTS = ("accelerator.config", "accelerator.bit")


def place(design: Design, device: Device, folder: Path, *, step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Synthesize, place, route and pack a design; ToolError if it does not fit. Everything is cached by the Verilog."""
    step("writing Verilog")
    modules = modules_of(design.accelerator().parts, primitives=True).of
    text = assemble(Shell(design.accelerator(modules=modules)), TOP, modules.values(), primitives=True)
    found = routed(text, step=step)
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
