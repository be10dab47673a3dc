# amaranth: UnusedElaboratable=no
"""Stream rules of whole units, proved for every input and for all time: what goes round is what came, in its place, once."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from amaranth.hdl import Const, Mux, Value

from hw.lib.axi_read import AxiRead
from hw.lib.fork import Fork
from hw.params import Lanes
from hw.units.add import AddUnit
from hw.units.concat import ConcatUnit
from hw.units.multiply import MultiplyUnit
from hw.units.shuffle import ShuffleUnit
from hw.units.split import SplitUnit
from hw.units.table import TableUnit
from hw.units.upsample import UpsampleUnit
from sim.formal.harness import Harness, OneToOne
from sim.formal.parts import Reads, Through
from sim.formal.prove import ProofFailed, prove
from sim.formal.windows import Words

BIT = Lanes(lanes=1, bits=1, signed=False)
PAIR = Lanes(lanes=1, bits=2, signed=False)


def looked_up(payload: Value, place: Value) -> Value:
    """The table 2, 0, 3, 1."""
    return Mux(payload[1], Mux(payload[0], Const(1, 2), Const(3, 2)), Mux(payload[0], Const(0, 2), Const(2, 2)))


UNITS: dict[str, Callable[[], Harness]] = {
    "table": lambda: OneToOne(TableUnit(channels=1, values=[2, 0, 3, 1], i=PAIR, o=PAIR), capacity=4, patience=4, expected=looked_up),
    "fork and add": lambda: OneToOne(
        Through(Fork(PAIR, 2), AddUnit(channels=1, i=PAIR)), capacity=4, patience=4, expected=lambda payload, _: payload + payload),
    "fork and multiply": lambda: OneToOne(
        Through(Fork(PAIR, 2), MultiplyUnit(channels=1, a=PAIR, b=PAIR)), capacity=8, patience=8, expected=lambda p, _: p * p),
    "split and concat": lambda: OneToOne(
        Through(SplitUnit(sizes=(2, 1), i=PAIR), ConcatUnit(sizes=(2, 1), i=PAIR)), capacity=8, patience=6),
    "fork and weave": lambda: Words(
        Through(Fork(BIT, 2), ConcatUnit(sizes=(1, 1), interleave=True, i=BIT)), 1, [[0], [0]], 0, 5, patience=8),
    "upsample": lambda: Words(
        UpsampleUnit(height=1, width=2, channels=1, factor=2, i=BIT), 2, [[0], [0], [1], [1]] * 2, 0, 5, patience=12),
    "shuffle": lambda: Words(ShuffleUnit(channels=4, groups=2, i=BIT), 4, [[0], [2], [1], [3]], 0, 3, patience=8),
}  # fmt: skip
#: What the same harness must refuse of another unit.
PLANTED: dict[str, Callable[[], Harness]] = {
    "a table of other values": lambda: OneToOne(
        TableUnit(channels=1, values=[2, 0, 1, 3], i=PAIR, o=PAIR), capacity=4, patience=4, expected=looked_up),
    "a sum for a product": lambda: OneToOne(
        Through(Fork(PAIR, 2), AddUnit(channels=1, i=PAIR)), capacity=4, patience=4, expected=lambda p, _: p * p),
    "rows repeated as columns": lambda: Words(
        UpsampleUnit(height=2, width=1, channels=1, factor=2, i=BIT), 2, [[0], [0], [1], [1]] * 2, 0, 5, patience=12),
    "parts in another order": lambda: OneToOne(
        Through(SplitUnit(sizes=(2, 1), i=PAIR), ConcatUnit(sizes=(1, 2), i=PAIR)), capacity=8, patience=6),
    "a shuffle of other groups": lambda: Words(
        ShuffleUnit(channels=6, groups=2, i=BIT), 6, [[0], [2], [4], [1], [3], [5]], 0, 3, patience=8),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name == "upsample" else name for name in UNITS])
def test_unit_keeps_the_rules_of_streams(name: str) -> None:
    prove(UNITS[name](), "prove rings" if name in ("upsample", "shuffle", "fork and weave") else "prove")


class Greedy(AxiRead):
    """Asks for a word more than its queue is said to hold."""

    def elaborate(self, platform: Any) -> Any:
        self.depth += 1
        m = super().elaborate(platform)
        self.depth -= 1
        return m


@pytest.mark.parametrize("kind", [AxiRead, Greedy])
def test_read_data_never_waits(kind: type[AxiRead]) -> None:
    reads = Reads(kind(beats=3, o=Lanes(lanes=1, bits=32, signed=False), data_bits=32, burst=1, outstanding=2), rounds=2)
    if kind is AxiRead:
        prove(reads, "prove")
        return
    with pytest.raises(ProofFailed, match="Assert failed in top"):
        prove(reads, "bmc", 20)


@pytest.mark.parametrize("flaw", PLANTED)
def test_another_unit_is_refused(flaw: str) -> None:
    harness: Any = PLANTED[flaw]()
    with pytest.raises(ProofFailed, match=r"Assert failed in top|\(abc bmc3\) returned FAIL"):
        prove(harness, "bmc", 30)
