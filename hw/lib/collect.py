"""Sums over neighbours that arrive word by word, channel groups in turn."""
from __future__ import annotations

from amaranth import Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.arith import adder_tree, tree_stages
from hw.lib.bilinear import later
from hw.lib.fetch import job_layout
from hw.lib.fifo import Fifo
from hw.lib.mac import bits_for, words_of
from hw.lib.ring import counter
from hw.lib.store import ram, rows_of
from hw.params import Ints, Ints2, Lanes
from hw.units.base import layout, signature

#: Channel groups that a pixel must have: so many steps lie between reading and writing of a sum.
LEAST_GROUPS = 4


class Collect(wiring.Component):
    """``o[c] = bias[c] + Σ share · weights[tap][c] · pixel[c]`` over the jobs of an output pixel; the sums lie in a memory on the way.

    Words are the channel groups of a pixel in turn. The product of a share and a weight is an adder tree over the weight's bits,
    its product with the channel a multiplier a lane. The sums leave while the pixel's last job runs.

    Throughput: a word a cycle, and ``groups`` cycles for an empty job. Latency: 7 cycles, and 1 more if weights have more than 4 bits.

    Parameters: ``weights`` (taps, C), ``bias`` (C,), ``frac_bits``, ``i`` lanes of a word, ``o`` as many, signed.
    Members: ``jobs``: :func:`hw.lib.fetch.job_layout`; ``words``: lanes of ``i``; ``o``; ``left``: ``leaving`` of the job that ends.
    Raises ValueError if there are too few groups or the bias does not fit ``o``.
    """

    jobs: stream.Interface
    words: stream.Interface
    o: stream.Interface
    left: Signal

    def __init__(self, *, weights: Ints2, bias: Ints, frac_bits: int, i: Lanes, o: Lanes) -> None:
        if o.lanes != i.lanes or not o.signed:
            raise ValueError(f"o must be signed and have {i.lanes} lanes like i, not {o!r}")
        if bits_for(bias) > o.bits:
            raise ValueError(f"bias must fit {o.bits} bits, not {min(bias)}..{max(bias)}")
        self.groups = i.beats(len(bias))
        if self.groups < LEAST_GROUPS:
            raise ValueError(f"a pixel must take at least {LEAST_GROUPS} words of {i.lanes} channels, not {self.groups}")
        self.lanes, self.out, self.frac_bits = i, o, frac_bits
        self._weights = [word for row in weights for word in words_of(row, i.lanes)]
        self._bias = words_of(bias, i.lanes)
        jobs = stream.Signature(job_layout(frac_bits, len(self._weights)))
        super().__init__({"jobs": In(jobs), "words": In(signature(i)), "o": Out(signature(o)), "left": Out(2)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.slice = out = Fifo(self.out, 2)  # no path from the reader's ready to the memory's
        wiring.connect(m, out.o, wiring.flipped(self.o))
        step, take, fresh, ends = Signal(), Signal(), Signal(init=1), Signal()
        m.d.comb += step.eq(out.i.ready)
        job, group, second = self.jobs.payload, counter(self.groups, "group"), Signal()
        ready = step & self.jobs.valid
        m.d.comb += [self.words.ready.eq(ready & ~job.empty), take.eq(ready & (job.empty | self.words.valid))]
        last_group, final = group == self.groups - 1, ~job.two | second
        m.d.comb += [ends.eq(take & last_group & final), self.jobs.ready.eq(ends), self.left.eq(Mux(ends, job.leaving, 0))]
        with m.If(take):
            m.d.sync += group.eq(Mux(last_group, 0, group + 1))
        with m.If(take & last_group):
            m.d.sync += [second.eq(~final), fresh.eq(job.last & final)]
        share = Mux(job.empty, 0, job.share[second])
        products = self._products(m, step, share, job.base + group)
        late = 5 + tree_stages(self._weight_bits)
        valid, leaves = (later(m, step, v, late) for v in (take, job.last & final))
        self._sum(m, step, later(m, step, group, late - 3), later(m, step, fresh, late - 1), products, valid, out.i.payload)
        m.d.comb += out.i.valid.eq(valid & leaves)
        return m

    @property
    def _weight_bits(self) -> int:
        return bits_for(v for word in self._weights for v in word)

    def _products(self, m: Module, step: Value, share: Value, index: Value) -> list[Value]:
        """share · weight · channel of every lane, 4 + tree_stages(bits of a weight) steps later."""
        bits = self._weight_bits
        weights = rows_of(m, "weights", self._weights, bits, index, step)
        stages = tree_stages(bits)
        share = later(m, step, share, 2)
        words = data.View(layout(self.lanes), later(m, step, self.words.payload.as_value(), 2 + stages))
        found = []
        for k in range(self.lanes.lanes):
            weight = later(m, step, weights[k], 1)
            terms = [Mux(bit, share << n if n < bits - 1 else -(share << n), 0) for n, bit in enumerate(weight)]
            factor = adder_tree(m, terms, step, f"factor_{k}")[: len(share) + bits].as_signed()
            product = Signal(signed(len(factor) + self.lanes.bits + 1), name=f"product_{k}", reset_less=True)
            with m.If(step):
                m.d.sync += product.eq(words[k] * factor)
            found.append(later(m, step, product, 1).as_signed())  # a multiplier is slow: registers at both its ends
        return found

    def _sum(self, m: Module, step: Value, group: Value, first: Value, products: list[Value], valid: Value, total: data.View) -> None:
        """Adds up into ``total``, three steps after ``group``, one after ``first`` and ``products``; ``valid`` comes with ``total``."""
        shape = layout(self.out)
        m.submodules.sums = sums = ram(shape, self.groups)
        r_port, w_port = sums.read_port(), sums.write_port()
        m.d.comb += [r_port.addr.eq(group), r_port.en.eq(step)]
        found = [r_port.data]
        if any(v for word in self._bias for v in word):
            found.append(rows_of(m, "bias", self._bias, self.out.bits, group, step))
        before, *starts = (data.View(shape, later(m, step, row.as_value(), 1)) for row in found)
        held = Signal(shape, reset_less=True)
        for k, product in enumerate(products):
            start = starts[0][k] if starts else 0
            with m.If(step):
                m.d.sync += held[k].eq(Mux(first, start, before[k]) + product)
        m.d.comb += [w_port.addr.eq(later(m, step, group, 3)), w_port.data.eq(held), w_port.en.eq(valid)]
        m.d.comb += total.as_value().eq(held.as_value())
