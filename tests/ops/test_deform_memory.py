# amaranth: UnusedElaboratable=no
"""The deformable unit whose map lies in external memory, against golden and the exact count of what it reads."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hw.lib.deform_memory import DeformMemoryUnit
from hw.params import Lanes
from hw.testing import run_streams, until
from sim.beats import pack, unpack
from sim.memory import InMemory
from sim.run import Case
from sw.errors import CompileError
from sw.folding.deform_memory import Traffic, most_traffic, pixels_read, traffic_of
from sw.ops import Array, Deform, TensorType


def deform(channels: int, frac_bits: int, *, reach: int = 8, size: int = 3, free: bool = False, base: int | None = None) -> Deform:
    rng = np.random.default_rng(channels)
    weights = rng.integers(-7, 8, (size, size, channels))
    weights[weights == 0] = 3
    bias = rng.integers(-(1 << 14), 1 << 14, channels)
    low, high = -reach << frac_bits, reach - 1 << frac_bits
    return Deform(weights=weights, bias=bias, frac_bits=frac_bits, low=low, high=high, free=free, base=base)


def kind(height: int, width: int, op: Deform, *, signed: bool = False, bits: int = 8) -> TensorType:
    return TensorType(height=height, width=width, channels=len(op.bias), bits=bits, signed=signed)


def unit(op: Deform, x: TensorType, data_bits: int, /, **changes: Any) -> DeformMemoryUnit:
    offset = Lanes(lanes=1 + op.free, bits=6 + op.frac_bits, signed=True)
    (out,) = op.infer(x, replace(x, channels=op.offsets, bits=offset.bits, signed=True))
    lanes = data_bits // (8 if x.bits <= 8 else 16)
    arguments = {
        "height": x.height, "width": x.width, "channels": x.channels, "weights": op.weights.tolist(), "bias": op.bias.tolist(),
        "frac_bits": op.frac_bits, "low": op.low, "high": op.high, "base": op.base, "free": op.free, "offset": offset,
        "i": Lanes(lanes=lanes, bits=x.bits, signed=x.signed), "o": Lanes(lanes=lanes, bits=out.bits, signed=True), "data_bits": data_bits,
    }  # fmt: skip
    return DeformMemoryUnit(**(arguments | changes))


def maps(op: Deform, x: TensorType, frames: int) -> tuple[Array, Array]:
    """Maps, and offsets that are extremes, all near whole pixels, beyond the range and random ones, a frame each."""
    rng = np.random.default_rng(9)
    values = rng.integers(x.lowest, x.highest + 1, (frames, *x.shape))
    values[0] = rng.choice([x.lowest, x.highest], x.shape)
    offset = rng.integers(op.low, op.high + 1, (frames, x.height, x.width, op.offsets))
    offset[0] = rng.choice([op.low, op.high], offset[0].shape)
    offset[1] = rng.integers(op.low - 4, op.high + 5, offset[1].shape)
    offset[2:3] = rng.integers(-2, 3, offset[2:3].shape)
    # Where nearly everything lies outside, finding that out takes longer than the data: the interval of the last frame is to be exact.
    read, idle = pixels_read(op, x, offset[-1])
    offset[-1][read + idle < len(op.weights) ** 2] = 0 if op.free else -op.origin
    return values, offset


def case(
    op: Deform, height: int, width: int, data_bits: int, *, latency: int = 8, stalls: int = 0, frames: int = 4, signed: bool = False,
    bits: int = 8, pysim: bool = False, bias: bool = True, ahead: int = 8,
) -> Case:  # fmt: skip
    op = op if bias else replace(op, bias=np.zeros_like(op.bias))
    x = kind(height, width, op, signed=signed, bits=bits)
    values, offset = maps(op, x, frames)
    dut = InMemory(unit(op, x, data_bits, ahead=ahead), latency=latency, stalls=stalls)
    interval = traffic_of(op, x, data_bits, offset[-1]).cycles
    name = f"{x} F={op.frac_bits} {data_bits} bits latency {latency} stalls {stalls}{' free' * op.free}"
    return Case(name=name, unit=dut, op=op, inputs=(values, offset), interval=interval, pysim=pysim)


@pytest.mark.rtl
def test_units(check_units: Callable[..., None]) -> None:
    check_units([
        case(deform(8, 1), 4, 4, 16, pysim=True),  # two lanes, four words a pixel: the least
        case(deform(15, 3), 8, 5, 32, signed=True),  # unused lanes
        case(deform(10, 0, reach=3), 9, 3, 16, frames=5),
        case(deform(33, 3), 3, 4, 64, latency=20, bias=False),
        case(deform(8, 4, reach=2, size=5), 6, 3, 16, bits=5, ahead=16),
        case(deform(4, 2, reach=3), 5, 4, 16, signed=True, bits=12),  # a channel takes two bytes
        case(deform(9, 2, reach=4, free=True), 5, 6, 16),
        case(deform(8, 0, reach=2, free=True), 6, 4, 16),
        case(deform(8, 1, reach=3, base=0), 1, 5, 16),
        case(deform(8, 2), 5, 1, 16),
        case(deform(40, 2, reach=2), 3, 3, 16, latency=119),  # all of it hidden: below (ahead - 2) * groups = 120
    ])  # fmt: skip


@pytest.mark.rtl
def test_slow_memories_change_nothing_but_time(check_units: Callable[..., None]) -> None:
    """Latency that cannot be hidden, stalls of every side of both ports. Two frames: their interval is not compared with anything."""
    memories = ((0, 4), (30, 8), (150, 12), (150, 0))
    check_units([case(deform(8, 2), 5, 4, 16, latency=latency, stalls=stalls, frames=2) for latency, stalls in memories])


class PythonMemory:
    """Serves both ports of a unit; remembers what was asked for. Reading what is not written, or beyond the region, is an error."""

    def __init__(self, dut: DeformMemoryUnit, seed: int) -> None:
        self.dut, self.rng = dut, np.random.default_rng(seed)
        self.step = dut.data_bits // 8
        self.words: dict[int, int] = {}
        self.commands: list[tuple[int, int]] = []

    def will(self) -> bool:
        return bool(self.rng.random() < 0.7)

    async def take(self, ctx: Any, port: Any) -> Any:
        """The payload of the next beat."""
        while True:
            willing = self.will()
            ctx.set(port.ready, willing)
            *_, valid, payload = await ctx.tick().sample(port.valid, port.payload)
            if valid and willing:
                ctx.set(port.ready, 0)
                return payload

    async def read(self, ctx: Any) -> None:
        port = self.dut.read
        while True:
            command = await self.take(ctx, port.command)
            self.commands.append((command.address, command.words))
            assert command.address % self.step == 0 and command.address + command.words * self.step <= self.dut.region_bytes
            for k in range(command.words):
                while not self.will():
                    await ctx.tick()
                ctx.set(port.data.payload, self.words[command.address + k * self.step])  # KeyError if it was never written
                ctx.set(port.data.valid, 1)
                await until(ctx, port.data.ready)
                ctx.set(port.data.valid, 0)

    async def write(self, ctx: Any) -> None:
        port = self.dut.write
        while True:
            command = await self.take(ctx, port.command)
            words = [await self.take(ctx, port.data) for _ in range(command.words)]
            places = range(command.address, command.address + command.words * self.step, self.step)
            for place in places:
                self.words.pop(place, None)  # until it is done what was there is gone as well
            await ctx.tick().repeat(int(self.rng.integers(1, 60)))
            self.words.update(zip(places, words, strict=True))
            ctx.set(port.done, 1)
            await ctx.tick()
            ctx.set(port.done, 0)


@pytest.mark.parametrize(("frac_bits", "free"), [(0, False), (2, False), (1, True)])
def test_reads_exactly_what_counts_and_only_what_is_written(frac_bits: int, free: bool) -> None:
    op = deform(8, frac_bits, reach=2, free=free)
    x = kind(4, 3, op)
    dut = unit(op, x, 16)
    values, offset = maps(op, x, 4)
    memory = PythonMemory(dut, seed=frac_bits)
    inputs = {"i": lane_beats(values, dut.lanes), "offset_i": lane_beats(offset, Lanes(lanes=1 + free, bits=9, signed=True))}
    expected = {"o": lane_beats(op.golden(values, offset)[0], dut.collect.out)}
    run_streams(dut, inputs, expected, others=[memory.read, memory.write])
    counted = [traffic_of(op, x, 16, codes) for codes in offset]
    assert sum(words * 2 for _, words in memory.commands) == sum(t.read_bytes for t in counted)
    assert all(t.read_bytes <= most_traffic(op, x, 16).read_bytes and t.cycles <= dut.frame_cycles for t in counted)


def lane_beats(values: Array, lanes: Lanes) -> list[list[int]]:
    found: list[list[int]] = unpack(pack(values, lanes), lanes, lanes.lanes).tolist()
    return found


@pytest.mark.parametrize(("frac_bits", "free", "pixels"), [(0, False, 9), (3, False, 25), (3, True, 36), (0, True, 9)])
def test_most_traffic_is_the_units_and_is_reached(frac_bits: int, free: bool, pixels: int) -> None:
    """CoDeNet's first decoder layer of config c, 16x16x1024, on a memory of 64 bits."""
    op = deform(1024, frac_bits, free=free)
    x = kind(16, 16, op)
    most = Traffic(cycles=256 * pixels * 128, read_bytes=256 * pixels * 1024, write_bytes=256 * 1024, region_bytes=2 * 256 * 1024)
    assert most_traffic(op, x, 64) == most
    dut = unit(op, x, 64)
    assert (dut.frame_cycles, dut.region_bytes, dut.multipliers) == (most.cycles, most.region_bytes, 8)
    # In the middle of a map all neighbours of small offsets are inside.
    middle = np.full((16, 16, op.offsets), 1 if frac_bits else 0)
    lost = most.read_bytes - traffic_of(op, x, 64, middle).read_bytes
    inner = replace(x, height=12, width=12)
    assert 0 < lost < most.read_bytes - most_traffic(op, inner, 64).read_bytes


