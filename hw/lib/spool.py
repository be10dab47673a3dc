# amaranth: UnusedElaboratable=no
"""Queues in external memory: the shared engine's tiles wait there, and streams that are longer than the chip has room for."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.bump import PIECES, Bump
from hw.lib.fifo import Fifo
from hw.lib.memory import ReadPort, WritePort
from hw.lib.movers import AHEAD, COUNT_BITS, MARGIN, BlockReader, BlockWriter, Mover, place_layout
from hw.lib.pool import InPool, OutPool, Region, choose, successor
from hw.lib.store import ram, table
from hw.lib.tiles import jobs_signature, operand_port, result_port
from hw.params import Lanes
from hw.units.base import signature

#: Words of the bus in a block, what is moved at a time.
BLOCK = 8
#: Blocks that each stream has room for on chip, on either side.
STAGED = 2


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A stream that waits in memory: its beats, those of a pixel, and the queue's ``capacity`` in blocks, a power of two.

    ``tile``: pixels that the engine takes, or gives, at a time (0: it has no part in it).
    """

    lanes: Lanes
    beats: int
    capacity: int
    tile: int = 0

    def words(self, ratio: int) -> int:
        """Words of the bus in a pixel of a tile."""
        return -(-self.beats // ratio)

    def blocks(self, ratio: int) -> int:
        """Blocks of a tile."""
        return self.tile * self.words(ratio) // BLOCK

    def region(self, ratio: int) -> Region:
        """Its place in a staging pool."""
        pad = bool(self.tile and self.beats % ratio)
        return Region(lanes=self.lanes, tile=BLOCK * ratio, slots=STAGED, beats=self.beats, pad=pad)


class Spool(wiring.Component):
    """Streams through external memory, in blocks of :data:`BLOCK` words, and the engine's tiles from there and back.

    A stream's beats gather in a staging pool; whole blocks go to its queue in memory, a ring of its own. Streams that only wait come back
    block by block. Of the engine's layers a whole tile is fetched into a ring of ``operands`` words when the engine has taken its job, in
    their order, and the results lie in a ring of ``results`` words until they are in the layer's queue behind. So a layer costs two
    blocks on each side, whatever its tiles are.

    A job is offered only if a tile has landed and has room in the ring, and its results in the queue behind. A layer that lacks only room
    in the ring keeps its turn until the jobs before it make some, which they do by themselves; so large tiles do not starve. Room in the
    ring of results is made by themselves, too, so a claimed job may wait for it: its operands and weights come meanwhile. Throughput: a
    word a cycle each way, less 6 cycles a block.

    Parameters: ``plain``: streams that only wait; ``fronts``, ``backs``: of each layer; ``base``: byte of the region where queues begin.
    ValueError if tiles are no whole blocks, or larger than the rings.

    Members: ``i0``, ``o0``...: the plain streams, then the layers'; ``ins``, ``outs``, ``offer``, ``offered``, ``claim``: as of
    :class:`hw.lib.tiles.ChipTiles`; ``read``, ``write``: the ports to memory.
    """

    def __init__(
        self, *, plain: Sequence[Waiting], fronts: Sequence[Waiting], backs: Sequence[Waiting], base: int, operands: int, results: int,
        address_bits: int = 32, data_bits: int = 128,
    ) -> None:  # fmt: skip
        every = [*plain, *fronts, *backs]
        width = 8 * every[0].lanes.lanes
        self.ratio, self.bytes, self.data_bits, self.address_bits = data_bits // width, data_bits // 8, data_bits, address_bits
        self.plain, self.fronts, self.backs, self.operands, self.results = list(plain), list(fronts), list(backs), operands, results
        _check(every, self.fronts, self.backs, self.ratio, operands, results)
        self.queues = every
        block_bytes = BLOCK * data_bits // 8
        self.places: list[int] = []  # first block of each queue
        at = -(-base // block_bytes)
        for queue in every:
            at = -(-at // queue.capacity) * queue.capacity
            self.places.append(at)
            at += queue.capacity
        self.end_bytes = at * block_bytes
        self.front = InPool([w.region(self.ratio) for w in [*plain, *fronts]])
        self.back = OutPool([w.region(self.ratio) for w in [*plain, *backs]], moved=range(len(plain)))
        n, streams = max(len(fronts), 1), len(plain) + len(fronts)
        common = {"stages": streams, "plain": len(plain), "queues": len(every), "ratio": self.ratio, "block": BLOCK}
        self.writer = BlockWriter(
            **common, skip=0, depth=self.front.depth, ring=results, most=max((w.blocks(self.ratio) for w in backs), default=1),
            port=WritePort(address_bits=address_bits, data_bits=data_bits),
        )  # fmt: skip
        self.reader = BlockReader(
            **common, skip=len(fronts), depth=self.back.depth, ring=operands, most=max((w.blocks(self.ratio) for w in fronts), default=1),
            port=ReadPort(address_bits=address_bits, data_bits=data_bits),
        )  # fmt: skip
        super().__init__({
            **{f"i{k}": In(signature(w.lanes)) for k, w in enumerate([*plain, *fronts])},
            **{f"o{k}": Out(signature(w.lanes)) for k, w in enumerate([*plain, *backs])},
            "ins": In(operand_port(operands, data_bits, n)), "outs": In(result_port(results, self.bytes, n)), **jobs_signature(n),
            "read": Out(ReadPort(address_bits=address_bits, data_bits=data_bits)),
            "write": Out(WritePort(address_bits=address_bits, data_bits=data_bits)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.front, m.submodules.back = self.front, self.back
        m.submodules.writer, m.submodules.reader = self.writer, self.reader
        for k in range(len(self.front.regions)):
            wiring.connect(m, wiring.flipped(getattr(self, f"i{k}")), getattr(self.front, f"i{k}"))
            wiring.connect(m, getattr(self.back, f"o{k}"), wiring.flipped(getattr(self, f"o{k}")))
        wiring.connect(m, self.writer.memory, wiring.flipped(self.write))
        wiring.connect(m, self.reader.memory, wiring.flipped(self.read))
        self.stage(m)
        counts = {n: ram(COUNT_BITS, len(self.queues), "lut") for n in ("put", "asked", "landed")}
        for name, memory in counts.items():
            m.submodules[name] = memory
        for name, mover, own in (("writer", self.writer, "put"), ("reader", self.reader, "asked")):
            self.look_up(m, name, mover, counts, own)
        self.land(m, counts["landed"])
        if self.fronts:
            self.rings(m, self.offers(m, counts), self.promise(m))
        return m

    def stage(self, m: Module) -> None:
        """The movers' sides of the staging pools."""
        front, back, writer, reader = self.front, self.back, self.writer, self.reader
        m.d.comb += [writer.full.eq(front.full), writer.first.eq(front.first), writer.data.eq(front.data)]
        m.d.comb += [front.claim.eq(writer.claim), front.claimed.eq(writer.stage), front.release.eq(writer.release)]
        m.d.comb += [front.released.eq(writer.stage), front.addr.eq(writer.addr), front.en.eq(writer.en)]
        m.d.comb += [reader.room.eq(back.room), reader.first.eq(back.first), back.reserve.eq(reader.reserve)]
        m.d.comb += [back.reserved.eq(reader.stage), back.filling.eq(reader.filling), back.begin.eq(reader.begin)]
        m.d.comb += [back.finish.eq(reader.finish), back.finished.eq(reader.filling), back.addr.eq(reader.addr)]
        m.d.comb += [back.data.eq(reader.data), back.mask.eq(reader.write.replicate(back.bytes))]

    def look_up(self, m: Module, name: str, mover: Mover, counts: dict[str, Any], own: str) -> None:
        """A mover's queue's counters and place; its own counter goes on."""
        bits = self.address_bits
        layout = place_layout(bits)
        for counter, memory in counts.items():
            port = memory.read_port()
            m.d.comb += [port.addr.eq(mover.counters.queue), port.en.eq(1), getattr(mover.counters, counter).eq(port.data)]
        rows = [at | (w.capacity - 1) << bits for at, w in zip(self.places, self.queues, strict=True)]
        m.d.comb += mover.counters.place.eq(table(m, f"{name}_places", rows, layout.size, mover.counters.queue, 1, "lut"))
        port = counts[own].write_port()
        m.d.comb += [port.addr.eq(mover.counters.queue), port.en.eq(mover.counters.advance)]
        m.d.comb += port.data.eq(getattr(mover.counters, own) + 1)

    def land(self, m: Module, landed: Any) -> None:
        """Blocks that are in memory are counted: read in one cycle, written in the next."""
        queue, found, read, write = self.writer.landed, Signal(), landed.read_port(), landed.write_port()
        m.d.sync += found.eq(queue.valid & ~found)
        m.d.comb += [read.addr.eq(queue.payload), read.en.eq(1), queue.ready.eq(found)]
        m.d.comb += [write.addr.eq(queue.payload), write.data.eq(read.data + 1), write.en.eq(found)]

    def offers(self, m: Module, counts: dict[str, Any]) -> Bump:
        """A layer every four cycles: does it have a tile with room in the ring, and its results room in the queue behind?"""
        n, first = len(self.fronts), len(self.plain)
        m.submodules.operand_room = operands = Bump(self.operands)
        m.submodules.claimed, m.submodules.promised = own = [ram(COUNT_BITS, max(n, 2), "lut") for _ in range(2)]
        turn = Signal(range(n))
        landed, asked = counts["landed"].read_port(), counts["asked"].read_port()
        claimed, promised = (memory.read_port() for memory in own)
        m.d.comb += [landed.addr.eq(turn + first), asked.addr.eq(turn + first + n), claimed.addr.eq(turn), promised.addr.eq(turn)]
        m.d.comb += [port.en.eq(1) for port in (landed, asked, claimed, promised)]
        sizes = {"take": [w.blocks(self.ratio) for w in self.fronts], "give": [w.blocks(self.ratio) for w in self.backs]}
        known = {name: Signal(range(max(v) + 1), name=name) for name, v in sizes.items()}
        limit = Signal(COUNT_BITS)
        m.d.sync += [known[name].eq(choose(m, f"{name}_of", turn, v)) for name, v in sizes.items()]
        m.d.sync += limit.eq(choose(m, "limit_of", turn, [w.capacity - MARGIN - w.blocks(self.ratio) for w in self.backs]))
        words = (BLOCK - 1).bit_length()
        m.d.comb += operands.size.eq(known["take"] << words)
        whole, space, room = Signal(), Signal(), Signal()
        m.d.comb += self.offered.eq(turn)
        with m.FSM(name="offers"):
            with m.State("FETCH"):
                m.next = "SUM"
            with m.State("SUM"):
                m.d.sync += whole.eq((landed.data - claimed.data)[:COUNT_BITS] >= known["take"])
                m.d.sync += [space.eq((promised.data - asked.data)[:COUNT_BITS] <= limit), room.eq(operands.room)]
                m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += self.offer.eq(whole & space & room & self.reader.job.ready)
                with m.If(self.claim):
                    m.d.comb += operands.take.eq(1)
                with m.If(self.claim | ~(whole & space)):
                    m.d.sync += turn.eq(successor(turn, n))
                    m.next = "FETCH"
                with m.Elif(~room):  # waits its turn out, or smaller tiles would always be in the way of a large one
                    m.next = "SUM"
        for memory, port, size in zip(own, (claimed, promised), ("take", "give"), strict=True):
            write = memory.write_port()
            m.d.comb += [write.addr.eq(turn), write.data.eq(port.data + known[size]), write.en.eq(self.claim)]
        job = self.reader.job
        m.d.comb += [job.valid.eq(self.claim), job.payload.queue.eq(turn + first), job.payload.first.eq(operands.next)]
        m.d.comb += job.payload.blocks.eq(known["take"])
        return operands

    def promise(self, m: Module) -> Bump:
        """Room in the ring of results for the claimed jobs, in their order, when the jobs before them have made it."""
        sizes = [w.blocks(self.ratio) * BLOCK for w in self.backs]
        m.submodules.result_room = results = Bump(self.results)
        m.submodules.waiting = waiting = Fifo(Lanes(lanes=1, bits=max(len(self.offered), 1), signed=False), PIECES, "registers")
        place = Lanes(lanes=1, bits=len(results.next), signed=False)
        m.submodules.begun = begun = Fifo(place, PIECES, "registers")
        m.d.comb += [waiting.i.valid.eq(self.claim), waiting.i.payload[0].eq(self.offered)]
        known, room, size = Signal(), Signal(), Signal.like(results.size)
        m.d.comb += [results.size.eq(size), results.take.eq(room & begun.i.ready), waiting.o.ready.eq(results.take)]
        m.d.sync += [size.eq(choose(m, "result_words", waiting.o.payload[0], sizes)), known.eq(waiting.o.valid & ~results.take)]
        m.d.sync += room.eq(known & results.room & ~results.take)
        m.d.comb += [begun.i.valid.eq(room), begun.i.payload[0].eq(results.next)]
        m.d.comb += [self.outs.ready.eq(begun.o.valid), self.outs.first.eq(begun.o.payload[0]), begun.o.ready.eq(self.outs.begin)]
        return results

    def rings(self, m: Module, operands: Bump, results: Bump) -> None:
        """The engine's tiles: operands as they arrive, results as they are finished."""
        ins, outs, reader, writer = self.ins, self.outs, self.reader, self.writer
        n = len(self.fronts)
        m.submodules.operands = memory = ram(self.data_bits, self.operands)
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [write.addr.eq(reader.ring_addr), write.data.eq(reader.ring_data), write.en.eq(reader.ring_write)]
        m.d.comb += [read.addr.eq(ins.addr), read.en.eq(ins.en), ins.data.eq(read.data), ins.first.eq(operands.oldest)]
        here = Signal(range(PIECES + 1))
        m.d.sync += here.eq(here + reader.arrived - ins.release)
        m.d.comb += [ins.loaded.eq(here != 0), operands.free.eq(ins.release), operands.spent.eq(ins.spent)]
        m.submodules.results = memory = ram(data.ArrayLayout(8, self.bytes), self.results)
        write, read = memory.write_port(granularity=1), memory.read_port()
        m.d.comb += [write.addr.eq(outs.addr), write.en.eq(outs.mask), write.data.as_value().eq(outs.data)]
        m.d.comb += [read.addr.eq(writer.ring_addr), read.en.eq(1), writer.ring_data.eq(read.data), results.free.eq(writer.freed)]
        m.d.comb += results.spent.eq(writer.spent)
        m.submodules.done = done = Fifo(Lanes(lanes=1, bits=max((n - 1).bit_length(), 1), signed=False), PIECES, "registers")
        m.d.comb += [done.i.valid.eq(outs.finish), done.i.payload[0].eq(outs.finished)]
        job, layer = writer.job, done.o.payload[0]
        m.d.comb += [job.valid.eq(done.o.valid), done.o.ready.eq(job.ready), job.payload.queue.eq(layer + len(self.plain) + n)]
        m.d.comb += job.payload.first.eq(results.oldest)
        m.d.comb += job.payload.blocks.eq(choose(m, "done_blocks", layer, [w.blocks(self.ratio) for w in self.backs]))


def _check(
    every: Sequence[Waiting], fronts: Sequence[Waiting], backs: Sequence[Waiting], ratio: int, operands: int, results: int
) -> None:
    for k, queue in enumerate(every):
        where = f"stream {k} of the spool"
        if queue.lanes.bits > 8 or queue.lanes.lanes != every[0].lanes.lanes:
            raise ValueError(f"{where}: elements must have at most 8 bits and all streams equal lanes, not {queue.lanes}")
        if queue.tile * queue.words(ratio) % BLOCK:
            raise ValueError(f"{where}: a tile must be whole blocks of {BLOCK} words, not {queue.tile * queue.words(ratio)} words")
        least = MARGIN + max(queue.blocks(ratio), AHEAD)
        if queue.capacity < least or queue.capacity & queue.capacity - 1 or queue.capacity >= 1 << COUNT_BITS - 1:
            raise ValueError(f"{where}: capacity must be a power of two of at least {least} blocks, not {queue.capacity!r}")
    for name, tiles, depth in (("operands", fronts, operands), ("results", backs, results)):
        most = max((w.blocks(ratio) * BLOCK for w in tiles), default=1)
        if depth < most:
            raise ValueError(f"{name} must be at least the {most} words of the largest tile, not {depth!r}")
    if len(fronts) != len(backs):
        raise ValueError(f"there must be as many streams behind the engine as in front, not {len(backs)} and {len(fronts)}")
