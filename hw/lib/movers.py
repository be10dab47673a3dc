# amaranth: UnusedElaboratable=no
"""What carries blocks between queues in external memory and the chip: one at a time each way."""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.lib.memory import ReadPort, WritePort
from hw.lib.pool import successor
from hw.params import Lanes

#: Blocks that a queue's counters can tell apart: they go round.
COUNT_BITS = 16
#: Blocks of a queue that stay empty: more than reads can be under way (:data:`AHEAD`), which its writes must not overtake.
MARGIN = 16
#: Commands under way.
AHEAD = 8


def place_layout(address_bits: int) -> data.StructLayout:
    """Where a queue lies: its first block and its blocks less one, both in blocks; the first is a multiple of their number."""
    return data.StructLayout({"base": address_bits, "mask": COUNT_BITS})


def lookup(address_bits: int, queues: int) -> wiring.Signature:
    """What a mover asks for by ``queue`` and finds two cycles later: the queue's counters of blocks ``put`` into it, and ``asked`` of it,
    ``landed`` in memory, and its ``place``; ``advance``: one more is put, or asked for."""
    counter = unsigned(COUNT_BITS)
    return wiring.Signature({
        "queue": Out(range(queues)), "put": In(counter), "asked": In(counter), "landed": In(counter),
        "place": In(place_layout(address_bits)), "advance": Out(1),
    })  # fmt: skip


def job_layout(queues: int, depth: int, most: int) -> data.StructLayout:
    """A tile to be carried: its queue, its first word in the ring of ``depth`` words, its blocks, ``most`` of them."""
    return data.StructLayout({"queue": unsigned(max((queues - 1).bit_length(), 1)), "first": range(depth), "blocks": range(most + 1)})


