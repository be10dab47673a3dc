# amaranth: UnusedElaboratable=no
"""Where the shared engine's tiles lie: what it sees of them, and the pools on chip."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.lib.pool import InPool, OutPool, Region, successor
from hw.units.base import signature


def operand_port(depth: int, width: int, layers: int) -> wiring.Signature:
    """A claimed tile as the engine reads it: ``addr``, ``en``, ``data`` a cycle after; ``first`` word of the oldest claimed one of layer
    ``released``, which ``release`` gives back; ``spent``: the next of its words is not needed any more; ``loaded``: it is there."""
    return wiring.Signature({
        "addr": Out(range(depth)), "en": Out(1), "data": In(width), "loaded": In(1), "first": In(range(depth)),
        "spent": Out(1), "release": Out(1), "released": Out(range(layers)),
    })  # fmt: skip


def result_port(depth: int, size: int, layers: int) -> wiring.Signature:
    """A tile as the engine fills it: ``addr``, ``mask`` (a bit a byte), ``data``, written each cycle; ``first`` word of the tile that layer
    ``filling`` fills next, ``begin`` takes it, if it is ``ready``; with ``finish`` that of layer ``finished`` is whole."""
    return wiring.Signature({
        "addr": Out(range(depth)), "mask": Out(size), "data": Out(8 * size), "first": In(range(depth)),
        "ready": In(1), "begin": Out(1), "filling": Out(range(layers)), "finish": Out(1), "finished": Out(range(layers)),
    })  # fmt: skip


def jobs_signature(layers: int) -> dict[str, Any]:
    """Members of a store of tiles for ``offer``: layer ``offered`` has a whole tile, and its results have room, or will when the jobs
    claimed before are done; ``claim`` takes both."""
    return {"offer": Out(1), "offered": Out(range(layers)), "claim": In(1)}


class ChipTiles(wiring.Component):
    """Tiles of all layers in a pool in front of the engine and one behind it; looks at one layer a cycle.

    Members: ``i0``, ``o0``...: the layers' streams; ``ins``, ``outs``: :func:`operand_port`, :func:`result_port`; :func:`jobs_signature`.
    """

    def __init__(self, fronts: Sequence[Region], backs: Sequence[Region]) -> None:
        self.front, self.back, n = InPool(fronts), OutPool(backs), len(fronts)
        self.bytes = self.back.bytes
        super().__init__({
            **{f"i{k}": In(signature(r.lanes)) for k, r in enumerate(fronts)},
            **{f"o{k}": Out(signature(r.lanes)) for k, r in enumerate(backs)},
            "ins": In(operand_port(self.front.depth, self.front.width, n)), "outs": In(result_port(self.back.depth, self.bytes, n)),
            **jobs_signature(n),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.front, m.submodules.back = front, back = self.front, self.back
        n = len(front.regions)
        for k in range(n):
            wiring.connect(m, wiring.flipped(getattr(self, f"i{k}")), getattr(front, f"i{k}"))
            wiring.connect(m, getattr(back, f"o{k}"), wiring.flipped(getattr(self, f"o{k}")))
        turn = Signal(range(n))
        m.d.sync += turn.eq(successor(turn, n))
        m.d.comb += [self.offered.eq(turn), self.offer.eq(front.full.bit_select(turn, 1) & back.room.bit_select(turn, 1))]
        m.d.comb += [front.claim.eq(self.claim), front.claimed.eq(turn), back.reserve.eq(self.claim), back.reserved.eq(turn)]
        ins, outs = self.ins, self.outs
        m.d.comb += [front.addr.eq(ins.addr), front.en.eq(ins.en), front.release.eq(ins.release), front.released.eq(ins.released)]
        m.d.comb += [ins.data.eq(front.data), ins.first.eq(front.first), ins.loaded.eq(1), outs.first.eq(back.first), outs.ready.eq(1)]
        m.d.comb += [getattr(back, name).eq(getattr(outs, name)) for name in back.FILL]
        return m
