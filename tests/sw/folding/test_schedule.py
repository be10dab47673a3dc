"""The static schedule: its arithmetic against plain loops, and the depths that come out of it."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hw.units.decode import PEAK
from sim.accelerator import VerilatorAccelerator
from sw import compiler
from sw.engine import EnginePlan, Place, requant_of
from sw.errors import DeviceError
from sw.folding import schedule, timing
from sw.folding.fold import choose
from sw.folding.schedule import most_waiting, simulate, size_fifos
from sw.lower import Design, identifier, lower
from sw.ops import Deform
from sw.testing import QonnxWriter, micro_network, nano_network


def test_serve_is_a_queue() -> None:
    rng = np.random.default_rng(0)
    for cost in (1, 3, 7):
        ready = np.sort(rng.integers(0, 100, 30))
        free, done = 0, []
        for r in ready:
            free = max(free, int(r)) + cost
            done.append(free)
        assert timing.serve(ready, cost).tolist() == done


@pytest.mark.parametrize(("channels", "lanes_in", "lanes_out"), [(8, 4, 2), (8, 2, 4), (5, 2, 3), (7, 7, 1), (6, 4, 3)])
def test_regroup_waits_for_the_last_channel_of_a_beat(channels: int, lanes_in: int, lanes_out: int) -> None:
    n_in, n_out = -(-channels // lanes_in), -(-channels // lanes_out)
    arrivals = np.arange(3 * n_in) * 10
    writes = timing.regroup(arrivals, channels, lanes_in, lanes_out).writes[0]
    assert len(writes) == 3 * n_out
    for k, time in enumerate(writes):
        pixel, beat = divmod(k, n_out)
        last = min((beat + 1) * lanes_out, channels) - 1
        assert time > arrivals[pixel * n_in + last // lanes_in]


@pytest.fixture(scope="module")
def design(tmp_path_factory: pytest.TempPathFactory) -> Design:
    graph = compiler.load_graph(micro_network(tmp_path_factory.mktemp("schedule") / "m.onnx"))
    return lower(graph, choose(graph))


def test_every_beat_is_read_after_it_came(design: Design) -> None:
    found = list(simulate(design))
    assert sorted(k.name for k, _, _ in found) == sorted(k.name for k in design.links)
    for link, a, r in found:
        assert len(a) == len(r) and (r >= a).all() and (np.diff(a) >= 0).all(), link.name


def test_most_waiting_counts_what_a_plain_queue_holds() -> None:
    rng = np.random.default_rng(1)
    for size, gap, cost in ((1, 3, 2), (40, 1, 1), (600, 3, 2), (3000, 2, 3), (5000, 7, 3)):
        burst = rng.integers(1, 9, size)
        arrivals = np.repeat(np.cumsum(rng.integers(0, gap * 8, size)), burst)  # some come together
        reads = timing.serve(arrivals, cost)
        taken, most = 0, 0
        for come, arrival in enumerate(arrivals, 1):
            while taken < len(reads) and reads[taken] <= arrival:
                taken += 1
            most = max(most, come - taken)
        assert most_waiting(arrivals, reads) == most
    assert most_waiting(arrivals, arrivals) == most_waiting(arrivals, arrivals.copy()) == 0


def test_times_in_32_bits_give_the_depths_of_64(design: Design, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {a.dtype for _, a, _ in simulate(design)} == {r.dtype for _, _, r in simulate(design)} == {np.dtype(np.int32)}
    short = [k.depth for k in size_fifos(design)]
    monkeypatch.setattr(schedule, "MARGIN", 1 << 31)
    assert {a.dtype for _, a, _ in simulate(design)} == {np.dtype(np.int64)} and [k.depth for k in size_fifos(design)] == short


def test_branches_that_wait_for_each_other_get_room(design: Design) -> None:
    depths = {k.name: k.depth for k in size_fifos(design)}
    # The kept half of a shuffle block waits for two pointwise layers and a line buffer.
    assert depths["fifo_joined_node_i0"] > depths["fifo_pw1_conv_node_i"]
    # A deformable layer's offsets are ready rows before the features that they reach for.
    assert depths["fifo_dec1_deform_node_offset_i"] > 0
    assert sum(k.depth * k.source.lanes.width for k in size_fifos(design)) < 40_000  # bits


@pytest.mark.rtl
def test_without_that_room_the_network_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(design: Design) -> list[object]:
        return [replace(k, depth=1 if "joined" in k.target.unit else k.depth) for k in size_fifos(design)]

    monkeypatch.setattr(compiler, "size_fifos", starved)
    compiler.compile(nano_network(tmp_path / "m.onnx"), tmp_path / "compiled")
    accelerator = VerilatorAccelerator(tmp_path / "compiled", watchdog=3000)
    with pytest.raises(DeviceError, match=r"(?s)no beat moved.*waits for its reader"):
        accelerator.run(np.zeros((1, 16, 16, 3), np.int64))


def test_a_decoder_keeps_sizes_until_the_window_of_their_pixel_is_whole() -> None:
    """A 6×8 map of two beats a pixel: pixel (r, c) goes with the last beat of (r + 1, c + 1); its records follow the last pixel."""
    beat = np.arange(2 * 6 * 8 * 2, dtype=np.int64)
    pixel = beat[1::2]
    found = timing.decode((beat, pixel, pixel), 2, (6, 8, 2), PEAK, 5)
    waits = (found.reads[1] - pixel).reshape(2, 6, 8)
    assert (found.reads[1] == found.reads[2]).all() and (waits[:, :5, :7] == waits[0, 0, 0]).all() and waits[0, 0, 0] >= 9 * 2
    assert found.writes[0].tolist() == [found.reads[1][47] + timing.LATENCY + k for k in range(5)] + [
        found.reads[1][95] + timing.LATENCY + k for k in range(5)
    ]
    late = timing.decode((beat, pixel + 1000, pixel), 2, (6, 8, 2), PEAK, 5)  # sizes that come late hold the heat back
    assert (late.reads[1] >= pixel + 1000).all() and late.reads[0][-1] >= 1000


def test_a_fork_behind_the_engine_keeps_its_branches_in_step(tmp_path: Path) -> None:
    """A tile, here a frame, leaves at once, but a deformable layer's features come no faster than its offsets' branch takes them.

    Both hang on one fork, so all offsets of the rows that the layer waits for need room (config d locked with a tile less).
    """
    w = QonnxWriter(16, 16, seed=3)
    x = w.conv(w.conv(w.image, "stem", 8, kernel=3, bits=8), "wide", 64)
    graph = compiler.load_graph(w.save(tmp_path / "m.onnx", [w.deform(x, w.offsets(x, "offset"), "deform")]))
    layer = next(n for n in graph.nodes if requant_of(graph, n) is not None)
    places = {layer.name: Place(tile=256, in_blocks=64, out_blocks=512)}
    plan = EnginePlan(pe=4, simd=8, data_bits=64, places=places, store="memory", operands=256, results=2048)
    design = lower(graph, choose(graph, 20_000, engine=plan), plan)
    deform = next(n for n in graph.nodes if isinstance(n.op, Deform))
    (depth,) = (k.depth for k in size_fifos(design) if k.target.unit == identifier(deform.name) and k.target.port == "offset_i")
    assert isinstance(deform.op, Deform)
    rows = deform.op.ring(graph.types(deform.inputs)[0]).last_read(0) + 1
    assert depth >= 16 * rows - 1


@pytest.mark.rtl
def test_tight_line_buffers_behind_each_other_do_not_stop_their_input(tmp_path: Path) -> None:
    """A pool gives its rows in bursts, the depthwise convolution behind it likewise: a layer that takes nearly the whole interval has
    room for them (config e took 8/7 of its interval)."""
    w = QonnxWriter(32, 256, seed=5)
    x = w.max_pool(w.conv(w.image, "stem", 8, kernel=3, stride=2, bits=8), "pool")
    x = w.conv(x, "dw", 8, kernel=3, stride=2, depthwise=True, relu=False)
    model = w.save(tmp_path / "m.onnx", [w.conv(x, "pw", 64, relu=False)])
    graph = compiler.load_graph(model)
    lanes = {"conv": [(3, 2), (1, 1)], "max_pool": [(1, 1)], "depthwise": [(1, 1)]}  # stem 73,728 cycles, then 36,864, 9,216, 65,536
    pins = {}
    for node in graph.nodes:
        if node.op.name in lanes:
            lanes_in, lanes_out = lanes[node.op.name].pop(0)
            pins[node.name] = {"lanes_in": lanes_in, "lanes_out": lanes_out, "lines": "ring" if node.op.name == "conv" else "tight"}
    (tmp_path / "folding.json").write_text(json.dumps(pins))
    record = compiler.compile(model, tmp_path / "compiled", target_cycles=73_728, folding=tmp_path / "folding.json")
    assert record["interval_cycles"] == 73_728
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 256, 3))
    starts = [start for start, _ in VerilatorAccelerator(tmp_path / "compiled").run(images).cycles]
    assert np.diff(starts).max() <= 1.01 * 73_728
