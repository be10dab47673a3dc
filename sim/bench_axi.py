"""cocotb bench of an AXI-wrapped accelerator: carries out the steps that sim.axi wrote. Started by sim.axi."""
from __future__ import annotations

import json
import mmap
import os
import random
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge, with_timeout
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiReadBus,
    AxiResp,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
    AxiWriteBus,
)
from cocotbext.axi.axi_ram import AxiRamRead, AxiRamWrite

#: Nanoseconds a cycle, and cycles that a step may take.
CYCLE, PATIENCE = 10, 200_000
#: Bytes of a memory.
SIZE = 1 << 20


class Memory(AxiRamRead):  # type: ignore[misc]
    """A memory that thinks for a random time before each burst, if ``thinks``, and knows of faulty addresses.

    cocotbext-axi itself fails on bursts that cross 4 kB.
    """

    def __init__(self, *args: Any, mem: Any = None) -> None:
        super().__init__(*args, size=SIZE, mem=mem)
        self.ar_channel.queue_occupancy_limit = 16
        self.thinks, self.most, self.faulty, self.next = 0, 0, -1, -1
        self.rng = random.Random(5)

    async def _read(self, address: int, length: int) -> bytes:
        self.most = max(self.most, self.ar_channel.count() + 1)
        if address != self.next and self.thinks:
            for _ in range(self.rng.randrange(self.thinks)):
                await RisingEdge(self.clock)
        self.next = address + length
        if address == self.faulty:
            raise ValueError("faulty address")
        data: bytes = await super()._read(address, length)
        return data


def pauses(seed: str) -> Iterator[bool]:
    """Whether to pause in each cycle; now and then for long."""
    rng = random.Random(seed)
    while True:
        chance = rng.choice((0.05, 0.3, 0.8))
        yield from (rng.random() < chance for _ in range(rng.randrange(1, 200)))


