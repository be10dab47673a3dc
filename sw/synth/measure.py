"""Area, LUT levels and frequency of a component."""
from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hw.shell import Shell
from hw.verilog import convert
from sw.cache import cached_build
from sw.estimate import Area
from sw.synth import outreg
from sw.synth.cells import area_of
from sw.synth.levels import LongestPath, longest_path
from sw.synth.tools import ToolError, ecppack, nextpnr, versions, yosys
from sw.targets import DEVICES

Family = Literal["xcup", "ecp5"]
TOP = "unit"
SYNTH: dict[Family, str] = {
    "xcup": f"synth_xilinx -family xcup -noiopad -flatten -top {TOP}",
    "ecp5": f"synth_ecp5 -no-rw-check -top {TOP}",
}
#: ABC9 asserts on the nets of some of Amaranth's Verilog (Yosys issue 4349); nets split bit by bit do not trip it.
#: Tables in LUTs (hw/lib/store.py) are mapped apart from the rest: mapped together, ABC trades their area for depth.
APART = "setattr -mod -set keep_hierarchy 1 *lut_table*"
TOGETHER = ("setattr -mod -unset keep_hierarchy *", "flatten", "opt_clean -purge")
SCRIPTS = {
    family: (APART, f"{synth} -run :map_luts", "splitnets", f"{synth} -run map_luts:", *TOGETHER) for family, synth in SYNTH.items()
}
#: A memory of zeros.
ZEROS = re.compile(r"(?P<memory> *reg \[\d+:0\] (?P<name>\S+) +\[\d+:0\];\n) *initial begin\n(?: *(?P=name) *\[\d+\] = \d+'h0+;\n)+ *end\n")
PLACE = ("--85k", "--speed", "6", "--package", "CABGA381", "--freq", "200", "--timing-allow-fail")
#: For a whole accelerator: the other router had 1,000 of 300,000 nets left after 50 minutes, where this one negotiates.
CHIP = ("--router", "router2")


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """A unit on both families. ``fmax_ecp5``: MHz by place and route, None if the largest ECP5 is too small for it."""

    xcup: Area
    path: LongestPath
    fmax_ecp5: float | None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """``mhz`` after place and route, and the steps of the slowest path, each with its delay."""

    mhz: float
    path: tuple[str, ...]


def verilog_of(component: Any) -> str:
    """The component as module ``unit``, as :func:`readable` has it."""
    return readable(convert(component, TOP, primitives=True))


def readable(text: str) -> str:
    """Verilog for synthesis, without the first comment, which names a version of Yosys.

    Memories that are written start with anything: zeros, a line a word, would take Yosys minutes to read.
    """
    text = "\n\n" + re.sub(r"\A/\*.*?\*/", "", text).lstrip()  # white space counts in keys of the cache
    written = set(re.findall(r"^ *(\S+?) *\[[^\n=]*\](?:\[[^\n=]*\])? <= ", text, re.MULTILINE))
    return ZEROS.sub(lambda found: found["memory"] if found["name"] in written else found[0], text)


def netlist_folder(text: str, family: Family) -> Path:
    """Folder with ``netlist.json.gz`` and ``netlist.v`` of a synthesized Verilog text."""
    script = (f"read_verilog {TOP}.v", *SCRIPTS[family], f"select {TOP}", "write_json -selected netlist.json")
    key = ["synth", versions(), *script, text]
    if family == "ecp5":
        key.append(Path(outreg.__file__).read_text())

    def build(folder: Path) -> None:
        (folder / f"{TOP}.v").write_text(text)
        yosys([*script, "write_verilog -noattr -selected netlist.v"], folder)
        if family == "ecp5":
            _registered(folder)
        raw = (folder / "netlist.json").read_bytes()
        (folder / "netlist.json.gz").write_bytes(gzip.compress(raw, 5, mtime=0))
        (folder / "netlist.json").unlink()
        (folder / "log.txt").unlink()

    return cached_build(key, build)


def _registered(folder: Path) -> None:
    """netlist.json and netlist.v with registers in block RAM, if any can be moved there."""
    whole = json.loads((folder / "netlist.json").read_text())
    module = outreg.absorbed(whole["modules"][TOP])
    if module != whole["modules"][TOP]:
        whole["modules"][TOP] = module
        (folder / "netlist.json").write_text(json.dumps(whole))
        yosys(["read_json netlist.json", "write_verilog -noattr netlist.v"], folder)


def module_of(folder: Path) -> dict[str, Any]:
    """The netlist of a folder of :func:`netlist_folder`, as Yosys' JSON has a module."""
    found: dict[str, Any] = json.loads(gzip.decompress((folder / "netlist.json.gz").read_bytes()))["modules"][TOP]
    return found


def cached_value(kind: str, key: Sequence[str], make: Callable[[], Any]) -> Any:
    """A JSON value, made at most once per key."""

    def build(folder: Path) -> None:
        (folder / "value.json").write_text(json.dumps(make()))

    folder = cached_build([kind, versions(), *key], build)
    return json.loads((folder / "value.json").read_text())


