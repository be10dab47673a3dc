"""Helpers for the Amaranth simulator. It is slow: thousands of cycles of narrow logic, not layers."""
from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from amaranth.lib import wiring
from amaranth.sim import Simulator

from hw.params import Lanes

#: One beat: the value of each lane, lane 0 first.
Beat = Sequence[int]


def lanes_of(port: Any) -> Lanes:
    """What a unit's stream port carries, read back from its payload's layout."""
    layout = port.payload.shape()
    return Lanes(lanes=layout.length, bits=layout.elem_shape.width, signed=layout.elem_shape.signed)


def stream_ports(unit: wiring.Component) -> tuple[list[str], list[str]]:
    """Names of a unit's input and output streams, in order of declaration; plain ports are left out."""
    members = unit.signature.members
    streams = [n for n in members if members[n].is_signature]
    return [n for n in streams if members[n].flow == wiring.In], [n for n in streams if members[n].flow == wiring.Out]


async def until(ctx: Any, condition: Any, value: Any = None) -> Any:
    """Tick until ``condition`` is sampled high and return ``value`` of that edge.

    Like ``ctx.tick().sample(value).until(condition)``, but a testbench abandoned in the middle of it
    (because another one failed) is closed without the "aclose(): already running" noise of Amaranth 0.5.
    """
    while True:
        *_, done, sampled = await ctx.tick().sample(condition, condition if value is None else value)
        if done:
            return sampled


def run_streams(
    dut: Any,
    inputs: Mapping[str, Sequence[Beat]],
    expected: Mapping[str, Sequence[Beat]],
    *,
    seed: int = 0,
    p_in: float = 0.7,
    p_out: float = 0.7,
    max_cycles: int = 20_000,
    others: Sequence[Any] = (),
) -> int:
    """Push ``inputs`` into the named streams and compare the named outputs, with random gaps on both sides.

    ``others``: further testbenches, of ports that are no streams of lanes; they need not end.
    ``p_in`` and ``p_out`` are the chances that a side is willing in a cycle; 1 is full rate. Returns the cycle of the last
    beat. AssertionError names port and beat; TimeoutError says which outputs are short after ``max_cycles``.
    """
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    now = [0]
    last = [0]
    received = dict.fromkeys(expected, 0)

    async def clock(ctx: Any) -> None:
        while True:
            await ctx.tick()
            now[0] += 1

    def put(name: str, beats: Sequence[Beat]) -> Any:
        async def testbench(ctx: Any) -> None:
            rng, port = random.Random(f"{seed} {name}"), getattr(dut, name)
            for beat in beats:
                while rng.random() >= p_in:
                    await ctx.tick()
                ctx.set(port.payload, list(beat))
                ctx.set(port.valid, 1)
                await until(ctx, port.ready)
                ctx.set(port.valid, 0)

        return testbench

    def get(name: str, beats: Sequence[Beat]) -> Any:
        async def testbench(ctx: Any) -> None:
            rng, port = random.Random(f"{seed} {name}"), getattr(dut, name)
            for k, want in enumerate(beats):
                while rng.random() >= p_out:
                    await ctx.tick()
                ctx.set(port.ready, 1)
                payload = await until(ctx, port.valid, port.payload)
                ctx.set(port.ready, 0)
                got = [payload[lane] for lane in range(len(want))]
                assert got == list(want), f"{type(dut).__name__}.{name} beat {k}: got {got}, expected {list(want)}"
                received[name] = k + 1
                last[0] = max(last[0], now[0])

        return testbench

    async def timeout(ctx: Any) -> None:
        await ctx.delay(max_cycles * 1e-6)  # not tick().repeat(): unfinished ones warn on exit
        missing = {name: f"{received[name]} of {len(beats)}" for name, beats in expected.items()}
        raise TimeoutError(f"{type(dut).__name__} delivered only {missing} beats in {max_cycles} cycles")

    sim.add_testbench(clock, background=True)
    for other in others:
        sim.add_testbench(other, background=True)
    for name, beats in inputs.items():
        sim.add_testbench(put(name, beats))
    for name, beats in expected.items():
        sim.add_testbench(get(name, beats))
    sim.add_testbench(timeout, background=True)
    sim.run()
    return last[0]
