"""The AXI edges against golden: frames, wrong frames, registers, thresholds, weights from memory."""
import json
import re
from pathlib import Path

import numpy as np
import pytest

from hw.axi import ID, VERSION, AxiAccelerator
from sim.axi import Scenario, Step, packet, run_scenarios
from sw import golden
from sw.axi import describe, wrap
from sw.compiler import compile, load_graph
from sw.folding.fold import choose
from sw.folding.schedule import size_fifos
from sw.graph import Graph
from sw.lower import identifier, lower
from sw.ops import Array
from sw.testing import micro_network, nano_network

ID_, VERSION_, CONTROL, STATUS, IN, OUT, SHORT, LONG, WRONG = range(0, 0x24, 4)


def wrapped(path: Path) -> tuple[Graph, AxiAccelerator]:
    graph = load_graph(path)
    design = lower(graph, choose(graph))
    design.links = size_fifos(design)
    return graph, wrap(design)


def images(graph: Graph, count: int) -> Array:
    kind = graph.tensors[graph.inputs[0]].type
    return np.random.default_rng(3).integers(0, 256, (count, *kind.shape))


def receive(graph: Graph, dut: AxiAccelerator, frames: Array) -> list[Step]:
    """Steps that take golden's answer to each frame."""
    values = golden.run(graph, frames)
    outs = {identifier(t): values[t] for t in graph.outputs}
    return [("receive", n, packet(outs[n][k], dut.lanes[n])) for k in range(len(frames)) for n in dut.outs]


@pytest.mark.rtl
def test_frames_registers_and_wrong_lengths(tmp_path: Path) -> None:
    graph, dut = wrapped(nano_network(tmp_path / "nano.onnx"))
    frames = images(graph, 4)
    good = [packet(f, dut.lanes["image"]) for f in frames]
    beat = len(good[0]) // dut.beats["image"]
    registers: list[Step] = [
        ("read", ID_, ID), ("read", VERSION_, VERSION), ("read", CONTROL, 0), ("read", STATUS, 0), ("read", IN, 0), ("read", WRONG, 0),
        ("refuse_read", 0x28), ("refuse_read", 0x40), ("refuse_read", 0xFFC), ("refuse_write", ID_), ("refuse_write", IN),
        ("refuse_write", 0x84), ("poke", CONTROL + 1, "ff"), ("read", CONTROL, 0), ("poke", CONTROL, "01"), ("read", CONTROL, 1),
        ("poke", CONTROL + 2, "ffff"), ("read", CONTROL, 1), ("write", CONTROL, 0), ("read", CONTROL, 0),
    ]  # fmt: skip
    one = receive(graph, dut, frames[:1])
    started: list[Step] = [
        ("send", good[0]), ("send", good[0]), ("quiet", 1000), ("read", STATUS, 0), ("read", IN, 0), ("write", CONTROL, 2), *one,
        ("poll", OUT, 1), ("read", IN, 1), ("read", CONTROL, 0), ("read", STATUS, 0), ("quiet", 1000), ("write", CONTROL, 2), *one,
        ("poll", OUT, 2), ("write", CONTROL, 1), ("send", good[0]), *one, ("poll", OUT, 3), ("read", CONTROL, 1),
    ]  # fmt: skip
    scenarios = [Scenario(name="registers", steps=registers), Scenario(name="registers_stalled", steps=registers, stalls=True)]
    scenarios += [Scenario(name="start", steps=started)]
    back_to_back: list[Step] = [("write", CONTROL, 1), *(("send", g) for g in good), *receive(graph, dut, frames), ("poll", OUT, 4)]
    back_to_back += [("read", STATUS, 0)]
    scenarios += [Scenario(name="full_rate", steps=back_to_back)]
    scenarios += [Scenario(name=f"stalls_{seed}", steps=back_to_back, stalls=True, seed=seed) for seed in range(3)]
    scenarios += wrong_lengths(graph, dut, frames, good, beat)
    times = run_scenarios(dut, scenarios, tmp_path / "bench")
    (ends,) = times["full_rate"].values()
    assert np.diff(ends).tolist() == [dut.frame_cycles] * 3


def wrong_lengths(graph: Graph, dut: AxiAccelerator, frames: Array, good: list[bytes], beat: int) -> list[Scenario]:
    """Packets of one beat, one beat too few, one too many, more than two frames: each is counted and a right frame follows."""
    total = len(good[0])
    scenarios = []
    for size in (beat, total - beat, total // 2 // beat * beat, total + beat, 2 * total, 2 * total + 3 * beat):
        seen = np.zeros_like(frames[1])
        flat = seen.reshape(-1, seen.shape[-1])
        kept = min(size, total) // beat
        flat[:kept] = frames[1].reshape(-1, seen.shape[-1])[:kept]
        expected = receive(graph, dut, np.stack([frames[0], seen, frames[2], frames[3]]))
        short, long = int(size < total), int(size > total)
        sent = good[0], (good[1] * 3)[:size], good[2], good[3]
        steps: list[Step] = [("write", CONTROL, 1), *(("send", data) for data in sent), *expected]
        steps += [("poll", OUT, 4), ("read", IN, 4), ("read", SHORT, short), ("read", LONG, long), ("read", WRONG, 1), ("read", STATUS, 0)]
        scenarios += [Scenario(name=f"wrong_{size}_{stalls}", steps=steps, stalls=stalls) for stalls in (False, True)]
    return scenarios


def test_compile_writes_the_wrapped_accelerator(tmp_path: Path) -> None:
    model, out = nano_network(tmp_path / "nano.onnx"), tmp_path / "compiled"
    compile(model, out)
    assert not (out / "accelerator_axi.v").exists()
    compile(model, out, axi=True)
    assert re.search(r"module accelerator_axi\(.*s_axis_tlast", (out / "accelerator_axi.v").read_text())
    assert json.loads((out / "axi.json").read_text()) == describe(wrapped(model)[1])


@pytest.mark.rtl
def test_the_micro_network_from_pixels_to_head_maps(tmp_path: Path) -> None:
    graph, dut = wrapped(micro_network(tmp_path / "micro.onnx"))
    frames = images(graph, 3)
    steps: list[Step] = [("write", CONTROL, 1), *(("send", packet(f, dut.lanes["image"])) for f in frames), *receive(graph, dut, frames)]
    steps += [("poll", OUT, 3), ("read", SHORT, 0), ("read", LONG, 0)]
    run_scenarios(dut, [Scenario(name=f"stalls_{s}", steps=steps, stalls=s) for s in (False, True)], tmp_path / "bench")
    record = describe(dut)
    assert record["registers"]["frames_out"] == OUT and record["streams"]["hm"]["port"] == "m_axis_hm"
    for _, name, data in receive(graph, dut, frames):
        assert len(data) == record["streams"][name]["beats"] * record["streams"][name]["beat_bytes"]
