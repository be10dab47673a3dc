"""Which pixels of a map in memory a deformable layer needs: read commands far ahead of the data."""
from __future__ import annotations

from amaranth import Array, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.bilinear import later
from hw.lib.fifo import Fifo
from hw.lib.memory import command_layout
from hw.lib.offsets import Offsets
from hw.lib.ring import count_rows, counter
from hw.params import DeformRing, Lanes
from hw.units.base import signature


def job_layout(frac_bits: int, words: int) -> data.StructLayout:
    """What is done with the data of a command.

    ``share``: bilinear weights of the first and the second pixel, in 2^-2F; ``base``: 0..words-1, words of weights before the tap's;
    ``two``: pixels are two; ``empty``: no data come; ``last``: the pixel's last job; ``leaving``: see :class:`hw.lib.ring.RowCount`.
    """
    share = data.ArrayLayout(unsigned(2 * frac_bits + 1), 2)
    flags = {"two": 1, "empty": 1, "last": 1, "leaving": 2}
    return data.StructLayout({"share": share, "base": range(max(words, 2)), **flags})


class Fetch(wiring.Component):
    """For every output pixel, tap and row of neighbours (the lower one first) a read command and a job that says what its data are.

    The two neighbours in a row are contiguous in memory: one command. What lies outside the map or has weight 0 is not asked for; a
    pixel's last job is sent even if it has no data. The map is a ring of two frames: row r of the map begins at byte (r mod 2·height) ·
    ``row_bytes``. Throughput: one neighbour row a cycle, ``ahead`` jobs ahead of the data.

    Parameters: ``height``, ``width``; ``groups``: words of a pixel; ``word_bytes``; ``offsets``; ``offset``: lanes of the codes; ``ahead``.
    Members: ``offset_i``; ``command``: see hw.lib.memory; ``jobs``: :func:`job_layout`; ``claimed``: a place for a row is taken, allowed
    where ``room``; ``arrived``: a row may be read; ``left``: a job's ``leaving`` when its data are there.
    """

    offset_i: stream.Interface
    command: stream.Interface
    jobs: stream.Interface
    claimed: Signal
    room: Signal
    arrived: Signal
    left: Signal

    def __init__(
        self, *, height: int, width: int, groups: int, word_bytes: int, offsets: Offsets, offset: Lanes, address_bits: int, ahead: int
    ) -> None:
        self.height, self.width, self.groups, self.word_bytes, self.offsets, self.ahead = height, width, groups, word_bytes, offsets, ahead
        self.command_layout = command_layout(address_bits)
        self.job_layout = job_layout(offsets.frac_bits, offsets.size**2 * groups)
        super().__init__({
            "offset_i": In(signature(offset)), "command": Out(stream.Signature(self.command_layout)),
            "jobs": Out(stream.Signature(self.job_layout)),
            "claimed": In(1), "room": Out(1), "arrived": In(1), "left": In(2),
        })  # fmt: skip

    @property
    def ring(self) -> DeformRing:
        """Which rows are needed when; the ring's capacity is two frames."""
        return DeformRing(height=self.height, reach=self.offsets.reach)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        step, push = Signal(), Signal()
        commands, jobs = (
            Fifo(Lanes(lanes=shape.size, bits=1, signed=False), depth)
            for shape, depth in ((self.command_layout, 2), (self.job_layout, self.ahead))
        )
        m.submodules.commands, m.submodules.queue = commands, jobs
        for queue, port in ((commands, self.command), (jobs, self.jobs)):
            m.d.comb += [port.valid.eq(queue.o.valid), port.payload.as_value().eq(queue.o.payload.as_value()), queue.o.ready.eq(port.ready)]
        m.d.comb += step.eq(~push | (commands.i.ready & jobs.i.ready))
        command, job = Signal(self.command_layout), Signal(self.job_layout)
        some = self._place(m, step, self._issue(m, step), command, job)
        valid = later(m, step, self._issued, 5)
        m.d.comb += [push.eq(valid & (some | job.last)), job.empty.eq(~some)]
        m.d.comb += [commands.i.valid.eq(push & some & jobs.i.ready), commands.i.payload.as_value().eq(command.as_value())]
        m.d.comb += [jobs.i.valid.eq(push & commands.i.ready), jobs.i.payload.as_value().eq(job.as_value())]
        return m

    def _issue(self, m: Module, step: Value) -> dict[str, Value]:
        """Counters of the loops; the distances (ty, tx) of the current tap in 2^-F pixels and where its pixel lies, one step later."""
        offsets, known = self.offsets, Signal()
        halves = 2 if offsets.frac_bits else 1
        half, j, i, x, y, slot, base = (
            counter(n, name)
            for n, name in (
                (halves, "half"), (offsets.size, "j"), (offsets.size, "i"), (self.width, "x"), (self.height, "y"),
                (2 * self.height, "slot"), (offsets.size**2 * self.groups, "base"),
            )
        )  # fmt: skip
        row_done, frame_done = Signal(), Signal()
        rows = count_rows(
            m, self.ring, 2 * self.height, y=y, row_done=row_done, frame_done=frame_done, arrived=self.arrived, claimed=self.claimed,
            left=self.left,
        )  # fmt: skip
        go = self._issued = Signal()
        m.d.comb += [self.room.eq(rows.room), go.eq(step & known & rows.ready)]
        ends: list[Value] = [go]
        for index, size in ((half, halves), (j, offsets.size), (i, offsets.size), (x, self.width), (y, self.height)):
            end = Signal(name=f"{index.name}_end")
            m.d.comb += end.eq(ends[-1] & (index == size - 1))
            with m.If(ends[-1]):
                m.d.sync += index.eq(Mux(end, 0, index + 1))
            ends.append(end)
        _, tap_done, _, pixel_done, *_ = ends
        m.d.comb += [row_done.eq(ends[4]), frame_done.eq(ends[5])]
        with m.If(tap_done):
            m.d.sync += base.eq(Mux(pixel_done, 0, base + self.groups))
        with m.If(row_done):
            m.d.sync += slot.eq(Mux(slot == 2 * self.height - 1, 0, slot + 1))
        down, right = offsets.distances(m, self.offset_i, known=known, tap_done=tap_done, pixel_done=pixel_done)
        ty, tx = (Signal(signed(offsets.bits), name=name) for name in ("ty", "tx"))
        with m.If(step):
            m.d.sync += [ty.eq(Array(down)[i]), tx.eq(Array(right)[j])]
        second = (half == 0) & (halves == 2)
        here = {"y": y, "x": x, "slot": slot, "base": base, "last": pixel_done, "leaving": rows.leaving, "second": second}
        return {"ty": ty, "tx": tx, **{name: later(m, step, value, 1) for name, value in here.items()}}

    def _place(self, m: Module, step: Value, tap: dict[str, Value], command: data.View, job: data.View) -> Value:
        """Fills ``command`` and ``job``, four steps after the distances; returns whether there is anything to read.

        A step each: where the neighbours lie; what of them is inside and counts; how many there are and where they begin; the address.
        """
        frac, groups, second = self.offsets.frac_bits, self.groups, tap["second"]
        one, slots = 1 << frac, 2 * self.height
        sums = tap["y"] + (tap["ty"] >> frac) + second, tap["x"] + (tap["tx"] >> frac), tap["slot"] + (tap["ty"] >> frac) + second
        row, col, turned = (later(m, step, value, 1).as_signed() for value in sums)
        fy, fx = (later(m, step, tap[name][:frac], 1) for name in ("ty", "tx"))
        second = later(m, step, second, 1)

        share_y = Mux(second, fy, one - fy)[: frac + 1]
        counts = (row >= 0) & (row < self.height) & (share_y != 0)  # the slot turns at most once where this holds
        left, right = ((at >= 0) & (at < self.width) for at in (col, col + 1))
        begin = Mux(left, col, col + 1)
        slot = Mux(turned < 0, turned + slots, Mux(turned >= slots, turned - slots, turned))[: (slots - 1).bit_length()]
        left, right, share_y, slot = (later(m, step, v, 1) for v in (left & counts, right & counts & (fx != 0), share_y, slot))
        begin, fx = later(m, step, begin[: max((self.width - 1).bit_length(), 1)], 1), later(m, step, fx, 1)

        line_bytes, pixel_bytes = self.width * groups * self.word_bytes, groups * self.word_bytes
        line = Array([k * line_bytes for k in range(slots)])[slot]
        place = Array([k * pixel_bytes for k in range(self.width)])[begin]
        share_x = Mux(left, one - fx, fx)[: frac + 1]
        line, place, share_y, share_x, fx = (later(m, step, v, 1) for v in (line, place, share_y, share_x, fx))
        some, two = (later(m, step, v, 1) for v in (left | right, left & right))

        m.d.comb += [command.address.eq(later(m, step, line + place, 1)), command.words.eq(later(m, step, Mux(two, 2 * groups, groups), 1))]
        m.d.comb += [job.share[k].eq(later(m, step, share_y * x, 1)) for k, x in enumerate((share_x, fx))]
        m.d.comb += job.two.eq(later(m, step, two, 1))
        m.d.comb += Cat(job.base, job.last, job.leaving).eq(later(m, step, Cat(tap["base"], tap["last"], tap["leaving"]), 4))
        return later(m, step, some, 1)