class Bench:
    """The bus models around the accelerator, and a method for each kind of step."""

    def __init__(self, dut: Any, plan: dict[str, Any]) -> None:
        edge = dut.clk, dut.rst
        self.dut = dut
        self.source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), *edge)
        self.sinks = {n: AxiStreamSink(AxiStreamBus.from_prefix(dut, f"m_axis_{n}"), *edge) for n in plan["outputs"]}
        self.control = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), *edge)
        self.memories = {n: Memory(AxiReadBus.from_prefix(dut, f"m_axi_{n}"), *edge) for n in plan["weights"]}
        # The masters of units share one memory: what one writes another may read.
        self.shared = mmap.mmap(-1, SIZE)
        ports = {k: [n for n, kind in plan["masters"].items() if kind == k] for k in ("read", "write")}
        self.memories |= {n: Memory(AxiReadBus.from_prefix(dut, f"m_axi_{n}"), *edge, mem=self.shared) for n in ports["read"]}
        writers = [AxiWriteBus.from_prefix(dut, f"m_axi_{n}") for n in ports["write"]]
        self.writers = [AxiRamWrite(bus, *edge, size=SIZE, mem=self.shared) for bus in writers]
        self.ends: dict[str, list[int]] = {}

    async def reset(self, stalls: bool, seed: int) -> None:
        """Back to the beginning, with or without random stalls at every channel."""
        self.dut.rst.value = 1
        self.source.clear()
        for sink in self.sinks.values():
            sink.clear()
        for _ in range(4):
            await RisingEdge(self.dut.clk)
        self.dut.rst.value = 0
        writes, reads = self.control.write_if, self.control.read_if
        channels = [self.source, *self.sinks.values(), writes.aw_channel, writes.w_channel, writes.b_channel]
        channels += [reads.ar_channel, reads.r_channel]
        for writer in self.writers:
            channels += [writer.aw_channel, writer.w_channel, writer.b_channel]
        for memory in self.memories.values():
            channels += [memory.ar_channel, memory.r_channel]
            memory.thinks, memory.most, memory.faulty = 60 * stalls, 0, -1
        for k, channel in enumerate(channels):
            channel.set_pause_generator(pauses(f"{seed} {k}") if stalls else None)
            channel.pause = False
        self.ends = {n: [] for n in self.sinks}
        await RisingEdge(self.dut.clk)

    async def write(self, address: int, value: int) -> None:
        """Write a register, which must be accepted."""
        answer = await self.control.write(address, value.to_bytes(4, "little"))
        assert answer.resp == AxiResp.OKAY, f"{answer.resp!r}"

    async def poke(self, address: int, data: str) -> None:
        """Write some bytes of a register only."""
        answer = await self.control.write(address, bytes.fromhex(data))
        assert answer.resp == AxiResp.OKAY, f"{answer.resp!r}"

    async def value(self, address: int) -> int:
        """Read a register, which must exist."""
        answer = await self.control.read(address, 4)
        assert answer.resp == AxiResp.OKAY, f"{answer.resp!r}"
        return int.from_bytes(answer.data, "little")

    async def read(self, address: int, expected: int) -> None:
        """Read a register and compare."""
        got = await self.value(address)
        assert got == expected, f"got {got:#x}, expected {expected:#x}"

    async def poll(self, address: int, expected: int) -> None:
        """Read a register until it has the value."""
        while await self.value(address) != expected:
            pass

    async def refuse_read(self, address: int) -> None:
        """A read that must be answered by SLVERR and 0."""
        answer = await self.control.read(address, 4)
        assert (answer.resp, bytes(answer.data)) == (AxiResp.SLVERR, bytes(4)), f"{answer!r}"

    async def refuse_write(self, address: int) -> None:
        """A write that must be answered by SLVERR."""
        answer = await self.control.write(address, b"\xff\xff\xff\xff")
        assert answer.resp == AxiResp.SLVERR, f"{answer.resp!r}"

    async def send(self, data: str) -> None:
        """Queue a packet; does not wait."""
        await self.source.send(AxiStreamFrame(bytes.fromhex(data)))

    async def receive(self, name: str, data: str) -> None:
        """Wait for an output's packet and compare."""
        frame = await self.sinks[name].recv()
        got, expected = bytes(frame.tdata), bytes.fromhex(data)
        self.ends[name].append(frame.sim_time_end // 1000 // CYCLE)
        assert len(got) == len(expected), f"a packet of {len(got)} bytes, expected {len(expected)}"
        wrong = [k for k in range(len(got)) if got[k] != expected[k]]
        assert not wrong, f"{len(wrong)} bytes differ, the first is byte {wrong[0]}: got {got[wrong[0]]}, expected {expected[wrong[0]]}"

    async def quiet(self, cycles: int) -> None:
        """Nothing may come out for some time."""
        for _ in range(cycles):
            await RisingEdge(self.dut.clk)
            assert all(sink.empty() and sink.idle() for sink in self.sinks.values()), "something came out"

    async def load(self, name: str, address: int, data: str) -> None:
        """Put bytes into a memory."""
        self.memories[name].write(address, bytes.fromhex(data))

    async def fill(self, address: int, data: str) -> None:
        """Put bytes into the memory that all masters of units share."""
        whole = bytes.fromhex(data)
        self.shared[address : address + len(whole)] = whole

    async def fault(self, name: str, address: int) -> None:
        """Let a word of memory answer with an error."""
        self.memories[name].faulty = address

    async def outstanding(self, name: str, least: int) -> None:
        """So many bursts must have been under way at once."""
        assert self.memories[name].most >= least, f"{self.memories[name].most} bursts at once at most, expected {least}"


@cocotb.test()
async def steps(dut: Any) -> None:
    """All scenarios, one after the other, each from reset."""
    plan = json.loads(Path(os.environ["WARPLOOM_PLAN"]).read_text())
    dut.rst.value = 0
    bench = Bench(dut, plan)
    Clock(dut.clk, CYCLE, unit="ns").start(start_high=False)
    errors, times = [], {}
    for scenario in plan["scenarios"]:
        await bench.reset(scenario["stalls"], scenario["seed"])
        for k, (name, *arguments) in enumerate(scenario["steps"]):
            try:
                await with_timeout(getattr(bench, name)(*arguments), PATIENCE * CYCLE, "ns")
            except Exception as error:
                what = [a if len(str(a)) < 40 else "..." for a in arguments]
                why = str(error) if isinstance(error, AssertionError) else traceback.format_exc(limit=-2)
                errors.append(f"[{scenario['name']}] step {k} {name}{tuple(what)}: {why}")
                break
        times[scenario["name"]] = bench.ends
    Path(plan["times"]).write_text(json.dumps(times))
    if errors:
        Path("failures.txt").write_text("\n".join(errors) + "\n")
        raise AssertionError("\n".join(errors))