def test_one_pixel_counted_by_hand() -> None:
    """A 2x2 map, dilation 1.5 everywhere: of the first pixel's nine taps the inner four remain."""
    op = deform(8, 1)
    x = kind(2, 2, op)
    # Tap 0: one pixel. Taps at +1.5: row (column) 1 with weight 1/2, the next is outside. Each pixel reads 4 times one pixel.
    found = traffic_of(op, x, 16, np.full((2, 2, 1), 1))
    assert found.read_bytes == 4 * 4 * 8
    # The last tap (1, 1) of pixel (0, 0) has its neighbour (1, 1) in the upper row; of the other three pixels it has none.
    assert found.cycles == 4 * (16 + 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_bits": 32}, "i must have 4 lanes, a word of 32 bits, not 2"),
        ({"ahead": 2}, "ahead must be at least 3"),
        ({"channels": 6, "weights": [[[1] * 6] * 3] * 3, "bias": [0] * 6}, "at least 4 words of 2 channels, not 3"),
        ({"bias": [0]}, r"weights must be \(K, K, 8\)"),
        ({"width": 20000}, "a row must have at most 65535 words, not 80000"),
        ({"height": 0}, "height, width and channels must be positive"),
        ({"low": 99}, "low must be at most high"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    op = deform(8, 1)
    with pytest.raises(ValueError, match=message):
        unit(op, kind(4, 4, op), 16, **changes)


def test_no_upsampling_from_memory() -> None:
    op = replace(deform(8, 1), upsample=2)
    with pytest.raises(CompileError, match="upsamples its map cannot have it in memory"):
        most_traffic(op, kind(4, 4, op), 16)
