# amaranth: UnusedElaboratable=no
"""A compiled design behind AXI."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hw.axi import AxiAccelerator
from hw.lib.axi_master import AxiReader
from hw.lib.axi_stream import stream_bits
from hw.verilog import VerilogModule
from sw.lower import Design, identifier


def wrap(design: Design, modules: Mapping[str, VerilogModule] | None = None) -> AxiAccelerator:
    """The design's accelerator with AXI edges; its registers are :class:`hw.axi.Register`; ``modules``: see :class:`hw.top.Accelerator`."""
    graph = design.graph
    kinds = {"image": graph.tensors[graph.inputs[0]].type} | {identifier(t): graph.tensors[t].type for t in graph.outputs}
    ports = design.inputs | design.outputs
    beats = {n: kinds[n].pixels * p.lanes.beats(kinds[n].channels) for n, p in ports.items()}
    return AxiAccelerator(design.accelerator(modules=modules), beats)


def describe(wrapped: AxiAccelerator) -> dict[str, Any]:
    """What software needs to know: addresses of the registers, and of each stream its ports' prefix, bytes and beats."""
    streams = {name: "s_axis" if name == "image" else f"m_axis_{name}" for name in ("image", *wrapped.outs)}
    return {
        "registers": wrapped.addresses,
        "masters": {
            name: {"port": f"m_axi_{name}", "kind": "read" if isinstance(master, AxiReader) else "write"}
            for name, master in wrapped.masters.items()
        },
        "streams": {
            name: {"port": port, "beats": wrapped.beats[name], "beat_bytes": stream_bits(wrapped.lanes[name]) // 8}
            for name, port in streams.items()
        },
    }
