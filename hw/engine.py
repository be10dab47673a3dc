# amaranth: UnusedElaboratable=no
"""The shared engine: many pointwise convolutions on one matrix-vector core, with weights that come from memory."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.arith import bits_for, pack_row, wrap
from hw.lib.core import MatVecCore
from hw.lib.fifo import Fifo
from hw.lib.finisher import MULTIPLIER_BITS, PARAMETERS, SHIFT_BITS, Finish, Finisher
from hw.lib.memory import ReadPort
from hw.lib.pool import OutPool, Region, choose
from hw.lib.slab import Blocks, SlabLoader
from hw.lib.spool import Spool, Waiting
from hw.lib.tiles import ChipTiles
from hw.params import Ints, Ints2, Lanes, Multiplier, Range
from hw.units.base import Unit, signature


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """A pointwise convolution and its requantization (rounding half up): ``pixels`` a frame, ``weights`` (OC, IC), ``bias`` (OC,),
    ``multiplier`` and ``shift`` (OC,), clamp ``low``..``high``; ``i`` and ``o``: its streams, elements of at most 8 bits.

    ``tile``: pixels of a job, a divisor of ``pixels``; ``in_slots``, ``out_slots``: tiles kept before and behind it on chip, or
    ``in_blocks``, ``out_blocks`` kept in memory.
    """

    pixels: int
    weights: Ints2
    bias: Ints
    multiplier: Ints
    shift: Ints
    low: int
    high: int
    i: Lanes
    o: Lanes
    tile: int
    in_slots: int = 1
    out_slots: int = 1
    in_blocks: int = 0
    out_blocks: int = 0

    @property
    def channels(self) -> int:
        """Channels of an input pixel."""
        return len(self.weights[0])

    @property
    def jobs(self) -> int:
        """Jobs a frame."""
        return self.pixels // self.tile

    def folds(self, pe: int) -> int:
        """Groups of ``pe`` output channels."""
        return -(-len(self.weights) // pe)


@dataclass(frozen=True, kw_only=True)
class Spilled:
    """Tiles that lie in external memory, and what else does: streams ``plain`` that only wait there; words of the rings on chip."""

    operands: int
    results: int
    plain: Sequence[Waiting] = ()


class EngineUnit(Unit):
    """Pointwise convolutions with requantization that share one matrix-vector core of PE × SIMD products a cycle.

    Golden model of each layer: sw.ops.conv.Conv.golden, then sw.ops.requant.Requant.golden. A job is a tile of one layer's pixels; it
    is taken when the tile is whole and its results will have room, if need be once the jobs before it are out of the way; so no layer ever
    waits for what another still has to do with the core in its hands. Layers with a job take turns. Its weights come from memory fold by
    fold, are used for all the tile's pixels, and the next fold's arrive meanwhile (:class:`SlabLoader`). The tiles of all layers lie in
    one pool in front and one pool behind, so a layer costs no buffer of its own; or, with ``memory``, in queues in external memory
    (:class:`hw.lib.spool.Spool`), where other streams can wait, too.

    Throughput: an operand set a cycle as long as there are jobs and weights arrive in time: :attr:`frame_cycles`. A fold takes at least
    PE / ``lanes`` cycles a pixel. Latency: a tile's, plus the jobs before it.

    Parameters: ``layers``; ``pe``; SIMD are the lanes of their inputs, or with ``memory`` the bytes of a word; ``lanes``: requantizers;
    ``multiplier``: kind; ``data_bits``: of the memory's bus. ValueError if sizes or ranges do not fit.

    Members: ``i0``, ``o0``, ``i1``...: the layers' streams; ``weights``: :class:`ReadPort`; what must lie there: :meth:`image`; with
    ``memory``, ``plain_i0``, ``plain_o0``...: the streams that only wait, and ``read``, ``write``: ports of the same region;
    ``acc0``...: sums with bias in the order of the jobs (tile by tile, in it fold by fold, pixel by pixel, ``lanes`` at a time), for the
    simulation to watch.
    """

    ADDRESS_BITS = 32

    def __init__(
        self, *, layers: Sequence[EngineLayer], pe: int, lanes: int = 1, multiplier: Multiplier = "inferred", data_bits: int = 128,
        memory: Spilled | None = None,
    ) -> None:  # fmt: skip
        _check(layers)
        self.layers, self.pe, self.lanes, self.data_bits, self.memory = list(layers), pe, lanes, data_bits, memory
        self.simd = simd = data_bits // 8 if memory else layers[0].i.lanes
        self.bits = max(_sum_bits(layer) for layer in layers)
        rows = [row for layer in layers for row in layer.weights]
        weight = Range(low=min(0, min(map(min, rows))), high=max(1, max(map(max, rows))))
        self.core = MatVecCore(pe=pe, simd=simd, weight=weight, i=Lanes(lanes=simd, bits=8, signed=False), bits=self.bits, kind=multiplier)
        self.shift = min(s for layer in layers for s in layer.shift)
        size = -(-pe // (data_bits // PARAMETERS))
        columns = -(-self.core.dot.row_bits // data_bits)
        blocks, address = [], 0
        for k in layers:
            blocks.append(Blocks(address=address, folds=k.folds(pe), rows=self.rows(k)))
            address += blocks[-1].folds * (self.rows(k) * columns + size) * data_bits // 8
        self.weight_bytes = address
        self.tiles = self.on_chip() if memory is None else self.in_memory(memory)
        self.region_bytes = self.tiles.end_bytes if isinstance(self.tiles, Spool) else address
        self.loader = SlabLoader(
            blocks, row_bits=self.core.dot.row_bits, parameter_words=size, data_bits=data_bits, address_bits=self.ADDRESS_BITS
        )
        finishes = [
            Finish(tile=k.tile, folds=k.folds(pe), channels=len(k.weights), words=self.words(k), low=k.low, high=k.high) for k in layers
        ]
        self.finisher = Finisher(
            finishes, pe=pe, bits=self.bits, lanes=lanes, shift=self.shift, data_bits=data_bits, size=self.tiles.bytes,
            out=self.tiles.signature.members["outs"].signature, clear=memory is not None,
            multiplier_bits=18 if multiplier in ("packed18", "mult18x18d") else 27,
        )  # fmt: skip
        self.acc = Lanes(lanes=lanes, bits=self.bits, signed=True)
        # A stream to watch: nobody need take its beats, so ready is up unless it is driven.
        seen = wiring.Signature({"payload": Out(data.ArrayLayout(signed(self.bits), lanes)), "valid": Out(1), "ready": In(1, init=1)})
        super().__init__({
            **{f"i{n}": In(signature(k.i)) for n, k in enumerate(layers)},
            **{f"o{n}": Out(signature(k.o)) for n, k in enumerate(layers)},
            "weights": Out(ReadPort(address_bits=self.ADDRESS_BITS, data_bits=data_bits)), **self._spooled(),
            **{f"acc{n}": Out(seen) for n in range(len(layers))},
        })  # fmt: skip

    def rows(self, layer: EngineLayer) -> int:
        """Operand sets of a pixel."""
        return -(-layer.channels // self.simd)

    def words(self, layer: EngineLayer) -> int:
        """Words of a pixel's results."""
        return -(-len(layer.weights) // self.simd)

    def on_chip(self) -> ChipTiles:
        """Pools on chip."""
        fronts = [Region(lanes=k.i, tile=k.tile * self.rows(k), slots=k.in_slots) for k in self.layers]
        return ChipTiles(fronts, [Region(lanes=k.o, tile=k.tile * self.words(k), slots=k.out_slots) for k in self.layers])

    def in_memory(self, memory: Spilled) -> Spool:
        """Queues in memory, behind the weights."""
        fronts = [Waiting(lanes=k.i, beats=k.i.beats(k.channels), capacity=k.in_blocks, tile=k.tile) for k in self.layers]
        backs = [Waiting(lanes=k.o, beats=k.o.beats(len(k.weights)), capacity=k.out_blocks, tile=k.tile) for k in self.layers]
        return Spool(
            plain=memory.plain, fronts=fronts, backs=backs, base=self.weight_bytes, operands=memory.operands, results=memory.results,
            address_bits=self.ADDRESS_BITS, data_bits=self.data_bits,
        )  # fmt: skip

    def _spooled(self) -> dict[str, Any]:
        """Members of an engine whose tiles lie in memory."""
        if self.memory is None:
            return {}
        members: dict[str, Any] = {name: Out(self.tiles.signature.members[name].signature) for name in ("read", "write")}
        for k, queue in enumerate(self.memory.plain):
            members |= {f"plain_i{k}": In(signature(queue.lanes)), f"plain_o{k}": Out(signature(queue.lanes))}
        return members

    @property
    def frame_cycles(self) -> int:
        """All jobs of a frame, one after the other; a job takes its operand sets, or its weights' words if those are more."""
        total = 0
        for k, b in zip(self.layers, self.loader.layers, strict=True):
            total += k.jobs * b.folds * max(k.tile * max(b.rows, self.pe // self.lanes), self.loader.words(b))
        return total

    @property
    def frame_words(self) -> int:
        """Words of the bus that a frame's jobs read."""
        return sum(k.jobs * b.folds * self.loader.words(b) for k, b in zip(self.layers, self.loader.layers, strict=True))

    @property
    def multipliers(self) -> int:
        return self.core.multipliers

    def image(self) -> bytes:
        """What must lie in memory."""
        size = self.data_bits // 8
        simd, parts = self.core.dot.simd, []
        for layer in self.layers:
            width = self.rows(layer) * simd
            rows = [[*row, *[0] * (width - len(row))] for row in layer.weights]
            rows += [[0] * width] * (layer.folds(self.pe) * self.pe - len(rows))
            for first in range(0, len(rows), self.pe):
                fold = rows[first : first + self.pe]
                for n in range(0, width, simd):
                    word = self.core.dot.encode([row[n : n + simd] for row in fold])
                    parts.append(word.to_bytes(self.loader.columns * size, "little"))
                values = [self._parameters(layer, c) if c < len(layer.weights) else 0 for c in range(first, first + self.pe)]
                parts.append(pack_row(values, PARAMETERS).to_bytes(self.loader.parameter_words * size, "little"))
        return b"".join(parts)

    def _parameters(self, layer: EngineLayer, channel: int) -> int:
        """Bias without what the core adds (packing, signed inputs moved up by 128), multiplier, shift."""
        bias = layer.bias[channel] - self.rows(layer) * self.core.dot.offset - 128 * layer.i.signed * sum(layer.weights[channel])
        widths = (self.bits, MULTIPLIER_BITS, SHIFT_BITS)
        value, at = 0, 0
        for field, bits in zip((wrap(bias, self.bits), layer.multiplier[channel], layer.shift[channel] - self.shift), widths, strict=True):
            value |= (field & (1 << bits) - 1) << at
            at += bits
        return value

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.tiles, m.submodules.core = self.tiles, self.core
        m.submodules.loader, m.submodules.finisher = self.loader, self.finisher
        plain = len(self.memory.plain) if self.memory else 0
        for n in range(plain + len(self.layers)):
            into, out = (f"plain_i{n}", f"plain_o{n}") if n < plain else (f"i{n - plain}", f"o{n - plain}")
            wiring.connect(m, wiring.flipped(getattr(self, into)), getattr(self.tiles, f"i{n}"))
            wiring.connect(m, getattr(self.tiles, f"o{n}"), wiring.flipped(getattr(self, out)))
        for name in ("read", "write") if self.memory else ():
            wiring.connect(m, getattr(self.tiles, name), wiring.flipped(getattr(self, name)))
        wiring.connect(m, self.loader.memory, wiring.flipped(self.weights))
        jobs = self.issue(m, 4)
        wiring.connect(m, jobs[0].o, self.loader.fetch)
        wiring.connect(m, jobs[1].o, self.loader.fill)
        wiring.connect(m, jobs[2].o, self.finisher.job)
        self.run(m, jobs[3].o)
        self.finish(m)
        return m

    def issue(self, m: Module, count: int) -> list[Fifo]:
        """The job that is offered goes to all queues."""
        tiles = self.tiles
        lanes = Lanes(lanes=1, bits=max((len(self.layers) - 1).bit_length(), 1), signed=False)
        queues = [Fifo(lanes, 3, "registers") for _ in range(count)]
        for k, queue in enumerate(queues):
            m.submodules[f"jobs{k}"] = queue
            m.d.comb += [queue.i.valid.eq(tiles.claim), queue.i.payload[0].eq(tiles.offered)]
        m.d.comb += tiles.claim.eq(tiles.offer & Cat(queue.i.ready for queue in queues).all())
        return queues

    def run(self, m: Module, jobs: stream.Interface) -> None:
        """The core's steps: fold by fold, in each pixel by pixel, beat by beat."""
        core, ins, loader = self.core, self.tiles.ins, self.loader
        layer, chosen, running = Signal(range(len(self.layers))), Signal(), Signal()
        tables = {"beats": [self.rows(k) - 1 for k in self.layers], "pixels": [k.tile - 1 for k in self.layers]}
        tables["folds"] = [k.folds(self.pe) - 1 for k in self.layers]
        last = {n: Signal(range(max(v) + 1), name=f"last_{n}") for n, v in tables.items()}
        at = {n: Signal.like(s, name=f"at_{n}") for n, s in last.items()}
        base, place = Signal.like(ins.first, name="base"), Signal.like(ins.first, name="place")
        m.d.comb += [jobs.ready.eq(~chosen & ~running), ins.released.eq(layer)]
        with m.If(jobs.ready & jobs.valid):
            m.d.sync += [layer.eq(jobs.payload[0]), chosen.eq(1)]
        with m.If(chosen & ins.loaded):
            m.d.sync += [last[n].eq(choose(m, f"of_{n}", layer, v)) for n, v in tables.items()]
            m.d.sync += [base.eq(ins.first), place.eq(ins.first), chosen.eq(0), running.eq(1)]
        step, issue = Signal(init=1), Signal()  # a result is taken, or there is none: a register, for everything hangs on it
        m.d.sync += step.eq(~core.done_next | self.finisher.free_next)
        m.d.comb += issue.eq(step & running & loader.filled)
        ends = {n: at[n] == last[n] for n in tables}
        pixel_ends = ends["beats"] & ends["pixels"]
        with m.If(issue):
            m.d.sync += [place.eq(Mux(pixel_ends, base, place + 1)), at["beats"].eq(Mux(ends["beats"], 0, at["beats"] + 1))]
            with m.If(ends["beats"]):
                m.d.sync += at["pixels"].eq(Mux(ends["pixels"], 0, at["pixels"] + 1))
            with m.If(pixel_ends):
                m.d.sync += at["folds"].eq(Mux(ends["folds"], 0, at["folds"] + 1))
                with m.If(ends["folds"]):
                    m.d.sync += running.eq(0)
        m.d.comb += [loader.done.eq(issue & pixel_ends), ins.release.eq(issue & pixel_ends & ends["folds"])]
        m.d.comb += ins.spent.eq(issue & ends["folds"])
        m.d.comb += [ins.addr.eq(place), ins.en.eq(step), loader.row.eq(at["beats"]), loader.en.eq(step)]
        m.d.comb += [loader.step.eq(issue), loader.again.eq(ends["beats"] & ~ends["pixels"])]
        # Block RAM is slow: nothing but a register behind it.
        x, word = (Signal.like(port, name=name, reset_less=True) for name, port in (("x", ins.data), ("word", core.w)))
        control, control_1 = Signal(3), Signal(3)
        m.d.comb += [core.x.as_value().eq(x), core.w.eq(word), Cat(core.valid, core.first, core.end).eq(control_1), core.en.eq(step)]
        with m.If(step):
            m.d.sync += [x.eq(ins.data), word.eq(loader.data)]
            m.d.sync += [control.eq(Cat(issue, at["beats"] == 0, ends["beats"])), control_1.eq(control)]

    def finish(self, m: Module) -> None:
        """Accumulators to the finisher, bytes to the pool; the sums for the simulation."""
        end, outs, loader = self.finisher, self.tiles.outs, self.loader
        m.d.comb += [end.accs.eq(self.core.o), end.valid.eq(self.core.done), end.first.eq(outs.first), end.ready.eq(outs.ready)]
        m.d.comb += [end.parameters.eq(loader.parameters), loader.slot.eq(end.slot), loader.word.eq(end.word)]
        m.d.comb += [getattr(outs, n).eq(getattr(end, n)) for n in OutPool.FILL]
        for n in range(len(self.layers)):
            seen = getattr(self, f"acc{n}")
            m.d.comb += [seen.valid.eq(end.sum_valid & (end.sum_layer == n)), seen.payload.eq(end.sum)]


def _sum_bits(layer: EngineLayer) -> int:
    """Bits that hold every sum with its bias."""
    low, high = layer.i.lowest, layer.i.highest
    ends = []
    for row, bias in zip(layer.weights, layer.bias, strict=True):
        total, size = sum(row), sum(map(abs, row))
        positive, negative = (size + total) // 2, (total - size) // 2
        ends += [positive * low + negative * high + bias, positive * high + negative * low + bias, bias]
    return bits_for(ends)


def _check(layers: Sequence[EngineLayer]) -> None:
    if not layers:
        raise ValueError("an engine must have at least one layer")
    for n, k in enumerate(layers):
        where = f"layer {n} of the engine"
        if k.i.lanes != layers[0].i.lanes or k.o.lanes != layers[0].o.lanes:
            raise ValueError(f"{where}: all inputs must have equal lanes, and all outputs")
        if max(k.i.bits, k.o.bits) > 8:
            raise ValueError(f"{where}: inputs and outputs must have at most 8 bits, not {k.i.bits} and {k.o.bits}")
        if k.tile < 1 or k.pixels % k.tile or min(k.in_slots, k.out_slots) < 1:
            given = f"{k.tile}, {k.in_slots}, {k.out_slots}"
            raise ValueError(f"{where}: tile must divide {k.pixels} pixels and slots be positive, not {given}")
        if len({len(k.weights), len(k.bias), len(k.multiplier), len(k.shift)}) != 1:
            raise ValueError(f"{where}: weights, bias, multiplier and shift must have equal lengths")
        if not k.o.lowest <= k.low <= k.high <= k.o.highest:
            raise ValueError(f"{where}: low and high must lie in {k.o.lowest}..{k.o.highest}, not {k.low}..{k.high}")
