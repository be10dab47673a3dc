"""Bugs planted in the hardware are caught, and the message leads to the place."""
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal

import hw.top
from hw.lib import fixed, ring
from hw.lib.fifo import Fifo
from sim.accelerator import VerilatorAccelerator
from sw.compiler import compile
from sw.errors import DeviceError
from sw.testing import nano_network
from sw.verify import verify

pytestmark = pytest.mark.rtl


def outcome(folder: Path) -> dict[str, Any]:
    """What verification says of a compiled design."""
    accelerator = VerilatorAccelerator(folder, watchdog=5000)
    (name,) = accelerator.graph.inputs
    images = np.random.default_rng(0).integers(0, 256, (2, *accelerator.graph.tensors[name].type.shape))
    return verify(accelerator.graph, images, None, accelerator).record()


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    # Bugs are planted in what runs, not in the sources that the cache of modules goes by.
    monkeypatch.setenv("WARPLOOM_CACHE", str(tmp_path / "cache"))

    def make() -> Path:
        compile(nano_network(tmp_path / "nano.onnx"), tmp_path / "compiled")
        return tmp_path / "compiled"

    return make


def test_without_a_bug_nothing_differs(build: Callable[[], Path]) -> None:
    assert outcome(build())["mismatches"] == 0


def test_a_flipped_weight_bit_is_found_in_its_layer(build: Callable[[], Path]) -> None:
    folder = build()
    path = folder / "accelerator_sim.v"
    text = path.read_text()
    owner = re.search(r"^ *(depthwise_\w+) dw_conv_node ", text, re.M)
    assert owner, "no instance of the layer's module"
    module = re.search(rf"module \\{owner.group(1)}\.mac\.weights\.rows_lut_table0 .*?endmodule", text, re.S)
    assert module, "no module of the layer's weights"
    row = re.search(r"rows\[4\] = \d+'h[0-9a-f]*([0-9a-f]);", module.group(0))
    assert row, "no weight memory in the layer's module"
    at = module.start() + row.start(1)
    path.write_text(text[:at] + f"{int(text[at], 16) ^ 1:x}" + text[at + 1 :])
    record = outcome(folder)
    assert record["mismatches"] > 0
    first = record["first_mismatch"]
    assert first["node"] == "dw.conv_node" and first["tensor"] == "dw.conv"
    assert {"image", "row", "column", "channel", "golden", "rtl", "inputs"} <= set(first) and first["golden"] != first["rtl"]


class LosingFifo(Fifo):
    """Forgets the third beat that it is given."""

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.inner = inner = Fifo(self.lanes, self.depth)
        count = Signal(8)
        lost = Signal()
        m.d.comb += [
            lost.eq(count == 2),
            inner.i.payload.eq(self.i.payload),
            inner.i.valid.eq(self.i.valid & ~lost),
            self.i.ready.eq(inner.i.ready),
            self.o.payload.eq(inner.o.payload),
            self.o.valid.eq(inner.o.valid),
            inner.o.ready.eq(self.o.ready),
        ]
        with m.If(self.i.valid & self.i.ready & (count != 255)):
            m.d.sync += count.eq(count + 1)
        return m


def test_a_beat_lost_in_a_fifo_is_found_at_the_join(build: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hw.top, "Fifo", LosingFifo)
    folder = build()
    with pytest.raises(DeviceError, match=r"(?s)no beat moved.*short of beats.*joined: \d+ of \d+ beats"):
        outcome(folder)


def test_a_line_buffer_one_row_short_is_found_in_its_layer(build: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plant_short_ring(monkeypatch)
    folder = build()
    try:
        record = outcome(folder)
    except DeviceError as error:
        assert re.search(r"stem\.conv: \d+ of \d+ beats", str(error))
    else:
        assert record["first_mismatch"]["node"] in ("stem.conv_node", "dw.conv_node")


def plant_short_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring of every sliding window loses one row of the map."""
    import hw.lib.window as window

    whole = ring.window_ring

    def short(height: int, width: int, kernel: Any, tight: bool) -> ring.WindowRing:
        from dataclasses import replace

        right = whole(height, width, kernel, tight)
        return replace(right, pixels=right.pixels - width)

    monkeypatch.setattr(window, "window_ring", short)


def test_a_wrong_rounding_constant_is_found_in_a_requantization(build: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import hw.units.requant as requant

    whole = fixed.round_kept
    monkeypatch.setattr(requant, "round_kept", lambda kept, sticky, rounding: whole(kept, sticky, "floor"))
    record = outcome(build())
    assert record["mismatches"] > 0 and record["first_mismatch"]["op"] == "requant"
