"""Masters of units: a network whose engine reads its weights, and whose deformable map is written and gathered, by AXI4."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hw.axi import Register
from hw.lib.axi_master import AxiReader, AxiWriter
from hw.lib.memory import ReadPort, WritePort
from sim.axi import Scenario, Step, packet, run_scenarios
from sw import axi, golden
from sw.compiler import load_graph
from sw.engine import EnginePlan, Place
from sw.folding.fold import choose, in_memory
from sw.folding.schedule import size_fifos
from sw.lower import Design, identifier, lower
from sw.testing import QonnxWriter

#: Where the regions lie: not at the start of a page, so that bursts meet its end.
BASE = 0x2F80


def design_of(folder: Path) -> Design:
    w = QonnxWriter(16, 16, seed=3)
    x = w.conv(w.conv(w.image, "stem", 8, kernel=3, stride=2, bits=8), "deep", 16)
    head = w.conv(w.deform(x, w.offsets(x, "offset"), "gather"), "head", 5, relu=False)
    graph = load_graph(w.save(folder / "net.onnx", [head]))
    deform, deep = (next(n for n in graph.nodes if n.name.startswith(name)) for name in ("gather", "deep"))
    pin = in_memory(deform, graph.tensors[deform.inputs[0]].type, 32)
    engine = EnginePlan(pe=4, simd=4, data_bits=64, places={deep.name: Place(tile=8)})
    design = lower(graph, choose(graph, 8000, {deform.name: pin}, engine=engine), engine)
    design.links = size_fifos(design)
    return design


@pytest.mark.rtl
def test_weights_and_maps_by_axi(tmp_path: Path) -> None:
    design = design_of(tmp_path)
    dut = axi.wrap(design)
    (image,) = design.graph.inputs
    frames = np.random.default_rng(3).integers(0, 256, (3, *design.graph.tensors[image].type.shape))
    wanted = golden.run(design.graph, frames, keep=())
    ports = {p["port"]: p for p in design.memory_ports()}
    assert set(ports) == set(dut.masters) and {p["kind"] for p in ports.values()} == {"read", "write"}
    steps: list[Step] = [("fill", BASE, design.memory_image())]
    steps += [("write", dut.addresses[name], BASE + p["base"]) for name, p in ports.items()]
    steps += [("write", Register.CONTROL, 1), *(("send", packet(f, dut.lanes["image"])) for f in frames)]
    for k in range(len(frames)):
        steps += [("receive", identifier(t), packet(wanted[t][k], dut.lanes[identifier(t)])) for t in design.graph.outputs]
    steps += [("poll", Register.STATUS, 0), ("read", Register.READ_ERRORS, 0), ("read", Register.FRAMES_OUT, len(frames))]
    run_scenarios(dut, [Scenario(name=f"stalls_{s}", steps=steps, stalls=s) for s in (False, True)], tmp_path / "bench")


def test_what_does_not_fit_is_refused() -> None:
    read, write = ReadPort(address_bits=20, data_bits=128), WritePort(address_bits=20, data_bits=128)
    with pytest.raises(ValueError, match=r"burst must be in 1\.\.256, not 257"):
        AxiReader(read, burst=257)
    with pytest.raises(ValueError, match="outstanding must be a positive integer, not 0"):
        AxiWriter(write, outstanding=0)
    with pytest.raises(ValueError, match=r"address_bits must be in 20\.\.64, not 16"):
        AxiWriter(write, address_bits=16)
