"""Harnesses that watch a unit's ports. They know nothing of its insides, so they hold for every implementation of the same contract."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Assert, Assume, Module, Mux, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In


def started(m: Module) -> Signal:
    """1 from the second cycle on."""
    flag = Signal(name="started")
    m.d.sync += flag.eq(1)
    return flag


def held(m: Module, port: Any, name: str, claim: Callable[[Any], Any]) -> None:
    """``claim`` (Assert for outputs, Assume for inputs) that valid and payload stay until the beat is taken."""
    payload = port.payload.as_value()
    waited, before = Signal(name=f"{name}_waited"), Signal.like(payload, name=f"{name}_before")
    m.d.sync += [waited.eq(port.valid & ~port.ready), before.eq(payload)]
    m.d.comb += claim(~waited | (port.valid & (payload == before)))


class Harness(wiring.Component):  # type: ignore[misc]
    """A unit with free inputs: ``i`` obeys the stream's rules, ``o`` is watched; subclasses add what they assert.

    Members: ``valid``, ``payload``: what the source does; ``ready``: what the sink does; ``mark``: chooses the beat to follow.
    """

    def __init__(self, unit: Any, **more: Any) -> None:
        self.unit = unit
        super().__init__({"valid": In(1), "payload": In(len(unit.i.payload.as_value())), "ready": In(1), "mark": In(1), **more})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += Assume(~ResetSignal())  # registers start from their initial values
        m.submodules.unit = unit = self.unit
        m.d.comb += [unit.i.valid.eq(self.valid), unit.i.payload.as_value().eq(self.payload)]
        held(m, unit.i, "i", Assume)
        taken, given = Signal(), Signal()
        m.d.comb += taken.eq(unit.i.valid & unit.i.ready)
        for port in self.outputs():
            m.d.comb += port.ready.eq(self.ready)
            held(m, port, "o", Assert)
        m.d.comb += given.eq(self.outputs()[0].valid & self.outputs()[0].ready)
        self.watch(m, taken, given)
        return m

    def outputs(self) -> list[Any]:
        """Output ports."""
        return [self.unit.o]

    def watch(self, m: Module, taken: Signal, given: Signal) -> None:
        """Assertions; a beat is ``taken`` by the input, ``given`` by the (first) output in this cycle."""
        raise NotImplementedError


class OneToOne(Harness):
    """Every beat in gives one beat out, in order: none lost, none doubled, none invented, each ``expected(payload, place)``.

    The beat that ``mark`` chooses is followed: how many are ahead of it in the unit, and what it must become. ``period``: the place of a
    beat among the channel groups of a pixel, 0..period-1, which ``expected`` may use. ``capacity``: beats that the unit holds at most.
    ``patience``: cycles in a row in which nothing comes out although the sink waits and a beat is inside; of a unit that needs whole
    pixels (``whole``), one of a pixel that came whole.
    """

    def __init__(
        self, unit: Any, capacity: int, patience: int, expected: Callable[[Value, Value], Any] | None = None, period: int = 1,
        whole: bool = False,
    ) -> None:  # fmt: skip
        self.capacity, self.patience, self.period, self.whole = capacity, patience, period, whole
        self.expected = expected or (lambda payload, place: payload)
        super().__init__(unit)

    def watch(self, m: Module, taken: Signal, given: Signal) -> None:
        unit = self.unit
        inside, ahead = Signal(range(self.capacity + 2)), Signal(range(self.capacity + 2))
        place, idle = Signal(range(max(self.period, 2))), Signal(range(self.patience + 2))
        following, wanted = Signal(), Signal.like(unit.o.payload.as_value())
        m.d.sync += inside.eq(inside + taken - given)
        with m.If(taken):
            m.d.sync += place.eq(Mux(place == self.period - 1, 0, place + 1))
        with m.If(taken & self.mark & ~following):
            m.d.sync += [following.eq(1), ahead.eq(inside - given), wanted.eq(self.expected(self.payload, place))]
        with m.If(following & given):
            m.d.sync += ahead.eq(ahead - 1)
            with m.If(ahead == 0):
                m.d.sync += following.eq(0)
        at_once = taken & self.mark & (inside == 0)
        with m.If(unit.o.valid):
            # A unit without a register may give the beat in the cycle in which it takes it.
            m.d.comb += Assert((inside > 0) | unit.i.valid)
            with m.If(following & (ahead == 0)):
                m.d.comb += Assert(unit.o.payload.as_value() == wanted)
            with m.If(at_once & ~following):
                m.d.comb += Assert(unit.o.payload.as_value() == self.expected(self.payload, place).as_unsigned()[: len(wanted)])
        m.d.comb += Assert(inside <= self.capacity)
        m.d.sync += idle.eq(Mux(self.ready & ~unit.o.valid & (inside > (place if self.whole else 0)), idle + 1, 0))
        m.d.comb += Assert(idle <= self.patience)


class ForkOutput(Harness):
    """Output ``index`` of a fork: it gives every input beat exactly once, at the latest when the input is taken, and nothing else."""

    def __init__(self, unit: Any, index: int) -> None:
        self.index = index
        super().__init__(unit)

    def outputs(self) -> list[Any]:
        return [getattr(self.unit, f"o{k}") for k in range(self.unit.outputs)]

    def elaborate(self, platform: Any) -> Module:
        m = super().elaborate(platform)
        # The other outputs are willing when they like: `mark` is theirs.
        for k, port in enumerate(self.outputs()):
            if k != self.index:
                m.d.comb += port.ready.eq(self.mark)
        return m

    def watch(self, m: Module, taken: Signal, given: Signal) -> None:
        port = self.outputs()[self.index]
        given = port.valid & port.ready
        served = Signal()  # this input beat has been given here and not yet been taken
        m.d.sync += served.eq((served | given) & ~taken)
        with m.If(port.valid):
            m.d.comb += Assert(self.valid & ~served & (port.payload.as_value() == self.payload))
        m.d.comb += Assert(~taken | served | given)


class Pixels(Harness):
    """A gearbox: the channels of every pixel come out in order, in beats of another width, unused lanes 0.

    The pixel that ``mark`` chooses is followed: all its channels are remembered as they come.
    """

    def __init__(self, unit: Any, pixels: int, patience: int) -> None:
        self.pixels, self.patience = pixels, patience
        super().__init__(unit)

    def watch(self, m: Module, taken: Signal, given: Signal) -> None:
        unit, bits = self.unit, self.unit.i_lanes.bits
        n_in, n_out = unit.i_lanes.beats(unit.channels), unit.o_lanes.beats(unit.channels)
        beat_in, beat_out = Signal(range(max(n_in, 2))), Signal(range(max(n_out, 2)))
        inside, ahead = Signal(range(self.pixels + 2)), Signal(range(self.pixels + 2))
        following, wanted = Signal(), Signal(unit.channels * bits)
        first, done = Signal(), Signal()
        m.d.comb += [first.eq(taken & (beat_in == 0)), done.eq(given & (beat_out == n_out - 1))]
        m.d.sync += inside.eq(inside + first - done)
        here = Signal()  # the beat that comes in belongs to the pixel that is followed
        coming = Signal()
        m.d.comb += here.eq((first & self.mark & ~following) | (taken & (beat_in != 0) & coming))
        with m.If(taken):
            m.d.sync += beat_in.eq(Mux(beat_in == n_in - 1, 0, beat_in + 1))
            m.d.sync += coming.eq(here & (beat_in != n_in - 1))
        with m.If(given):
            m.d.sync += beat_out.eq(Mux(beat_out == n_out - 1, 0, beat_out + 1))
        with m.If(here):
            for k in range(n_in):
                with m.If(beat_in == k):
                    at = k * unit.i_lanes.width
                    m.d.sync += wanted[at : at + unit.i_lanes.width].eq(self.payload)
        with m.If(following & done):
            m.d.sync += [ahead.eq(ahead - 1), following.eq(ahead != 0)]
        with m.If(first & self.mark & ~following):
            m.d.sync += [following.eq(1), ahead.eq(inside - done)]
        with m.If(unit.o.valid):
            m.d.comb += Assert(inside > 0)
        for k in range(n_out):
            at = k * unit.o_lanes.width
            with m.If(unit.o.valid & following & (ahead == 0) & (beat_out == k)):
                m.d.comb += Assert(unit.o.payload.as_value() == wanted[at : at + unit.o_lanes.width])
        m.d.comb += Assert(inside <= self.pixels)
        stuck(m, self, taken, self.patience)


def stuck(m: Module, harness: Harness, taken: Signal, patience: int) -> None:
    """Assert that a unit whose source offers and whose sink waits moves within ``patience`` cycles."""
    idle = Signal(range(patience + 2))
    m.d.sync += idle.eq(Mux(harness.valid & harness.ready & ~taken & ~harness.unit.o.valid, idle + 1, 0))
    m.d.comb += Assert(idle <= patience)
