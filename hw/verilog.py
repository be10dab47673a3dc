"""Components to Verilog; the one caller of Amaranth's back end."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.back import rtlil, verilog
from amaranth.lib import wiring

from hw.lib.primitives import PRIMITIVES

#: Stands for a module's own name in the text of a :class:`VerilogModule`.
SELF = "this_module"
#: A module with the attributes before it.
MODULE = re.compile(r"^(?:\(\*[^\n]*\n)*module .*?^endmodule$", re.DOTALL | re.MULTILINE)
#: A signal that Yosys adds to modules of processes, numbered through all that it writes.
NUMBERED = re.compile(r"(\$auto\$verilog_backend\.cc:\d+:dump_module\$)(\d+)")


@dataclass(frozen=True, kw_only=True)
class VerilogModule:
    """A component's Verilog, the modules inside it included: ``text`` with :data:`SELF` for its ``name``."""

    name: str
    text: str

    def named(self, name: str) -> str:
        """The text under another name."""
        return re.sub(rf"\b{SELF}\b", name, self.text)

    @property
    def ports(self) -> frozenset[str]:
        """Names of the ports; clock and reset are among them if there is a register inside."""
        header = re.search(rf"^module {SELF}\((.*?)\);$", self.text, re.MULTILINE | re.DOTALL)
        assert header is not None
        return frozenset(port.strip() for port in header.group(1).split(","))


def convert(component: wiring.Component, name: str, *, primitives: bool = False) -> str:
    """The Verilog text of ``component`` as module ``name``, without source locations: the same component gives the same text.

    ``primitives``: instances of the families' multipliers, for synthesis, in place of their models (hw/lib/primitives.py).
    """
    platform = PRIMITIVES if primitives else None
    text: str = verilog.convert(component, name=name, platform=platform, emit_src=False, strip_internal_attrs=True)
    return text


def convert_each(components: Sequence[wiring.Component], *, primitives: bool = False) -> list[str]:
    """The text of each component as module :data:`SELF`, what :func:`convert` says of it, from a single run of Yosys.

    A run of Yosys takes longer to begin than a unit takes to write.
    """
    if not components:
        return []
    platform = PRIMITIVES if primitives else None
    names = [f"{SELF}_{k}" for k in range(len(components))]
    inputs = (rtlil.convert(c, name=name, platform=platform, emit_src=False) for c, name in zip(components, names, strict=True))
    text: str = verilog._convert_rtlil_text("\n".join(inputs), strip_internal_attrs=True)
    found: dict[str, list[str]] = {name: [] for name in names}
    for module in MODULE.findall(text):
        owner = re.search(rf"^module \\?({SELF}_\d+)\b", module, re.MULTILINE)
        assert owner is not None, f"a module of no component: {module[:200]}"
        found[owner.group(1)].append(module)
    return [_alone("\n\n".join(modules), name) for name, modules in found.items()]


def _alone(text: str, name: str) -> str:
    """The text of a component's modules as if nothing else had been written."""
    numbers: dict[str, int] = {}
    text = NUMBERED.sub(lambda m: m[1] + str(numbers.setdefault(m[2], len(numbers) + 1)), text)
    return re.sub(rf"\b{name}\b", SELF, text) + "\n"


def assemble(top: wiring.Component, name: str, modules: Iterable[VerilogModule], *, primitives: bool = False) -> str:
    """A component that instantiates ``modules`` (:func:`hw.top.black_box`), and those, each once, in the order of their names."""
    distinct: Mapping[str, VerilogModule] = {module.name: module for module in modules}
    return convert(top, name, primitives=primitives) + "".join(f"\n{distinct[n].named(n)}" for n in sorted(distinct))


def ports_of(component: Any) -> dict[str, tuple[wiring.Flow, Any]]:
    """Flow and value of every port of a component, under the names that they have in its Verilog."""
    return {
        "__".join(map(str, path)): (member.flow, value) for path, member, value in component.signature.flatten(component)
    }
