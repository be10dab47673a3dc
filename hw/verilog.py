"""Components to Verilog; the one caller of Amaranth's Verilog back end."""
from __future__ import annotations

from amaranth.back import verilog
from amaranth.lib import wiring


def convert(component: wiring.Component, name: str) -> str:
    """The Verilog text of ``component`` as module ``name``, without source locations: the same component gives the same text."""
    text: str = verilog.convert(component, name=name, emit_src=False, strip_internal_attrs=True)
    return text
