# amaranth: UnusedElaboratable=no
"""The end of the shared engine: accumulators to bytes in the output pool, a few at a time."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fixed import round_kept, saturate, shift_keep
from hw.lib.pool import choose
from hw.lib.slab import PARAMETER_SLOTS
from hw.params import Lanes
from hw.units.base import signature

#: Bits of one channel's parameters in memory: bias, then multiplier, then shift less the least of all.
PARAMETERS, MULTIPLIER_BITS, SHIFT_BITS = 64, 17, 6
#: Registers between the holding register and the pool: parameters, bias, product, shift, rounding, clamp.
STAGES = 9


@dataclass(frozen=True, kw_only=True)
class Finish:
    """What the end of the engine knows of a layer: pixels of a tile, folds, channels, words of a pixel in the output pool, the clamp."""

    tile: int
    folds: int
    channels: int
    words: int
    low: int
    high: int


class Finisher(wiring.Component):
    """PE accumulators, ``lanes`` of them a cycle: ``clamp(((acc + bias) · m + 2^(s-1)) >> s, low, high)``, a byte each.

    Results come fold by fold, in each pixel by pixel, and are written to the pixels' words: byte c of a pixel is channel c. Channels that
    the last fold has too many are left out. Nothing stalls it; ``take`` is up when the accumulators at ``accs`` are taken, at most every
    PE / lanes cycles. Ten cycles from ``take`` to the first byte.

    ``clear``: what a word holds besides is 0; else it stays as it was. ``multiplier_bits``: of a signed factor that a slice takes; wider
    sums take two.

    Members: ``job``: the layers in turn; ``accs``, ``valid``, ``take``; ``free_next``: a valid one would be taken in the next cycle;
    ``slot``, ``word``, ``parameters``: as of :class:`SlabLoader`; ``filling``, ``ready``, ``begin``, ``first``, ``addr``, ``mask``,
    ``data``, ``finish``, ``finished``: :func:`hw.lib.tiles.result_port`; ``sum``, ``sum_valid``, ``sum_layer``: accumulators with bias as
    they pass, for the simulation.
    """

    def __init__(
        self, layers: Sequence[Finish], *, pe: int, bits: int, lanes: int, shift: int, data_bits: int, size: int, out: wiring.Signature,
        clear: bool = False, multiplier_bits: int = 27,
    ) -> None:  # fmt: skip
        per_word = data_bits // PARAMETERS
        if pe % lanes or per_word % lanes or size % lanes:
            raise ValueError(f"requantizers must divide PE {pe}, {per_word} parameters a word and {size} bytes, not be {lanes!r}")
        if bits + MULTIPLIER_BITS + SHIFT_BITS > PARAMETERS:
            raise ValueError(f"accumulators must have at most {PARAMETERS - MULTIPLIER_BITS - SHIFT_BITS} bits, not {bits!r}")
        self.layers, self.pe, self.bits, self.lanes, self.shift, self.per_word = list(layers), pe, bits, lanes, shift, per_word
        self.bytes, self.clear, self.multiplier_bits = size, clear, multiplier_bits
        self.clamps = list(dict.fromkeys((f.low, f.high) for f in layers))
        index = range(len(layers))
        super().__init__({
            "job": In(signature(Lanes(lanes=1, bits=max((len(layers) - 1).bit_length(), 1), signed=False))),
            "accs": In(data.ArrayLayout(signed(bits), pe)), "valid": In(1), "take": Out(1), "free_next": Out(1),
            "slot": Out(range(PARAMETER_SLOTS)), "word": Out(range(max(-(-pe // per_word), 2))), "parameters": In(data_bits),
            **dict(out.members.items()),
            "sum": Out(data.ArrayLayout(signed(bits), lanes)), "sum_valid": Out(1), "sum_layer": Out(index),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        layer, loaded, chosen, left, ending = Signal(range(len(self.layers))), Signal(), Signal(), Signal(range(self.pe + 1)), Signal()
        # Nothing is left to leave, or the last of it leaves now and the job goes on; told a cycle ahead, too, for what hangs on it.
        free, free_next, loaded_next = Signal(init=1), Signal(), Signal()
        m.d.comb += self.free_next.eq(free_next & loaded_next)
        m.d.sync += [free.eq(free_next), loaded.eq(loaded_next)]
        # A job in two steps: its number, then what is known of it.
        m.d.comb += [self.job.ready.eq(~chosen & ~loaded), self.filling.eq(layer), self.begin.eq(chosen & ~loaded & self.ready)]
        with m.If(self.job.ready & self.job.valid):
            m.d.sync += [layer.eq(self.job.payload[0]), chosen.eq(1)]
        constants = {n: [getattr(f, n) for f in self.layers] for n in ("tile", "folds", "channels", "words")}
        known = {n: Signal(range(max(v) + 1), name=f"{n}_now") for n, v in constants.items()}
        kind = Signal(range(len(self.clamps)))
        base = Signal.like(self.first, name="tile_base")
        with m.If(self.begin):
            m.d.sync += [known[n].eq(choose(m, n, layer, v)) for n, v in constants.items()]
            m.d.sync += kind.eq(choose(m, "kind", layer, [self.clamps.index((f.low, f.high)) for f in self.layers]))
            m.d.sync += [base.eq(self.first), chosen.eq(0)]
        m.d.comb += [self.take.eq(self.valid & loaded & free), loaded_next.eq((loaded | self.begin) & ~((left == 1) & ending))]
        emitted = self.walk(m, known, base, left, ending, free_next)
        self.pipeline(m, emitted, layer, kind)
        return m

    def walk(self, m: Module, known: dict[str, Signal], base: Signal, left: Signal, ending: Signal, free_next: Signal) -> dict[str, Value]:
        """Where results belong: what leaves the holding register in this cycle, with its place."""
        groups = self.pe // self.lanes
        hold = Signal(self.pe * self.bits, reset_less=True)
        pixel, fold = Signal.like(known["tile"], name="pixel"), Signal.like(known["folds"], name="fold")
        pixel_word = Signal.like(self.first, name="pixel_word")  # first word of the pixel
        words, lane0 = Signal.like(known["words"], name="fold_word"), Signal(range(self.bytes))  # where the fold begins in a pixel
        rest = Signal(signed(len(known["channels"]) + 1), name="rest")  # channels of this fold and the later ones
        slot, index = Signal(range(PARAMETER_SLOTS), name="fold_slot"), Signal(range(groups))
        word, lane, some = Signal.like(self.first, name="byte_word"), Signal(range(self.bytes)), Signal.like(rest, name="some")
        slot_now = Signal.like(slot, name="slot_now")
        last_pixel, last_fold = pixel == known["tile"] - 1, fold == known["folds"] - 1
        m.d.comb += free_next.eq((left <= 1) | ((left == 2) & ~ending))
        with m.If(left != 0):
            m.d.sync += [left.eq(left - 1), hold.eq(hold >> self.lanes * self.bits), index.eq(index + 1), some.eq(some - self.lanes)]
            m.d.sync += lane.eq(Mux(lane == self.bytes - self.lanes, 0, lane + self.lanes))
            m.d.sync += word.eq(word + (lane == self.bytes - self.lanes))
        with m.If(self.begin):
            channels = choose(m, "channels_first", self.filling, [f.channels for f in self.layers])
            m.d.sync += [pixel.eq(0), fold.eq(0), words.eq(0), lane0.eq(0), rest.eq(channels), pixel_word.eq(self.first)]
        with m.If(self.take):
            m.d.sync += [hold.eq(self.accs.as_value()), left.eq(groups), index.eq(0), some.eq(rest), slot_now.eq(slot)]
            m.d.sync += [word.eq(pixel_word + words), lane.eq(lane0), ending.eq(last_pixel & last_fold)]
            m.d.comb += free_next.eq(~(last_pixel & last_fold) if groups == 1 else 0)
            m.d.sync += [pixel.eq(pixel + 1), pixel_word.eq(pixel_word + known["words"])]
            with m.If(last_pixel):
                carry = lane0 + self.pe % self.bytes >= self.bytes
                m.d.sync += [pixel.eq(0), fold.eq(fold + 1), pixel_word.eq(base), rest.eq(rest - self.pe), slot.eq(slot + 1)]
                m.d.sync += words.eq(words + self.pe // self.bytes + carry)
                m.d.sync += lane0.eq(Mux(carry, lane0 + self.pe % self.bytes - self.bytes, lane0 + self.pe % self.bytes))
        m.d.comb += [self.slot.eq(slot_now), self.word.eq(index * self.lanes >> (self.per_word.bit_length() - 1))]
        within = (index * self.lanes)[: max((self.per_word - 1).bit_length(), 1)] if self.per_word > self.lanes else Const(0)
        return {
            "acc": hold[: self.lanes * self.bits], "valid": left != 0, "word": word, "lane": lane, "within": within,
            "used": Cat(some > j for j in range(self.lanes)), "finish": (left == 1) & ending,
        }  # fmt: skip

    def pipeline(self, m: Module, now: dict[str, Value], layer: Signal, kind: Signal) -> None:
        """Parameters, bias, product, shift, rounding and clamp, registers after each; the place travels along."""

        def step(value: Value, name: str) -> Signal:
            out = Signal(value.shape(), name=name, reset_less=True)
            m.d.sync += out.eq(value)
            return out

        valid, finish = [now["valid"]], [now["finish"]]
        rides = {"word": now["word"], "lane": now["lane"], "used": now["used"], "kind": kind, "layer": layer}
        chains: dict[str, list[Value]] = {n: [v] for n, v in rides.items()}
        for k in range(STAGES):
            for chain, name in ((valid, "valid"), (finish, "finish")):
                out = Signal(name=f"{name}{k}")
                m.d.sync += out.eq(chain[-1])
                chain.append(out)
            for name, chain in chains.items():
                chain.append(step(chain[-1], f"{name}{k}"))
        acc, within = step(step(now["acc"], "acc_0"), "acc"), step(now["within"], "within")
        fields = self.parameters.word_select(within, self.lanes * PARAMETERS) if self.per_word > self.lanes else self.parameters
        fields = step(fields, "fields")  # block RAM is slow
        results = []
        for j in range(self.lanes):
            field = fields[j * PARAMETERS : (j + 1) * PARAMETERS]
            bias, rest = field[: self.bits].as_signed(), field[self.bits :]
            total = step((acc[j * self.bits : (j + 1) * self.bits].as_signed() + bias)[: self.bits].as_signed(), f"total{j}")
            multiplier = step(rest[:MULTIPLIER_BITS].as_signed(), f"multiplier{j}")
            extra = step(rest[MULTIPLIER_BITS : MULTIPLIER_BITS + SHIFT_BITS], f"extra{j}_0")
            product = self._product(step, total, multiplier, j)
            coarse, fine = (step(step(part, f"{n}{j}_1"), f"{n}{j}_2") for n, part in (("coarse", extra[3:]), ("fine", extra[:3])))
            kept = step(shift_keep(product, self.shift)[0] >> (coarse << 3), f"kept{j}_0")
            kept = step(kept >> step(fine, f"fine{j}_3"), f"kept{j}")
            rounded = step(round_kept(kept, Const(0), "half_up"), f"rounded{j}")
            clamped = [saturate(rounded, low, high) for low, high in self.clamps]
            byte = clamped[0]
            for k, value in enumerate(clamped[1:], 1):
                byte = Mux(chains["kind"][STAGES - 1] == k, value, byte)
            results.append(step(byte[:8], f"byte{j}"))
            m.d.comb += self.sum[j].eq(total)
        m.d.comb += [self.sum_valid.eq(valid[3]), self.sum_layer.eq(chains["layer"][3])]
        used, lane = chains["used"][STAGES], chains["lane"][STAGES]
        copies = self.bytes // self.lanes
        m.d.comb += [self.addr.eq(chains["word"][STAGES]), self.data.eq(Cat(results).replicate(copies))]
        m.d.comb += [self.finish.eq(finish[STAGES]), self.finished.eq(chains["layer"][STAGES])]
        with m.If(valid[STAGES]):
            m.d.comb += self.mask.eq(Cat(used) << lane)
        if self.clear:
            with m.If(lane == 0):
                first = Cat(Mux(used[j], byte, 0) for j, byte in enumerate(results))
                m.d.comb += self.data.eq(Cat(first, Const(0, 8 * self.bytes - len(first))))
                with m.If(valid[STAGES]):
                    m.d.comb += self.mask.eq(used[0].replicate(self.bytes))

    def _product(self, step: Callable[[Value, str], Signal], total: Signal, multiplier: Signal, j: int) -> Signal:
        """Two registers later, in one slice or two that join (``multiplier_bits`` wide)."""
        low = self.multiplier_bits - 1
        if self.bits <= self.multiplier_bits:
            return step(step(total * multiplier, f"product{j}_0"), f"product{j}")
        upper, lower = step(total[low:].as_signed() * multiplier, f"upper{j}"), step(total[:low] * multiplier, f"lower{j}")
        return step((upper << low) + lower, f"product{j}")