def sources() -> str:
    """The code that turns netlists into figures, and the scripts: part of the keys of what they compute."""
    return repr(SCRIPTS) + "".join((Path(__file__).parent / name).read_text() for name in ("cells.py", "levels.py"))


def netlist(component: Any, family: Family) -> str:
    """Verilog of the synthesized netlist, over the family's cells."""
    return (netlist_folder(verilog_of(component), family) / "netlist.v").read_text()


def _area(text: str, family: Family) -> Area:
    def make() -> dict[str, float]:
        return area_of(cell["type"] for cell in module_of(netlist_folder(text, family))["cells"].values()).record()

    return Area(**cached_value("area", [family, sources(), text], make))


def area(component: Any, family: Family = "xcup") -> Area:
    """LUTs (memories and shift registers among them), flip-flops, multiplier slices and block RAMs by Yosys, flattened."""
    return _area(verilog_of(component), family)


def _levels(text: str) -> LongestPath:
    def make() -> dict[str, Any]:
        return vars(longest_path(module_of(netlist_folder(text, "xcup"))))

    found = cached_value("levels", [sources(), text], make)
    return LongestPath(**found | {"nets": tuple(found["nets"])})


def levels(component: Any) -> LongestPath:
    """The longest path by LUTs on xcup."""
    return _levels(verilog_of(component))


def _timing(text: str, seed: int) -> Timing | None:
    folder = netlist_folder(text, "ecp5")
    module = module_of(folder)
    device = DEVICES["lfe5u-85f"]
    used = area_of(cell["type"] for cell in module["cells"].values())
    if used.lut > device.luts or used.dsp > device.multipliers or used.bram36 > device.bram36:
        return None

    def place(work: Path) -> None:
        _place(module, seed, work)

    key = ["nextpnr", versions(), str(seed), *PLACE, *SCRIPTS["ecp5"], Path(outreg.__file__).read_text(), text]
    done = json.loads((cached_build(key, place) / "timing.json").read_text())
    return Timing(mhz=done["mhz"], path=tuple(done["path"]))


def _place(module: dict[str, Any], seed: int, work: Path, *arguments: str) -> None:
    """Place and route a netlist in ``work``; leaves timing.json: MHz, and the steps of the slowest path."""
    (work / "netlist.json").write_text(json.dumps({"creator": "warploom", "modules": {TOP: module}}))
    nextpnr(["--json", "netlist.json", "--seed", str(seed), "--report", "report.json", *PLACE, *arguments], work)
    report = json.loads((work / "report.json").read_text())
    if len(report["fmax"]) != 1:
        raise ToolError(f"nextpnr must find one clock, not {sorted(report['fmax'])}")
    (clock,) = report["fmax"].values()
    paths = [path["path"] for path in report["critical_paths"] if "<async>" not in (path["from"], path["to"])]
    slowest: list[Any] = max(paths, key=lambda path: sum(step["delay"] for step in path), default=[])
    ways = [f"{s['delay']:.2f} ns {s['type']} {s['from']['cell']}.{s['from']['port']}" for s in slowest if s["delay"] > 0]
    (work / "timing.json").write_text(json.dumps({"mhz": clock["achieved"], "path": ways}))
    for name in ("netlist.json", "report.json", "log.txt"):
        (work / name).unlink()


def routed(module: dict[str, Any], *, seed: int = 1) -> Path:
    """A netlist between registers (of a :class:`hw.shell.Shell`) on an LFE5U-85F: the folder of timing.json, area.json,
    accelerator.config and accelerator.bit.

    ToolError if it does not fit the device.
    """
    used = area_of(cell["type"] for cell in module["cells"].values())
    device = DEVICES["lfe5u-85f"]
    if used.lut > device.luts or used.dsp > device.multipliers or used.bram36 > device.bram36:
        raise ToolError(f"{device.name} is too small: {used} by Yosys")

    def place(work: Path) -> None:
        _place(module, seed, work, *CHIP, "--textcfg", "accelerator.config")
        ecppack(["--compress", "accelerator.config", "accelerator.bit"], work)
        (work / "area.json").write_text(json.dumps(used.record()))
        (work / "log.txt").unlink()

    return cached_build(["routed", versions(), sources(), str(seed), *PLACE, *CHIP, json.dumps(module)], place)


def timing(component: Any, seed: int = 1) -> Timing | None:
    """Timing on an LFE5U-85F of grade 6, placed and routed between registers (:class:`hw.shell.Shell`); None if it does not fit."""
    return _timing(verilog_of(Shell(component)), seed)


def synthesize(component: Any, on_ecp5: Any, *, step: Callable[[str], None] = lambda _: None) -> Synthesis:
    """Everything about a component; ``on_ecp5``: what stands for it on that family, None: nothing; ``step`` is told what begins."""
    text = verilog_of(component)
    step("Yosys, xcup")
    xcup, path = _area(text, "xcup"), _levels(text)
    placed = None
    if on_ecp5 is not None:
        step("Yosys and nextpnr, ecp5")
        placed = timing(on_ecp5)
    return Synthesis(xcup=xcup, path=path, fmax_ecp5=None if placed is None else placed.mhz)
