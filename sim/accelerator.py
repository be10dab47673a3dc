"""The Verilated accelerator behind the runtime's interface."""
from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hw.params import Lanes
from sim.beats import beat_bytes, pack, unpack
from sim.harness import MemoryPort, StreamPort, build
from sw.compiler import load_design, load_model
from sw.errors import DeviceError
from sw.golden import check_images
from sw.graph import Graph
from sw.ops import Array, narrowest
from sw.runtime.accelerator import Accelerator, Progress, Result


@dataclass(frozen=True, kw_only=True)
class Stalls:
    """Random stalls at the edges: chance per cycle that the source offers and that the sinks take."""

    seed: int = 1
    p_valid: float = 1.0
    p_ready: float = 1.0


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """External memory: cycles from a command to its first word, words a cycle over all ports, chance per cycle that a word is given or
    taken."""

    latency: int = 100
    words_a_cycle: float = 0.8125
    p_valid: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A watched stream: its number, beats, map; ``order``: (pixels of a tile, folds, PE) where beats come tile by tile and fold by fold."""

    index: int
    lanes: Lanes
    shape: tuple[int, int, int]
    beats: int
    order: tuple[int, int, int] | None = None

    @staticmethod
    def of(index: int, entry: dict[str, Any]) -> Probe:
        order = entry.get("order")
        return Probe(
            index=index, lanes=_lanes(entry), shape=tuple(entry["shape"]), beats=entry["beats"],
            order=(order["tile"], order["folds"], order["pe"]) if order else None,
        )  # fmt: skip


class VerilatorAccelerator(Accelerator):
    """Simulates every cycle of a compiled accelerator; all streams between units can be read.

    ``folder`` is what ``compile`` wrote. The C++ build is cached by the content of the Verilog.
    """

    def __init__(self, folder: Path, stalls: Stalls = Stalls(), watchdog: int = 200_000, memory: MemoryModel = MemoryModel()) -> None:
        self.folder = folder
        self.stalls, self.watchdog, self.memory = stalls, watchdog, memory
        self.design = load_design(folder)
        self.graph: Graph = load_model(folder)
        self.image = self._port(self.design["input"])
        self.outputs = [self._port(o) for o in self.design["outputs"]]
        self.probes = {p["tensor"]: Probe.of(k, p) for k, p in enumerate(self.design["probes"])}
        self.memories = [MemoryPort(**{k: v for k, v in m.items() if k not in ("bytes", "filled")}) for m in self.design["memories"]]
        #: What the plain inputs hold, such as the decoder's threshold.
        self.controls = {c["port"]: c["value"] & (1 << c["bits"]) - 1 for c in self.design["controls"]}
        self._program: Path | None = None

    def _port(self, entry: dict[str, Any]) -> StreamPort:
        height, width, channels = entry["shape"]
        lanes = _lanes(entry)
        return StreamPort(name=entry["port"], lanes=lanes, beats=height * width * lanes.beats(channels))

    @property
    def program(self) -> Path:
        """The harness, built when first asked for."""
        if self._program is None:
            verilog = (self.folder / "accelerator_sim.v").read_text()
            probes = [(p.lanes, p.beats) for p in self.probes.values()]
            self._program = build(verilog, "accelerator", self.image, self.outputs, probes, self.memories, self.controls)
        return self._program

    def run(self, images: Array, keep: Collection[str] = (), progress: Progress | None = None) -> Result:
        images = check_images(self.graph, images)
        work = Path(tempfile.mkdtemp(prefix="warploom-sim."))
        try:
            self._simulate(work, images, bool(keep), progress)
            return self._read(work, images, keep)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def record(self, images: Array, folder: Path, progress: Progress | None = None) -> Result:
        """Like ``run``, and keep every stream of the run in ``folder`` (empty before) for :class:`Recording`."""
        images = check_images(self.graph, images)
        self._simulate(folder, images, True, progress)
        (folder / "verilog.sha256").write_text(self.fingerprint())
        return self._read(folder, images, ())

    def fingerprint(self) -> str:
        """Hash of the Verilog that is simulated: a recording of any other text is worth nothing."""
        return hashlib.sha256((self.folder / "accelerator_sim.v").read_bytes()).hexdigest()

    def _simulate(self, work: Path, images: Array, record: bool, progress: Progress | None) -> None:
        (work / "image.bin").write_bytes(pack(images, self.image.lanes).tobytes())
        frames, s = len(images), self.stalls
        command = [self.program, work / "image.bin", work, frames, s.seed, s.p_valid, s.p_ready, self.watchdog, int(record)]
        command += [self.folder / "memory.bin", self.memory.latency, self.memory.words_a_cycle, self.memory.p_valid]
        with subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = []
            try:
                for line in process.stderr:
                    if line.startswith("frame "):
                        if progress:
                            progress(int(line.split()[1]), frames)
                    else:
                        said.append(line)
            except BaseException:
                process.kill()
                raise
        if process.returncode == 3:
            raise DeviceError(self._stuck(work, frames))
        if process.returncode:
            raise DeviceError(f"the simulation failed with status {process.returncode}: {''.join(said)[-2000:]}")

    def _stuck(self, work: Path, frames: int) -> str:
        """Why nothing moves any more: the edges where it begins, then the state of every stream that is short, in network order."""
        states, lines = {}, []
        names = list(self.probes)
        for line in (work / "stats.txt").read_text().splitlines():
            if line.startswith("probe "):
                k, got, _, valid, ready = map(int, line.split()[1:])
                want = self.probes[names[k]].beats * frames
                if got < want:
                    states[names[k]] = "waits for its reader" if valid and not ready else "nothing offered" if not valid else "moving"
                    lines.append(f"  {names[k]}: {got} of {want} beats, {states[names[k]]}")
        header = [f"no beat moved for {self.watchdog} cycles", *stuck_edges(self.graph, states), "streams short of beats or waiting:"]
        return "\n".join([*header, *lines][:40])

    def _read(self, work: Path, images: Array, keep: Collection[str]) -> Result:
        frames = len(images)
        tensors = {}
        for tensor in keep:
            if tensor in self.graph.inputs:
                tensors[tensor] = images
                continue
            probe = self.probes[tensor]
            tensors[tensor] = _tensor(work / f"{probe.index}.bin", probe, frames)
        outputs: dict[str, Array] = {}
        for k, entry in enumerate(self.design["outputs"]):
            outputs[entry["tensor"]] = _tensor(work / f"out{k}.bin", Probe.of(k, entry), frames).astype(np.int64)
        found, cycles = {t: outputs[t] for t in self.graph.outputs}, _cycles(work, frames)
        return Result(outputs=found, tensors=tensors, cycles=cycles, slowest=_slowest(work, cycles))


def stuck_edges(graph: Graph, states: dict[str, str]) -> list[str]:
    """Where a standstill begins, in words: offered beats whose reader neither takes them nor itself waits for a reader."""
    found = []
    for tensor in (t for t, state in states.items() if state == "waits for its reader"):
        readers = [n for n in graph.nodes if tensor in n.inputs]
        if not readers:
            found.append(f"stuck edge {tensor} -> outside: nobody takes it")
        elif not any(states.get(o) == "waits for its reader" for n in readers for o in n.outputs):
            starved = [f"{t} -> {n.name}" for n in readers for t in n.inputs if states.get(t) == "nothing offered"]
            into = ", ".join(f"{n.name} ({n.op.name})" for n in readers)
            found.append(f"stuck edge {tensor} -> {into}: not taken" + f", while {', '.join(starved)} brings nothing" * bool(starved))
    return found


class Recording(VerilatorAccelerator):
    """What a simulation recorded, for exactly the images that it ran: nothing is simulated again."""

    def __init__(self, folder: Path, recorded: Path) -> None:
        super().__init__(folder)
        self.recorded = recorded

    def holds(self, images: Array) -> bool:
        """Whether the recording is of this Verilog and of these images."""
        verilog, image = self.recorded / "verilog.sha256", self.recorded / "image.bin"
        if not verilog.is_file() or not image.is_file() or verilog.read_text() != self.fingerprint():
            return False
        return image.read_bytes() == pack(check_images(self.graph, images), self.image.lanes).tobytes()

    def run(self, images: Array, keep: Collection[str] = (), progress: Progress | None = None) -> Result:
        if not self.holds(images):
            raise DeviceError(f"{self.recorded}: recorded from other Verilog or other images; run `warploom simulate` again")
        return self._read(self.recorded, images, keep)


def _lanes(entry: dict[str, Any]) -> Lanes:
    return Lanes(lanes=entry["lanes"], bits=entry["bits"], signed=entry["signed"])


def _tensor(path: Path, probe: Probe, frames: int) -> Array:
    lanes, (height, width, channels) = probe.lanes, probe.shape
    raw = np.fromfile(path, np.uint8).reshape(-1, beat_bytes(lanes))
    if len(raw) < frames * probe.beats:
        raise DeviceError(f"{path.name}: {len(raw)} beats of {frames * probe.beats} were recorded")
    parts = []
    kind = narrowest(lanes.bits)
    for k in range(frames):  # frame by frame keeps the unpacked bits small
        beats = raw[k * probe.beats : (k + 1) * probe.beats]
        if probe.order is None:
            parts.append(unpack(beats, lanes, channels).reshape(height, width, channels).astype(kind))
            continue
        tile, folds, pe = probe.order
        values = unpack(beats, lanes, lanes.lanes).reshape(-1, folds, tile, pe)
        parts.append(values.transpose(0, 2, 1, 3).reshape(height, width, folds * pe)[..., :channels].astype(kind))
    return np.stack(parts)


def _slowest(work: Path, cycles: list[tuple[int, int]]) -> float:
    """The mean interval of frames at the watched stream where it is longest; 0 if there are not two frames.

    In a run long enough to have two such frames, those count from half of them on, when what streams share has long had as much to do as
    it ever has, to the last that leaves the accelerator while others still enter: after it the pipeline drains, faster than it could go
    on. There the longer of the intervals at which frames enter and leave is meant: streams of a unit that takes turns are early in one
    frame and late in the next. A shorter run counts the frames that end at a stream from when the first has left; or all but the first.
    """
    half, fed = len(cycles) // 2, sum(end <= cycles[-1][0] for _, end in cycles)
    if fed > half + 1:
        return max(mean_interval([each[side] for each in cycles[half:fed]]) for side in (0, 1))
    lines = [line.split() for line in (work / "stats.txt").read_text().splitlines() if line.startswith("ends ")]
    ends = [[int(word) for word in words[2:]] for words in lines]
    steady = [late for each in ends if len(late := [e for e in each if e >= cycles[0][1]]) > 2]
    return max(map(mean_interval, steady or [each[1:] if len(each) > 2 else each for each in ends]), default=0.0)


def mean_interval(ends: list[int]) -> float:
    """Cycles between the frames that end at these cycles, on average; 0 if there are not two."""
    return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0


def _cycles(work: Path, frames: int) -> list[tuple[int, int]]:
    """(cycle of the first input beat, cycle of the last output beat) of each frame."""
    starts: list[int] = []
    ends: dict[int, list[int]] = {}
    for line in (work / "stats.txt").read_text().splitlines():
        word, *numbers = line.split()
        if word == "start":
            starts.append(int(numbers[0]))
        elif word == "output":
            ends.setdefault(int(numbers[0]), []).append(int(numbers[2]))
    last = [max(e[f] for e in ends.values()) for f in range(frames)]
    return list(zip(starts[:frames], last, strict=True))

