"""cocotb bench: many units side by side, each fed with its vectors and compared with golden. Started by sim.run."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge

from hw.params import Lanes
from sim.beats import locate, unpack, words

#: Errors kept for each stream: the first tells most.
MAX_ERRORS = 3
#: Cycles after the last expected beat in which nothing more may come.
QUIET_CYCLES = 24
#: Chances that a stalling stream is willing in a cycle; every stream draws one of them.
WILLING = (0.3, 0.6, 0.9)


def title(spec: dict[str, Any]) -> str:
    """A stream in words."""
    return f"{spec['case']} ({spec['unit']}) {spec['port']}"


class Source:
    """Feeds one input; while not valid its payload is the complement of the next beat, so that looking early is caught."""

    def __init__(self, spec: dict[str, Any], beats: Any, handle: Any) -> None:
        self.spec, self.handle = spec, handle
        self.words = words(beats)
        self.mask = (1 << spec["lanes"]["lanes"] * spec["lanes"]["bits"]) - 1
        self.sent = 0
        self.valid = False
        self.first: int | None = None

    def drive(self, willing: bool) -> bool:
        """Set the payload for this cycle; True if it is valid."""
        left = self.sent < len(self.words)
        was, self.valid = self.valid, left and (self.valid or willing)
        if self.valid and not was:
            self.handle.value = self.words[self.sent]
        return self.valid

    def taken(self, cycle: int) -> None:
        """The beat was accepted in this cycle."""
        self.first = cycle if self.first is None else self.first
        self.sent += 1
        self.valid = False

    def idle(self) -> None:
        """Put rubbish on the payload (only called when the beat is not valid in the next cycle)."""
        if self.sent < len(self.words):
            self.handle.value = ~self.words[self.sent] & self.mask


class Sink:
    """Takes one output and compares it; checks that valid and payload are held until taken."""

    def __init__(self, spec: dict[str, Any], beats: Any, handle: Any) -> None:
        self.spec, self.handle, self.beats = spec, handle, beats
        self.words = words(beats)
        self.lanes = Lanes(**spec["lanes"])
        self.errors: list[str] = []
        self.held: int | None = None
        self.got = 0
        self.first: int | None = None
        self.frame_ends: list[int] = []

    def where(self) -> str:
        """The beat being looked at."""
        return f"{title(self.spec)} beat {self.got}: {locate(self.got, self.spec['shape'], self.lanes)}"

    def fail(self, message: str) -> None:
        """Remember the first few errors."""
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(f"{self.where()}: {message}")

    def sample(self, valid: bool, ready: bool, cycle: int) -> None:
        """Look at the stream after it has settled in this cycle."""
        if not valid:
            if self.held is not None:
                self.fail("valid was withdrawn before the beat was taken")
            self.held = None
            return
        got = int(self.handle.value)
        if self.held is not None and self.held != got:
            self.fail(f"payload changed from {self.held:#x} to {got:#x} while it waited")
        self.held = None if ready else got
        if ready:
            self.first = cycle if self.first is None else self.first
            self.compare(got)
            self.got += 1
            if self.got % self.spec["frame_beats"] == 0:
                self.frame_ends.append(cycle)

    def compare(self, got: int) -> None:
        """Compare one beat and name the first wrong lane."""
        if self.got >= len(self.words):
            self.fail(f"a beat too many, {got:#x}")
        elif got != self.words[self.got]:
            size = self.beats.shape[1]
            raw = np.frombuffer(got.to_bytes(size, "little"), np.uint8)
            values = unpack(raw[None], self.lanes, self.lanes.lanes)[0]
            wanted = unpack(self.beats[self.got][None], self.lanes, self.lanes.lanes)[0]
            lane = int(np.flatnonzero(values != wanted)[0])
            self.fail(f"lane {lane}: got {values[lane]}, expected {wanted[lane]} (beat: got {values.tolist()}, expected {wanted.tolist()})")

    def finish(self, full_rate: bool) -> list[str]:
        """All errors of this stream, including missing beats and a wrong rate."""
        if self.got < len(self.words):
            self.fail(f"timeout: {self.got} of {len(self.words)} beats came")
        elif full_rate and len(self.frame_ends) >= 3:
            interval = self.frame_ends[-1] - self.frame_ends[-2]
            claim = self.spec["frame_cycles"]
            if interval > claim or (interval < claim and not self.spec["varies"]):
                self.fail(f"back-to-back frames took {interval} cycles, frame_cycles says {claim} (frames ended at {self.frame_ends})")
        return self.errors


def load(dut: Any) -> tuple[list[Source], list[Sink], int]:
    """Streams of all cases, and the cycles to allow."""
    folder = Path(os.environ["WARPLOOM_VECTORS"])
    plan = json.loads((folder / "plan.json").read_text())
    with np.load(folder / "beats.npz") as beats:
        sources = [Source(spec, beats[spec["name"]], getattr(dut, spec["name"])) for spec in plan["inputs"]]
        sinks = [Sink(spec, beats[spec["name"]], getattr(dut, spec["name"])) for spec in plan["outputs"]]
    return sources, sinks, plan["max_cycles"]


def coins(rng: np.random.Generator, count: int, stall: bool) -> Any:
    """A function that says for each of ``count`` streams whether it is willing in the next cycle."""
    if not stall:
        return lambda: [True] * count
    chance = rng.choice(WILLING, count)
    return lambda: (rng.random(count) < chance).tolist()


@cocotb.test()
@cocotb.parametrize(stall_i=[False, True], stall_o=[False, True])
async def matches_golden(dut: Any, stall_i: bool, stall_o: bool) -> None:
    """All cases at once: every output beat equals golden, at full rate also in time."""
    if [stall_i, stall_o] not in json.loads(os.environ["WARPLOOM_RUNS"]):
        return  # this combination was not asked for
    sources, sinks, max_cycles = load(dut)
    rng = np.random.default_rng([7, stall_i, stall_o])
    will_i, will_o = coins(rng, len(sources), stall_i), coins(rng, len(sinks), stall_o)
    dut.rst.value = 1
    dut.i_valid.value = 0
    dut.o_ready.value = 0
    clock = Clock(dut.clk, 10, unit="ns")
    clock.start(start_high=False)
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    await drive(dut, sources, sinks, will_i, will_o, max_cycles)
    clock.stop()
    if not (stall_i or stall_o):
        times = {"first_in": [s.first for s in sources], "first_out": [s.first for s in sinks], "ends": [s.frame_ends for s in sinks]}
        Path("times.json").write_text(json.dumps(times))
    errors = [error for sink in sinks for error in sink.finish(full_rate=not (stall_i or stall_o))]
    errors += [f"{title(s.spec)}: only {s.sent} of {len(s.words)} beats were taken" for s in sources if s.sent < len(s.words)]
    if errors:
        run = f"stall_i={stall_i} stall_o={stall_o}"
        with open("failures.txt", "a") as log:
            log.writelines(f"[{run}] {error}\n" for error in errors)
        raise AssertionError("\n".join(errors))


async def drive(dut: Any, sources: list[Source], sinks: list[Sink], will_i: Any, will_o: Any, max_cycles: int) -> None:
    """Run until every beat is taken, every expected one has come and nothing more for QUIET_CYCLES, or for ``max_cycles``."""
    i_valid, i_ready, o_valid, o_ready, clk = dut.i_valid, dut.i_ready, dut.o_valid, dut.o_ready, dut.clk
    quiet = 0
    for cycle in range(max_cycles):
        valid = [source.drive(willing) for source, willing in zip(sources, will_i(), strict=True)]
        ready = will_o()
        i_valid.value = sum(1 << k for k, on in enumerate(valid) if on)
        o_ready.value = sum(1 << k for k, on in enumerate(ready) if on)
        await ReadOnly()
        accepted, offered = int(i_ready.value), int(o_valid.value)
        for k, sink in enumerate(sinks):
            sink.sample(bool(offered >> k & 1), ready[k], cycle)
        finished = all(sink.got >= len(sink.words) for sink in sinks) and all(source.sent == len(source.words) for source in sources)
        quiet = quiet + 1 if finished else 0
        await RisingEdge(clk)
        if quiet == QUIET_CYCLES:
            return
        for k, source in enumerate(sources):
            if valid[k] and accepted >> k & 1:
                source.taken(cycle)
                source.idle()
