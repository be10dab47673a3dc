# amaranth: UnusedElaboratable=no
"""CenterNet decoding unit."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.arith import ordered
from hw.lib.fifo import Fifo
from hw.lib.ring import counter
from hw.lib.taps import WindowTaps
from hw.lib.top_k import TopK, insert_cycles
from hw.params import Lanes, Window

from .base import Unit, signature

PEAK = Window(kernel=(3, 3), pad=(1, 1, 1, 1))
#: What makes a value a peak: more than four neighbours, no less than the other four, no less than the threshold, a lane in use.
CONDITIONS = 10
#: Beats with several peaks that wait for the sorter where a beat carries several classes.
QUEUE = 16


def decode_cycles(height: int, width: int, channels: int, lanes: int, top_k: int, cells: int) -> int:
    """Most cycles between back-to-back frames: each beat's, those of as many peaks as a map can have (no two of a class touch), each
    better than all before it, and those of the records."""
    peaks = -(-height // 2) * -(-width // 2) * channels
    return height * width * -(-channels // lanes) + peaks * insert_cycles(top_k, cells) + top_k + 3


class DecodeUnit(Unit):
    """Head maps to the ``top_k`` best boxes of every frame. Golden model: :meth:`sw.ops.decode.Decode.golden`.

    All nine values of a 3×3 window are compared at once, peaks of at least ``least`` pass, a sorter (hw/lib/top_k.py) keeps the best.
    Throughput: a beat of the heat map a cycle; a peak that is among the best so far keeps the sorter busy for :func:`insert_cycles`,
    the records for one each, and where that is more than the beats bring the unit waits; :func:`decode_cycles` is the most.
    Latency: the best record leaves 10 cycles after the last beat if the sorter has nothing else to do, then one a cycle.

    Parameters
    ----------
    height, width, channels: of the heat map
    top_k: records a frame; cells: keys that the sorter compares at once; least: initial value of the port
    wh_frac, reg_frac: fraction bits of sizes and shifts
    i: heat map; wh, reg: two lanes each; o: eight lanes, sw.ops.decode.FIELDS, signed

    Members
    -------
    i, wh_i, reg_i: streams in; o: stream of records, one a beat, ``last`` marks the end of a frame
    least: least value of a peak, may change between frames; left open it is the parameter
    """

    varies = True
    i: stream.Interface
    wh_i: stream.Interface
    reg_i: stream.Interface
    o: stream.Interface
    least: Signal

    def __init__(
        self, *, height: int, width: int, channels: int, top_k: int, cells: int, least: int, wh_frac: int, reg_frac: int,
        i: Lanes, wh: Lanes, reg: Lanes, o: Lanes,
    ) -> None:  # fmt: skip
        for name, lanes in (("wh", wh), ("reg", reg)):
            if lanes.lanes != 2:
                raise ValueError(f"{name} must have two lanes, not {lanes.lanes!r}")
        if o.lanes != 8 or not o.signed:
            raise ValueError(f"o must be signed and have 8 lanes, not {o!r}")
        if not i.lowest <= least <= i.highest:
            raise ValueError(f"least must be in {i.lowest}..{i.highest}, not {least!r}")
        self.height, self.width, self.channels, self.i_lanes, self.o_lanes = height, width, channels, i, o
        self.groups = i.beats(channels)
        self.frac_bits = max(wh_frac + 1, reg_frac, 0)
        self.half_shift, self.reg_shift = self.frac_bits - wh_frac - 1, self.frac_bits - reg_frac
        self.window = WindowTaps(height=height, width=width, channels=channels, window=PEAK, i=i, fill=i.lowest)
        self.label_bits = max((channels - 1).bit_length(), 1)
        self.sorter = TopK(depth=top_k, cells=cells, key_bits=i.bits + self.label_bits, data_bits=4 * o.bits)
        rest = {
            "values": layout(i), "group": counter(self.groups, "g").shape(), "row": counter(height, "r").shape(),
            "col": counter(width, "c").shape(), "wh": layout(wh), "reg": layout(reg), "end": 1,
        }  # fmt: skip
        #: A beat with what its comparisons said; a beat with peaks, or a frame's last.
        self.compared = data.StructLayout({"mask": data.ArrayLayout(CONDITIONS, i.lanes), **rest})
        self.found = data.StructLayout({"mask": i.lanes, **rest})
        super().__init__({
            "i": In(signature(i)), "wh_i": In(signature(wh)), "reg_i": In(signature(reg)), "o": Out(signature(o)),
            "least": In(layout(i).elem_shape, init=least),
        })  # fmt: skip

    @property
    def frame_cycles(self) -> int:
        """The most that a frame takes, whatever its maps are."""
        return decode_cycles(self.height, self.width, self.channels, self.i_lanes.lanes, self.sorter.depth, self.sorter.cells)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.window, m.submodules.sorter = self.window, self.sorter
        wiring.connect(m, wiring.flipped(self.i), self.window.i)
        wide = Lanes(lanes=self.found.size, bits=1, signed=False)
        m.submodules.queue = queue = Fifo(wide, QUEUE if self.i_lanes.lanes > 1 else 2)
        m.submodules.slice = compared = Fifo(Lanes(lanes=self.compared.size, bits=1, signed=False), 2)
        self._compare(m, compared.i)
        self._find(m, compared.o, queue.i)
        self._boxes(m, *self._candidates(m, queue.o))
        record, bits = self.sorter.o.payload, self.o_lanes.bits
        boxes = [record.entry.data[k * bits : (k + 1) * bits].as_signed() for k in range(4)]
        fields = [Mux(record.valid, field, 0) for field in (*self._fields(record.entry.key), *boxes)]
        m.d.comb += [self.o.payload[k].eq(field) for k, field in enumerate([record.valid, *fields, record.last])]
        m.d.comb += [self.o.valid.eq(self.sorter.o.valid), self.sorter.o.ready.eq(self.o.ready)]
        return m

    def _key(self, value: Value, label: Value) -> Value:
        """What is sorted by: the greater value first, of equal ones the lower label."""
        return Cat(~label, ordered(value))

    def _fields(self, key: Value) -> tuple[Value, Value]:
        """Label and value of a :meth:`_key`."""
        value = key[self.label_bits :]
        return ~key[: self.label_bits], ordered(value.as_signed()).as_signed() if self.i_lanes.signed else value

    def _compare(self, m: Module, o: Any) -> None:
        """What the windows that come are, with the pixel's size and shift."""
        lanes = self.i_lanes.lanes
        taps = [ordered(tap) for tap in self.window.o.payload]
        row, col, group = counter(self.height, "row"), counter(self.width, "col"), counter(self.groups, "group")
        last_group, last_col, last_row = group == self.groups - 1, col == self.width - 1, row == self.height - 1
        found = data.View(self.compared, Signal(self.compared, name="compared"))
        for k in range(lanes):
            value = taps[4 * lanes + k]
            # Outside lies the least value, so this holds there, but for a first pixel that is itself the least.
            greater = [(value > taps[tap * lanes + k]) | ((row == 0) & (col == 0)) for tap in range(4)]
            not_less = [value >= taps[tap * lanes + k] for tap in range(5, 9)]
            used = ~last_group if (self.groups - 1) * lanes + k >= self.channels else Const(1)
            m.d.comb += [found.mask[k].eq(Cat(*greater, *not_less, value >= ordered(self.least), used))]
            m.d.comb += found.values[k].eq(self.window.o.payload[4 * lanes + k])
        m.d.comb += [
            found.group.eq(group), found.row.eq(row), found.col.eq(col), found.end.eq(last_group & last_col & last_row),
            found.wh.eq(self.wh_i.payload), found.reg.eq(self.reg_i.payload),
        ]  # fmt: skip
        valid, take = Signal(), Signal()
        m.d.comb += [valid.eq(self.window.o.valid & self.wh_i.valid & self.reg_i.valid), take.eq(valid & o.ready)]
        m.d.comb += [o.valid.eq(valid), o.payload.as_value().eq(found)]
        m.d.comb += [self.window.o.ready.eq(take), self.wh_i.ready.eq(take & last_group), self.reg_i.ready.eq(take & last_group)]
        with m.If(take):
            m.d.sync += group.eq(Mux(last_group, 0, group + 1))
            with m.If(last_group):
                m.d.sync += col.eq(Mux(last_col, 0, col + 1))
                with m.If(last_col):
                    m.d.sync += row.eq(Mux(last_row, 0, row + 1))

    def _find(self, m: Module, i: Any, o: Any) -> None:
        """The beats with peaks; others are dropped."""
        beat, found = data.View(self.compared, i.payload.as_value()), data.View(self.found, Signal(self.found, name="found"))
        kept = found.mask.any() | found.end
        m.d.comb += [found[name].eq(beat[name]) for name in self.found.members if name != "mask"]
        m.d.comb += found.mask.eq(Cat(beat.mask[k].all() for k in range(self.i_lanes.lanes)))
        m.d.comb += [o.valid.eq(i.valid & kept), o.payload.as_value().eq(found), i.ready.eq(o.ready | ~kept)]

    def _candidates(self, m: Module, source: Any) -> tuple[Any, Value, Value, Value, Value, Signal]:
        """The peaks of a beat one by one, the lowest class first: (beat, valid, value, label, end, ready)."""
        beat = data.View(self.found, source.payload.as_value())
        lanes = self.i_lanes.lanes
        done = Signal(lanes)  # peaks of this beat that have gone
        left, ready, final = Signal(lanes), Signal(), Signal()
        first = Signal(lanes)
        m.d.comb += [left.eq(beat.mask & ~done), first.eq(left & (~left + 1)), final.eq((left & ~first) == 0)]
        with m.If(source.valid & ready):
            m.d.sync += done.eq(Mux(final, 0, done | first))
        m.d.comb += source.ready.eq(ready & final)
        value, lane = Signal(self.i.payload.shape().elem_shape), counter(lanes, "lane")
        for k in range(lanes):
            with m.If(first[k]):
                m.d.comb += [value.eq(beat["values"][k]), lane.eq(k)]
        return beat, source.valid, value, (beat.group * lanes + lane)[: self.label_bits], beat.end & final, ready

    def _boxes(self, m: Module, beat: Any, valid: Value, value: Value, label: Value, end: Value, ready: Signal) -> None:
        """Centres and half sizes, then corners, a stage each, into the sorter."""
        bits, entry = self.o_lanes.bits, self.sorter.i.payload
        out = self.sorter.i
        step = Signal()
        m.d.comb += [step.eq(~out.valid | out.ready), ready.eq(step)]
        here, held = Signal(), {}
        for name, source in (("value", value), ("label", label), ("present", beat.mask.any()), ("end", end)):
            held[name] = Signal(Value.cast(source).shape(), name=f"{name}_1", reset_less=True)
            with m.If(step):
                m.d.sync += held[name].eq(source)
        centres, halves = ([Signal(signed(bits), name=f"{n}_{k}", reset_less=True) for k in "xy"] for n in ("centre", "half"))
        with m.If(step):
            m.d.sync += [here.eq(valid), out.valid.eq(here)]
            for k, place in enumerate((beat.col, beat.row)):
                size = beat.wh[k]
                m.d.sync += centres[k].eq((place << self.frac_bits) + (beat.reg[k] << self.reg_shift))
                m.d.sync += halves[k].eq(Mux(size > 0, size << self.half_shift, 0))
            corners = [c - h for c, h in zip(centres, halves, strict=True)] + [c + h for c, h in zip(centres, halves, strict=True)]
            m.d.sync += [entry.entry.data.eq(Cat(c[:bits] for c in corners)), entry.entry.key.eq(self._key(held["value"], held["label"]))]
            m.d.sync += [entry.present.eq(held["present"]), entry.end.eq(held["end"])]


def layout(lanes: Lanes) -> data.ArrayLayout:
    """Layout of a beat."""
    return data.ArrayLayout(Shape(lanes.bits, lanes.signed), lanes.lanes)
