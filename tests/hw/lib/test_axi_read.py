"""The read master before a memory of fixed latency: data, bursts within pages, rate."""
import random
from typing import Any

import pytest
from amaranth.sim import Simulator

from hw.lib.axi_read import PAGE, AxiRead
from hw.params import Lanes
from hw.testing import until

LATENCY, ROUNDS = 20, 2


def run(dut: AxiRead, memory: dict[int, int], base: int, beats: list[int], p_take: float) -> tuple[list[tuple[int, int]], int]:
    """(address, words) of the bursts asked for, and the cycle of the last beat, which is compared like all."""
    sim, size = Simulator(dut), dut.data_bits // 8
    sim.add_clock(1e-6)
    bursts: list[tuple[int, int]] = []
    answers: list[tuple[int, int]] = []  # (cycle from which it may go, word)
    now = [0]

    async def serve(ctx: Any) -> None:
        ctx.set(dut.bus.arready, 1)
        while True:
            asked = ctx.get(dut.bus.arvalid)
            if asked:
                address, words = ctx.get(dut.bus.araddr), ctx.get(dut.bus.arlen) + 1
                bursts.append((address, words))
                answers.extend((now[0] + LATENCY, memory[address + k * size]) for k in range(words))
            ready = bool(answers) and answers[0][0] <= now[0]
            ctx.set(dut.bus.rvalid, ready)
            if ready:
                ctx.set(dut.bus.rdata, answers.pop(0)[1])
                assert ctx.get(dut.bus.rready), "the master made read data wait"
            await ctx.tick()
            now[0] += 1

    async def take(ctx: Any) -> None:
        rng = random.Random(1)
        ctx.set(dut.base, base)
        ctx.set(dut.start, 1)
        for _ in range(ROUNDS):
            await ctx.tick()
        ctx.set(dut.start, 0)
        for k, beat in enumerate(beats * ROUNDS):
            while rng.random() >= p_take:
                await ctx.tick()
            ctx.set(dut.o.ready, 1)
            got = await until(ctx, dut.o.valid, dut.o.payload.as_value())
            ctx.set(dut.o.ready, 0)
            assert got == beat, f"beat {k}: got {got:#x}, expected {beat:#x}"
        assert ctx.get(dut.idle)

    async def timeout(ctx: Any) -> None:
        await ctx.delay(20_000e-6)
        raise TimeoutError(f"not all beats came; {len(bursts)} bursts were asked for")

    sim.add_testbench(serve, background=True)
    sim.add_testbench(take)
    sim.add_testbench(timeout, background=True)
    sim.run()
    return bursts, now[0]


@pytest.mark.parametrize(("width", "beats", "base", "burst", "p_take"), [
    (5, 61, 0xFE8, 4, 1.0), (5, 61, 0xFE8, 4, 0.5), (32, 100, 0x7F00, 16, 1.0), (32, 1, 0x10, 1, 1.0),
    (70, 50, 0x2FFC, 8, 1.0), (70, 50, 0x2FFC, 8, 0.6), (64, 9, 0, 256, 1.0), (17, 300, 0xF04, 256, 1.0),
])  # fmt: skip
def test_a_region_is_read_in_bursts_that_keep_to_pages(width: int, beats: int, base: int, burst: int, p_take: float) -> None:
    dut = AxiRead(beats=beats, o=Lanes(lanes=width, bits=1, signed=False), data_bits=32, burst=burst, outstanding=4)
    values = [random.Random(k).randrange(1 << width) for k in range(beats)]
    image = dut.image(values)
    memory = {base + k: int.from_bytes(image[k : k + 4], "little") for k in range(0, len(image), 4)}
    bursts, cycles = run(dut, memory, base, values, p_take)
    place = base
    for address, words in bursts:
        assert 1 <= words <= burst and address // PAGE == (address + 4 * words - 1) // PAGE
        assert address == place
        place = base if place + 4 * words == base + len(image) else place + 4 * words
    assert sum(words for _, words in bursts) * 4 == ROUNDS * len(image)
    if p_take == 1.0 and burst >= 8 and len(image) > 64:
        assert cycles <= ROUNDS * max(len(image) // 4, beats) + 3 * LATENCY + 10


def test_what_it_refuses() -> None:
    lanes = Lanes(lanes=8, bits=1, signed=False)
    for wrong in ({"data_bits": 48}, {"burst": 0}, {"burst": 257}, {"outstanding": 0}, {"address_bits": 20}, {"beats": 0}):
        with pytest.raises(ValueError, match="not"):
            AxiRead(**{"beats": 4, "o": lanes, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beats must be 4"):
        AxiRead(beats=4, o=lanes).image([1, 2, 3])
