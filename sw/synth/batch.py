"""Areas of many modules: of several at once, since Yosys takes longer to read its libraries and rules than to map most of them."""
from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hw.verilog import VerilogModule
from sw.cache import cached, cached_build
from sw.estimate import Area
from sw.synth.cells import area_of
from sw.synth.measure import SCRIPTS, TOGETHER, TOP, Family, readable, sources
from sw.synth.tools import versions, yosys
from sw.synth.workers import Progress, each

#: Modules in one run: what they share is read once, but ABC's time for each grows with the size of the whole (ten small ones: 2.2 times
#: faster than ten runs, those of a network less; with thirty nothing is left of that).
BATCH = 10
#: Modules stay apart, each flattened in itself.
APART = f"setattr -mod -set keep_hierarchy 1 {TOP}_?"


def areas(modules: Sequence[VerilogModule], family: Family, progress: Progress | None = None) -> list[Area]:
    """The area of each module, in processes; each is cached by itself. ``progress`` is told how many of the distinct ones are known.

    Beside other modules a module's area may differ by a percent from what it is alone, since ABC's choices depend on names.
    """
    distinct = {m.name: m for m in modules}
    missing = sorted(name for name, m in distinct.items() if cached(_key(m, family)) is None)
    groups = [[distinct[n] for n in missing[k : k + BATCH]] for k in range(0, len(missing), BATCH)]
    told: Progress | None = None
    if progress is not None:
        told = lambda done, _: progress(len(distinct) - max(len(missing) - done * BATCH, 0), len(distinct))  # noqa: E731
        if not missing:
            progress(len(distinct), len(distinct))
    each(_measure, [(group, family) for group in groups], told)
    return [_area(m, family) for m in modules]


def _key(module: VerilogModule, family: Family) -> list[str]:
    return ["area beside others", versions(), sources(), family, readable(module.text)]


def _area(module: VerilogModule, family: Family) -> Area:
    """What was measured of a module."""
    folder = cached(_key(module, family))
    assert folder is not None
    return Area(**json.loads((folder / "area.json").read_text()))


def _measure(modules: Sequence[VerilogModule], family: Family) -> None:
    """Measure modules as unit_0, unit_1, ... below a top level that connects none of their ports."""
    parts = [f"{TOP}_{k}" for k in range(len(modules))]
    texts = [readable(module.named(part)) for module, part in zip(modules, parts, strict=True)]
    top = f"module {TOP}();\n" + "".join(f"(* keep *) {part} part_{part} ();\n" for part in parts) + "endmodule\n"
    steps = [step for step in SCRIPTS[family] if step not in TOGETHER]
    with tempfile.TemporaryDirectory(prefix="warploom-") as name:
        folder = Path(name)
        (folder / f"{TOP}.v").write_text("\n".join([*texts, top]))
        yosys([f"read_verilog {TOP}.v", APART, *steps, TOGETHER[0], APART, *TOGETHER[1:], "write_json netlist.json"], folder)
        netlist = json.loads((folder / "netlist.json").read_text())["modules"]
    for module, part in zip(modules, parts, strict=True):
        found = area_of(cell["type"] for cell in netlist[part]["cells"].values()).record()
        cached_build(_key(module, family), partial(_keep, json.dumps(found)))


def _keep(record: str, folder: Path) -> None:
    (folder / "area.json").write_text(record)
