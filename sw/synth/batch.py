"""Areas of many modules: of several at once, since Yosys takes longer to read its libraries and rules than to map most of them."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hw.verilog import VerilogModule
from sw.cache import cached_build
from sw.estimate import Area
from sw.synth.cells import area_of
from sw.synth.measure import SCRIPTS, TOGETHER, TOP, Family, readable, sources
from sw.synth.tools import versions, yosys
from sw.synth.workers import Progress, each

#: Modules in one run: what they share is read once, but ABC's time for each grows with the size of the whole (2.2 times faster than ten
#: runs; with thirty nothing is left of that).
BATCH = 10
#: Modules stay apart, each flattened in itself.
APART = f"setattr -mod -set keep_hierarchy 1 {TOP}_?"


def areas(modules: Sequence[VerilogModule], family: Family, progress: Progress | None = None) -> list[Area]:
    """The area of each module, in processes, cached; equal ones once. ``progress`` is told how many of the distinct ones are known.

    The same modules give the same areas. Beside other ones a module's may differ by a percent, since ABC's choices depend on names.
    """
    distinct = {m.name: m for m in modules}
    names = sorted(distinct)
    groups = [names[k : k + BATCH] for k in range(0, len(names), BATCH)]
    tasks = [([readable(distinct[n].named(f"{TOP}_{k}")) for k, n in enumerate(group)], family) for group in groups]
    told: Progress | None = None
    if progress is not None:
        told = lambda done, _: progress(min(done * BATCH, len(names)), len(names))  # noqa: E731
    found = [area for group in each(_measured, tasks, told) for area in group]
    known = dict(zip(names, found, strict=True))
    return [known[m.name] for m in modules]


def _measured(texts: Sequence[str], family: Family) -> list[Area]:
    """The areas of modules unit_0, unit_1, ... below a top level that connects none of their ports."""
    parts = [f"{TOP}_{k}" for k in range(len(texts))]
    top = f"module {TOP}();\n" + "".join(f"(* keep *) {part} part{k} ();\n" for k, part in enumerate(parts)) + "endmodule\n"
    steps = [step for step in SCRIPTS[family] if step not in TOGETHER]
    script = (f"read_verilog {TOP}.v", APART, *steps, TOGETHER[0], APART, *TOGETHER[1:], "write_json netlist.json")

    def build(folder: Path) -> None:
        (folder / f"{TOP}.v").write_text("\n".join([*texts, top]))
        yosys(script, folder)
        netlist = json.loads((folder / "netlist.json").read_text())["modules"]
        found = [area_of(cell["type"] for cell in netlist[part]["cells"].values()).record() for part in parts]
        for path in folder.iterdir():
            path.unlink()
        (folder / "areas.json").write_text(json.dumps(found))

    folder = cached_build(["areas", versions(), sources(), *script, *texts], build)
    return [Area(**record) for record in json.loads((folder / "areas.json").read_text())]
