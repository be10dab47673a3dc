"""Components to Verilog; the one caller of Amaranth's Verilog back end."""
from __future__ import annotations

from amaranth.back import verilog
from amaranth.lib import wiring

from hw.lib.primitives import PRIMITIVES


def convert(component: wiring.Component, name: str, *, primitives: bool = False) -> str:
    """The Verilog text of ``component`` as module ``name``, without source locations: the same component gives the same text.

    ``primitives``: instances of the families' multipliers, for synthesis, in place of their models (hw/lib/primitives.py).
    """
    platform = PRIMITIVES if primitives else None
    text: str = verilog.convert(component, name=name, platform=platform, emit_src=False, strip_internal_attrs=True)
    return text
