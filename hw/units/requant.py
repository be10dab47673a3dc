"""Requantization unit."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from amaranth.hdl import Array, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.arith import bits_for
from hw.lib.fifo import Fifo
from hw.lib.fixed import ROUNDINGS, Rounding, round_kept, saturate, shift_keep, shift_right
from hw.lib.primitives import DspMac, Mult18x18d, register
from hw.lib.store import table
from hw.params import Ints, Lanes

from .base import Unit, signature

#: Bits of a DSP48E2's operands.
SLICE = (27, 18)
#: Different shifts behind a slice at most: each is an input of a multiplexer.
SORTS = 4


class RequantUnit(Unit):
    """Accumulators to activations, ``clamp(round(acc · multiplier · 2^-shift), low, high)`` with a multiplier and shift a channel.

    Golden model: sw.ops.requant.Requant.golden. Throughput one beat a cycle, latency 5 cycles, one more where
    the multiplication is split and one where it has MULT18X18D; ready is registered.
    Multipliers and shifts stand in one ROM of a row a channel group, or are constants where all groups agree.

    Parameters
    ----------
    height, width, channels: of the map
    multiplier: (C,), shift: (C,) in 1..47
    low, high: the clamp, inside the range of ``o``
    rounding: "half_up", "half_even" or "floor"
    i, o: streams, with equal lanes
    multiplier_bits: accumulators wider than this are multiplied in two parts and one more cycle (None: never): 18 suits ECP5
    slices: instances. A DSP48E2 a lane that multiplies and rounds, where operands and rounding fit it (:attr:`sliced`); shifts then
        differ only by what the multipliers have no room for. With ``multiplier_bits`` MULT18X18D (:attr:`instances`)
    repeat: beats that each channel group lasts (the pixels of a map whose channel groups come first: hw/lib/held.py)

    Raises
    ------
    ValueError: if lengths, ranges or lanes do not fit
    """

    i: stream.Interface
    o: stream.Interface

    SPLIT = 17  # bits of the low part, unsigned

    def __init__(
        self,
        *,
        channels: int,
        multiplier: Ints,
        shift: Ints,
        low: int,
        high: int,
        rounding: Rounding = "half_up",
        i: Lanes,
        o: Lanes,
        height: int = 1,
        width: int = 1,
        multiplier_bits: int | None = None,
        slices: bool = False,
        repeat: int = 1,
    ) -> None:
        if not len(multiplier) == len(shift) == channels:
            raise ValueError(f"multiplier and shift must have {channels} entries, not {len(multiplier)} and {len(shift)}")
        if min(shift) < 1 or max(shift) > 47:
            raise ValueError(f"shift must be in 1..47, not {min(shift)!r}..{max(shift)!r}")
        if not o.lowest <= low <= high <= o.highest:
            raise ValueError(f"low and high must lie in {o.lowest}..{o.highest}, not {low!r}..{high!r}")
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be half_up, half_even or floor, not {rounding!r}")
        if i.lanes != o.lanes:
            raise ValueError(f"i and o must have equal lanes, not {i.lanes!r} and {o.lanes!r}")
        self.pixels, self.channels = height * width, channels
        self.low, self.high, self.rounding, self.repeat = low, high, rounding, repeat
        self.i_lanes, self.o_lanes = i, o
        self.groups = i.beats(channels)
        # Unused lanes are blanked; they take the first group's values, so that what all groups share stays a constant.
        spare = [k % i.lanes % channels for k in range(channels, self.groups * i.lanes)]
        self.split = multiplier_bits is not None and i.bits > multiplier_bits
        self.multiplier = [*multiplier, *(multiplier[k] for k in spare)]
        self.shift = [*shift, *(shift[k] for k in spare)]
        self.acc_bits = i.bits + (not i.signed)
        room = (SLICE[0] if self.acc_bits <= SLICE[1] else SLICE[1]) - bits_for(multiplier)  # for bits of shifts
        sorts = (max(shift) - min(shift)) // (room + 1) + 1 if room >= 0 else SORTS + 1
        self.sliced = slices and multiplier_bits is None and rounding != "half_even" and sorts <= SORTS and self.acc_bits <= SLICE[0]
        if self.sliced:
            # m·2^-s = (m·2^f)·2^-(s + f): shifts grow up to the next of a few.
            grown = [(max(shift) - s) % (room + 1) for s in self.shift]
            self.multiplier = [m << f for m, f in zip(self.multiplier, grown, strict=True)]
            self.shift = [s + f for s, f in zip(self.shift, grown, strict=True)]
        low, high = (self.SPLIT + 1, self.acc_bits - self.SPLIT) if self.split else (self.acc_bits, 0)
        self.instances = slices and multiplier_bits is not None and max(low, high, bits_for(self.multiplier)) <= SLICE[1]
        #: Steps from an accumulator to its product.
        self.product_stages = 2 + self.split + self.instances
        self.base, self.unit = min(self.shift), room + 1 if self.sliced else 1
        super().__init__({"i": In(signature(i)), "o": Out(signature(o))})

    @property
    def frame_cycles(self) -> int:
        return self.pixels * self.groups

    @property
    def multipliers(self) -> int:
        return self.i_lanes.lanes

    def parameters(
        self, m: Module, tables: Mapping[str, tuple[Sequence[int], Any]], taken: Value
    ) -> tuple[dict[str, list[Any]], Value]:
        """The lanes' values of each table (values, shape) for the beat that comes next, and whether they have been read.

        All stand side by side in one memory, a row a channel group; a table whose rows agree is constants.
        """
        lanes = self.i_lanes.lanes
        rows = {name: [list(values[k : k + lanes]) for k in range(0, len(values), lanes)] for name, (values, _) in tables.items()}
        varying = [name for name, table in rows.items() if any(row != table[0] for row in table)]
        result = {name: [Const(v, tables[name][1]) for v in rows[name][0]] for name in tables if name not in varying}
        if varying:
            layout = data.StructLayout({name: data.ArrayLayout(tables[name][1], lanes) for name in varying})
            init = [layout.const({name: rows[name][k] for name in varying}).as_bits() for k in range(self.groups)]
            group, read, fetch, ends = Signal(range(self.groups)), Signal(), Signal(), self.ends(m, taken, "times")
            m.d.comb += fetch.eq((taken & ends) | ~read)
            m.d.sync += read.eq(1)
            with m.If(fetch):
                m.d.sync += group.eq(Mux(group == self.groups - 1, 0, group + 1))
            found = data.View(layout, table(m, "parameters", init, layout.size, group, fetch))
            return result | {name: [found[name][n] for n in range(lanes)] for name in varying}, read
        return result, Const(1)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.slice = out = Fifo(self.o_lanes, 2)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        valid = [Signal(name=f"valid{k}") for k in range(self.product_stages + 2)]  # of the stages: the product's, shifted, rounded
        en, taken = Signal(), Signal()
        m.d.comb += [en.eq(out.i.ready), taken.eq(self.i.valid & self.i.ready), out.i.valid.eq(valid[-1])]
        with m.If(en):
            m.d.sync += [valid[0].eq(taken), *(b.eq(a) for a, b in pairwise(valid))]
        bits = bits_for(self.multiplier)
        # What all shifts have in common is wiring; only the rest is shifted by logic.
        extra = [(v - self.base) // self.unit for v in self.shift]
        tables = {"multiplier": (self.multiplier, signed(bits)), "shift": (extra, unsigned(max(extra).bit_length()))}
        values, read = self.parameters(m, tables, taken)
        m.d.comb += self.i.ready.eq(en & read)
        lane = self.slice if self.sliced else self.lane
        for n in range(self.i_lanes.lanes):
            extra = values["shift"][n]
            extra = extra if isinstance(extra, Const) else register(m, extra, en, f"extra{n}")
            m.d.comb += out.i.payload[n].eq(lane(m, n, values["multiplier"][n], extra, en))
        self.blank_unused(m, out.i)
        return m

    def slice(self, m: Module, n: int, multiplier: Value, extra: Value, en: Value) -> Signal:
        """One lane's pipeline with a slice, whose registers hold accumulator, product and rounded product; then clamped."""
        wide = self.acc_bits > SLICE[1]
        m.submodules[f"dsp{n}"] = dsp = DspMac()
        acc, factor = (dsp.a, dsp.b) if wide else (dsp.b, dsp.a)
        shifts = range(self.base, max(self.shift) + 1, self.unit)
        rounded = dsp.p[: max(self.acc_bits + len(multiplier), shifts[-1]) + 1].as_signed()
        halves = [Const(0 if self.rounding == "floor" else 1 << shift - 1, 48) for shift in shifts]
        shifted = [rounded >> shift for shift in shifts]
        if isinstance(extra, Const):
            half, value = halves[extra.value], shifted[extra.value]
        else:
            late = register(m, extra, en, f"extra_a{n}")
            half, value = Array(halves)[late], Array(shifted)[register(m, late, en, f"extra_b{n}")]
        m.d.comb += [acc.eq(self.i.payload[n]), factor.eq(multiplier), dsp.c.eq(half)]
        m.d.comb += [dsp.load.eq(1), dsp.en.eq(en), dsp.add.eq(en)]
        return self.clamped(m, n, value, en)

    def clamped(self, m: Module, n: int, value: Value, en: Value) -> Signal:
        """The register of a lane's result."""
        shape = signed(self.o_lanes.bits) if self.o_lanes.signed else unsigned(self.o_lanes.bits)
        result = Signal(shape, name=f"result{n}", reset_less=True)
        with m.If(en):
            m.d.sync += result.eq(saturate(value, self.low, self.high))
        return result

    def lane(self, m: Module, n: int, multiplier: Value, extra: Value, en: Value) -> Signal:
        """One lane's pipeline: the accumulator, its product (in two steps if split), shifted, rounded and clamped."""

        def step(value: Any, name: str) -> Signal:
            return register(m, value, en, f"{name}{n}")

        def product(x: Value, y: Value, name: str) -> Value:
            if not self.instances:
                return step(x * y, name)
            m.submodules[f"{name}{n}"] = mult = Mult18x18d()
            m.d.comb += [mult.a.eq(x), mult.b.eq(y), mult.en.eq(en)]
            return mult.p[: len(x * y)].as_signed()

        acc = Signal(signed(self.acc_bits), name=f"acc{n}", reset_less=True)
        fixed = isinstance(extra, Const)
        if self.instances:  # their own registers stand in front
            m.d.comb += acc.eq(self.i.payload[n])
        else:
            with m.If(en):
                m.d.sync += acc.eq(self.i.payload[n])
            multiplier = multiplier if isinstance(multiplier, Const) else step(multiplier, "multiplier")
        if self.split:
            low, high = product(acc[: self.SPLIT], multiplier, "low"), product(acc[self.SPLIT :].as_signed(), multiplier, "high")
            whole = step((high << self.SPLIT) + low, "product")
        else:
            whole = product(acc, multiplier, "product")
        for k in range(0 if fixed else self.product_stages - 1):
            extra = step(extra, f"extra_{k}_")
        shifted, lost = shift_keep(whole, self.base + (extra.value if isinstance(extra, Const) else 0))
        if not fixed:
            shifted, lost_more = shift_right(shifted, extra)
            lost = lost | lost_more
        kept = step(shifted, "kept")
        sticky: Value = step(lost, "sticky") if self.rounding == "half_even" else Const(0)
        return self.clamped(m, n, round_kept(kept, sticky, self.rounding), en)

    def ends(self, m: Module, taken: Value, name: str) -> Value:
        """Whether the current beat is the last of its channel group."""
        if self.repeat == 1:
            return Const(1)
        times = Signal(range(self.repeat), name=name)
        with m.If(taken):
            m.d.sync += times.eq(Mux(times == self.repeat - 1, 0, times + 1))
        return times == self.repeat - 1

    def blank_unused(self, m: Module, o: stream.Interface) -> None:
        """Unused lanes of a pixel's last beat are 0."""
        used = self.channels - (self.groups - 1) * self.o_lanes.lanes
        if used == self.o_lanes.lanes:
            return
        group, taken = Signal(range(self.groups), name="o_group"), o.valid & o.ready
        with m.If(taken & self.ends(m, taken, "o_times")):
            m.d.sync += group.eq(Mux(group == self.groups - 1, 0, group + 1))
        with m.If(group == self.groups - 1):
            m.d.comb += [o.payload[n].eq(0) for n in range(used, self.o_lanes.lanes)]