class Mover(wiring.Component):
    """What both directions share: which block is next.

    Tiles go first, and streams whose staging has a block (or room for one) in turn; a tile lets a stream pass after every block.
    """

    memory: Any
    counters: Any
    job: stream.Interface
    stages: int
    block: int
    width: int
    plain: int
    skip: int

    def choose(self, m: Module, ready: Value, pending: Value) -> tuple[Signal, Signal, Signal, Signal]:
        """(whether the block is a tile's, the stage that has its turn, the tile's next word, its blocks left)."""
        turn, tile, favour = Signal(range(self.stages)), Signal(), Signal()
        place, left = Signal.like(self.job.payload.first, name="tile_place"), Signal.like(self.job.payload.blocks, name="tile_left")
        layer = Signal.like(self.job.payload.queue, name="tile_queue")
        m.d.comb += self.job.ready.eq(left == 0)
        with m.If((left == 0) & self.job.valid):
            m.d.sync += [place.eq(self.job.payload.first), left.eq(self.job.payload.blocks), layer.eq(self.job.payload.queue)]
        staged = ready.bit_select(turn, 1)
        queue = Signal.like(self.counters.queue, name="queue_now")
        m.d.comb += [self.counters.queue.eq(queue), self.memory.command.payload.words.eq(self.block)]
        stage_queue = turn + Mux(turn >= self.plain, self.skip, 0) if self.skip else turn
        moves_on, held = Signal(), Signal()
        with m.If(moves_on | ~(staged | held)):  # the next stage is looked for while a tile's block goes by, too
            m.d.sync += [turn.eq(successor(turn, self.stages)), held.eq(0)]
        with m.FSM(name="choice"):
            with m.State("LOOK"):
                carry = (left != 0) & (favour | ~staged)
                with m.If(carry | staged):
                    m.d.sync += [tile.eq(carry), queue.eq(Mux(carry, layer, stage_queue)), favour.eq(~carry), held.eq(~carry)]
                    m.next = "FETCH"
            with m.State("FETCH"):
                m.next = "JUDGE"
            with m.State("JUDGE"):
                self.judge(m, tile)
                m.next = "ASK"
            with m.State("ASK"):
                with m.If(~tile & ~self.able):
                    m.d.comb += moves_on.eq(1)
                    m.next = "LOOK"
                with m.Elif(pending):
                    m.d.comb += self.memory.command.valid.eq(1)
                    with m.If(self.memory.command.ready):
                        m.d.comb += self.counters.advance.eq(1)
                        m.next = "COPY"
            with m.State("COPY"):
                with m.If(self.copied):
                    m.d.comb += moves_on.eq(~tile)
                    m.next = "LOOK"
        return tile, turn, place, left

    def judge(self, m: Module, tile: Signal) -> None:
        """Keeps whether the queue can, and the block's address."""
        raise NotImplementedError

    def aim(self, m: Module, count: Value) -> None:
        """The command's address: block ``count`` of the queue."""
        bits = (self.block * self.width // 8).bit_length() - 1
        address = self.memory.command.payload.address
        place = self.counters.place
        m.d.sync += address.eq(Cat(Const(0, bits), place.base | (count & place.mask)))


class BlockWriter(Mover):
    """Full blocks of the staging pool, and tiles of results, to memory.

    Takes block + 6 cycles a block of a tile, and ``ratio`` · block + 6 of staging, whose words are narrower by that much.

    Members: ``full``, ``claim``, ``stage``, ``release``, ``first``, ``addr``, ``en``, ``data``: the staging pool's
    (:class:`hw.lib.pool.InPool`); ``job``: tiles in the order of their release; ``spent``: a word of one is read; ``freed``: its last;
    ``ring_addr``, ``ring_data`` a cycle after; ``counters``: :func:`lookup`; ``memory``: :class:`WritePort`; ``landed``: a stream of the
    queues whose next block is in memory.
    """

    def __init__(
        self, *, stages: int, plain: int, skip: int, queues: int, depth: int, ring: int, most: int, ratio: int, block: int,
        port: WritePort,
    ) -> None:  # fmt: skip
        self.stages, self.plain, self.skip, self.block, self.ratio, self.width = stages, plain, skip, block, ratio, port.data_bits
        self.able, self.copied = Signal(), Signal()
        number = Lanes(lanes=1, bits=max((queues - 1).bit_length(), 1), signed=False)
        self.number = number
        super().__init__({
            "full": In(stages), "claim": Out(1), "stage": Out(range(stages)), "release": Out(1), "first": In(range(depth)),
            "addr": Out(range(depth)), "en": Out(1), "data": In(port.data_bits // ratio),
            "job": In(stream.Signature(job_layout(queues, ring, most))), "spent": Out(1), "freed": Out(1),
            "ring_addr": Out(range(ring)), "ring_data": In(port.data_bits),
            "counters": Out(lookup(port.address_bits, queues)), "memory": Out(port),
            "landed": Out(stream.Signature(unsigned(number.bits))),
        })  # fmt: skip

    def judge(self, m: Module, tile: Signal) -> None:
        counters = self.counters
        m.d.sync += self.able.eq((counters.put - counters.asked)[:COUNT_BITS] <= counters.place.mask - MARGIN)
        self.aim(m, counters.put)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.words = words = Fifo(Lanes(lanes=self.width, bits=1, signed=False), 2 * self.block + 1, "lut")
        m.submodules.flying = flying = Fifo(self.number, AHEAD, "registers")
        room = Signal(range(2 * self.block + 1), init=2 * self.block)
        clear = (room >= self.block) & flying.i.ready
        tile, stage, place, left = self.choose(m, self.full, clear)
        begins = self.counters.advance
        m.d.comb += [self.stage.eq(stage), self.claim.eq(begins & ~tile)]
        m.d.comb += [flying.i.valid.eq(begins), flying.i.payload[0].eq(self.counters.queue)]
        self.copy(m, tile, place, left, words)
        m.d.comb += [self.memory.data.payload.eq(words.o.payload.as_value()), self.memory.data.valid.eq(words.o.valid)]
        m.d.comb += words.o.ready.eq(self.memory.data.ready)
        m.d.sync += room.eq(room - Mux(begins, self.block, 0) + (words.o.valid & words.o.ready))
        done = Signal(range(AHEAD + 1))
        m.d.sync += done.eq(done + self.memory.done - (self.landed.valid & self.landed.ready))
        m.d.comb += [self.landed.valid.eq(done != 0), self.landed.payload.eq(flying.o.payload[0])]
        m.d.comb += flying.o.ready.eq(self.landed.valid & self.landed.ready)
        return m

    def copy(self, m: Module, tile: Signal, place: Signal, left: Signal, words: Fifo) -> None:
        """A block's words into the queue before the port: read one cycle, put together and stored in the next."""
        step, running, coming, final = Signal(range(self.block * self.ratio + 1)), Signal(), Signal(), Signal()
        at = Signal.like(self.first, name="stage_place")
        part = Signal(range(self.ratio)) if self.ratio > 1 else Const(0)
        last = step == Mux(tile, self.block - 1, self.block * self.ratio - 1)
        with m.If(self.counters.advance):
            m.d.sync += [running.eq(1), step.eq(0), at.eq(self.first)]
        m.d.comb += [self.addr.eq(at), self.en.eq(1), self.ring_addr.eq(place), self.release.eq(running & last & ~tile)]
        m.d.comb += [self.copied.eq(final), self.freed.eq(running & last & tile & (left == 1))]
        m.d.comb += self.spent.eq(running & tile)
        m.d.sync += [coming.eq(running), final.eq(running & last)]
        with m.If(running):
            m.d.sync += [step.eq(step + 1), at.eq(at + 1)]
            with m.If(tile):
                m.d.sync += place.eq(place + 1)
            with m.If(last):
                m.d.sync += running.eq(0)
                with m.If(tile):
                    m.d.sync += left.eq(left - 1)
        kept = Signal(len(self.data) * (self.ratio - 1)) if self.ratio > 1 else Const(0, 0)
        whole = Cat(kept, self.data)
        with m.If(coming & ~tile):
            if self.ratio > 1:
                m.d.sync += [kept.eq(whole[len(self.data) :]), part.eq(successor(part, self.ratio))]
        put = Signal()
        m.d.comb += [put.eq(coming & (tile | (part == self.ratio - 1))), words.i.valid.eq(put)]
        m.d.comb += words.i.payload.as_value().eq(Mux(tile, self.ring_data, whole))


class BlockReader(Mover):
    """Blocks of memory to the staging pool behind, and tiles of operands to the ring, a word a cycle or ``ratio`` cycles.

    Members: ``room``, ``reserve``, ``stage``; ``filling``, ``begin``, ``first``, ``addr``, ``write``, ``data``, ``finish``: the staging
    pool's (:class:`hw.lib.pool.OutPool`); ``job``: tiles; ``arrived``: one is whole; ``ring_addr``, ``ring_write``, ``ring_data``;
    ``counters``: :func:`lookup`; ``memory``: :class:`ReadPort`.
    """

    def __init__(
        self, *, stages: int, plain: int, skip: int, queues: int, depth: int, ring: int, most: int, ratio: int, block: int,
        port: ReadPort,
    ) -> None:  # fmt: skip
        self.stages, self.plain, self.skip, self.block, self.ratio, self.width = stages, plain, skip, block, ratio, port.data_bits
        self.able, self.copied = Signal(), Signal()
        super().__init__({
            "room": In(stages), "reserve": Out(1), "stage": Out(range(stages)),
            "filling": Out(range(stages)), "begin": Out(1), "first": In(range(depth)), "finish": Out(1),
            "addr": Out(range(depth)), "write": Out(1), "data": Out(port.data_bits // ratio),
            "job": In(stream.Signature(job_layout(queues, ring, most))), "arrived": Out(1),
            "ring_addr": Out(range(ring)), "ring_write": Out(1), "ring_data": Out(port.data_bits),
            "counters": Out(lookup(port.address_bits, queues)), "memory": Out(port),
        })  # fmt: skip

    def judge(self, m: Module, tile: Signal) -> None:
        m.d.sync += self.able.eq(self.counters.landed != self.counters.asked)
        self.aim(m, self.counters.asked)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        stages = unsigned(max((self.stages - 1).bit_length(), 1))
        layout = data.StructLayout({"tile": 1, "last": 1, "stage": stages, "place": len(self.ring_addr)})
        m.submodules.flying = flying = Fifo(Lanes(lanes=layout.size, bits=1, signed=False), AHEAD, "registers")
        tile, stage, place, left = self.choose(m, self.room, flying.i.ready)
        begins, asked = self.counters.advance, data.View(layout, flying.i.payload.as_value())
        m.d.comb += [self.stage.eq(stage), self.reserve.eq(begins & ~tile), self.copied.eq(1), flying.i.valid.eq(begins)]
        m.d.comb += [asked.tile.eq(tile), asked.last.eq(left == 1), asked.stage.eq(stage), asked.place.eq(place)]
        with m.If(begins & tile):
            m.d.sync += [place.eq(place + self.block), left.eq(left - 1)]
        self.deliver(m, data.View(layout, flying.o.payload.as_value()), flying)
        return m

    def deliver(self, m: Module, block: Any, flying: Fifo) -> None:
        """Words as they come, to where the oldest command belongs."""
        words, step, open_ = self.memory.data, Signal(range(self.block)), Signal()
        part = Signal(range(self.ratio)) if self.ratio > 1 else Const(0)
        at = Signal.like(self.first, name="stage_place")
        ring_at = Signal.like(self.ring_addr, name="ring_place")
        m.d.comb += [self.filling.eq(block.stage), self.begin.eq(flying.o.valid & ~open_ & ~block.tile)]
        with m.If(flying.o.valid & ~open_):
            m.d.sync += [open_.eq(1), at.eq(self.first), ring_at.eq(block.place), step.eq(0)]
        active = open_ & words.valid
        taken = active & (block.tile | (part == self.ratio - 1))
        last = taken & (step == self.block - 1)
        m.d.comb += [words.ready.eq(open_ & (block.tile | (part == self.ratio - 1))), flying.o.ready.eq(last)]
        m.d.comb += [self.addr.eq(at), self.write.eq(active & ~block.tile), self.ring_addr.eq(ring_at)]
        m.d.comb += [self.ring_write.eq(active & block.tile), self.ring_data.eq(words.payload)]
        m.d.comb += self.data.eq(words.payload.word_select(part, len(self.data)) if self.ratio > 1 else words.payload)
        m.d.comb += [self.finish.eq(last & ~block.tile), self.arrived.eq(last & block.tile & block.last)]
        with m.If(active):
            m.d.sync += at.eq(at + 1)
            if self.ratio > 1:
                with m.If(~block.tile):
                    m.d.sync += part.eq(successor(part, self.ratio))
        with m.If(taken):
            m.d.sync += [step.eq(step + 1), ring_at.eq(ring_at + 1)]
        with m.If(last):
            m.d.sync += open_.eq(0)
