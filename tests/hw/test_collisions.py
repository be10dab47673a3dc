# amaranth: UnusedElaboratable=no
"""No unit uses a word that was read from a memory while it was written: what such a read gives differs between devices, and the ECP5
flow (sw/synth/measure.py) tells Yosys that it does not matter."""
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.hdl._mem import MemoryInstance
from amaranth.lib.memory import Memory

from hw.lib import store
from hw.lib.fifo import Fifo
from hw.params import Lanes
from sim.memory import InMemory
from sim.run import Case, run_cases
from sw.bench.cases import cases
from sw.bench.unit_case import Copies

#: Cases of ``warploom bench units`` whose units have each kind of memory that is written, and frames of each.
NAMES = {
    "conv3x3/pe8_simd4_portable": 3, "pointwise/pe8_simd8_portable": 3, "depthwise/k3": 3, "depthwise/stride2": 3,
    "depthwise_taps/3x3_9": 3, "max_pool": 3, "global_average_pool": 3, "upsample": 3, "deform_rounded/random": 3,
    "deform_rounded/alternating": 3, "deform_free/random": 3, "deform_upsampled/inside": 3, "held/4x4x64_pe16_simd4_portable": 4,
    "fifo/lut_64": 3, "fifo/block_512": 3,
    "decode/32x32x20_1_top100": 3, "deform_memory/random": 3, "engine/pe24_simd8_portable": 4,
}  # fmt: skip


def spoilt(*, init: Any, attrs: dict[str, Any], **kinds: Any) -> Memory:
    """A memory whose answer to a read is inverted if the word was written in the same cycle."""
    memory = Memory(init=init, attrs=attrs, **kinds)
    if "ram_style" in attrs:
        memory.elaborate = lambda platform: _spoilt(memory)
    return memory


def _spoilt(memory: Memory) -> Module:
    m = Module()
    m.submodules.words = words = MemoryInstance(data=memory._data, attrs=memory.attrs)
    writers = [words.write_port(domain=w.domain, addr=w.addr, data=w.data, en=w.en) for w in memory._write_ports]
    assert len(writers) == len(memory._write_ports)
    for port in memory._read_ports:
        assert port.domain == "sync" and not port.transparent_for
        found, hit = Signal(len(Value.cast(port.data))), Signal()
        words.read_port(domain=port.domain, data=found, addr=port.addr, en=port.en, transparent_for=())
        with m.If(port.en):
            m.d.sync += hit.eq(Cat(w.en.any() & (w.addr == port.addr) for w in memory._write_ports).any())
        m.d.comb += Value.cast(port.data).eq(Mux(hit, ~found, found))
    return m


@pytest.mark.rtl
def test_a_word_read_while_it_is_written_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "Memory", spoilt)
    known = cases()
    chosen = []
    for name, count in NAMES.items():
        case = known[name]
        unit = case.make() if case.memory_latency is None else InMemory(case.make(), latency=case.memory_latency)
        chosen.append(Case(name=name, unit=unit, op=case.model, inputs=case.frames(count), interval=case.interval))
    run_cases(chosen, tmp_path, runs=((False, False), (True, True)))


class Late(Fifo):
    """Two steps late by a memory of one word, which is read while the next is written."""

    def two(self, m: Module) -> None:
        m.submodules.word = word = store.ram(self.lanes.width, 1)
        w_port, r_port = word.write_port(), word.read_port()
        written, step = Signal(), Signal()
        m.d.comb += [step.eq(~self.o.valid | self.o.ready), self.i.ready.eq(step)]
        m.d.comb += [w_port.data.eq(self.i.payload.as_value()), w_port.en.eq(step), r_port.en.eq(step)]
        m.d.comb += self.o.payload.as_value().eq(r_port.data)
        with m.If(step):
            m.d.sync += [written.eq(self.i.valid), self.o.valid.eq(written)]


@pytest.mark.rtl
@pytest.mark.parametrize("spoil", [False, True])
def test_a_word_that_is_used_is_noticed(spoil: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if spoil:
        monkeypatch.setattr(store, "Memory", spoilt)
    lanes = Lanes(lanes=2, bits=8, signed=False)
    frames = np.random.default_rng(0).integers(0, 256, (40, 1, 1, 2))
    case = Case(name="late", unit=Late(lanes, 2), op=Copies(), inputs=(frames,))  # type: ignore[arg-type]
    with pytest.raises(AssertionError) if spoil else nullcontext():
        run_cases([case], tmp_path, runs=((False, False),))
