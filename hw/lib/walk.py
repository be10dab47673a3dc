"""Loop nests in hardware, walked one iteration ahead."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from amaranth import Const, Module, Mux, Signal, Value


class Walk:
    """A loop nest that moves on when ``go`` is set, one iteration ahead of the current one: what its end moves is ready in a register.

    ``counts``: iterations of each level, outermost first. ``first``: the level that advances at the end of the very first iteration (0:
    the whole nest starts again, k: the k-th level). ``at``: index of each level in the *next* iteration (levels that run once have none).
    """

    def __init__(self, m: Module, go: Value, counts: Mapping[str, int]) -> None:
        self.first = max([k for k, count in enumerate(counts.values(), 1) if count > 1], default=0)
        self.at: dict[str, Signal] = {}
        ends: list[Value] = [Const(1)]  # all levels inside this one are at their last iteration, innermost first
        for k, (name, count) in reversed(list(enumerate(counts.items(), 1))):
            last = Signal(name=f"{name}_last")
            if count == 1:
                m.d.comb += last.eq(ends[-1])
            else:
                index = self.at[name] = Signal(range(count), init=k == self.first, name=name)
                m.d.comb += last.eq(ends[-1] & (index == count - 1))
                with m.If(go & ends[-1]):
                    m.d.sync += index.eq(Mux(index == count - 1, 0, index + 1))
            ends.append(last)
        #: Whether the end of the next iteration starts the nest again, advances its first level, its second...; the innermost last.
        self.ends = ends[::-1]

    def choose(self, m: Module, name: str, values: Sequence[int], shape: Any) -> Signal:
        """The value of the outermost level that the end of the next iteration advances (``values[0]``: the whole nest)."""
        chosen = Signal(shape, name=name)
        for k, (advances, value) in enumerate(zip(self.ends, values, strict=True)):
            with m.If(advances) if k == 0 else m.Elif(advances):
                m.d.comb += chosen.eq(value)
        return chosen

    def ready(self, m: Module, go: Value, name: str, values: Sequence[int], shape: Any) -> Signal:
        """The same for the current iteration, from a register."""
        register = Signal(shape, init=values[self.first], name=f"{name}_now")
        with m.If(go):
            m.d.sync += register.eq(self.choose(m, name, values, shape))
        return register


def ring_address(m: Module, go: Value, walk: Walk, moves: Sequence[int], depth: int) -> Signal:
    """A register that goes round a ring of ``depth`` entries by the move of the level that advances, starting at 0."""
    steps = [n % depth for n in moves]
    bits = depth.bit_length() + 1
    address = Signal(range(max(depth, 2)), name="ring_address")
    if depth & depth - 1 == 0:
        with m.If(go):
            m.d.sync += address.eq(address + walk.ready(m, go, "on", steps, len(address)))
        return address
    on = walk.ready(m, go, "on", steps, bits - 1)
    back = walk.ready(m, go, "back", [depth - n for n in steps], bits - 1)
    turned = Signal(bits + 1)
    m.d.comb += turned.eq(address - back)  # negative unless the ring's end is passed
    with m.If(go):
        m.d.sync += address.eq(Mux(turned[-1], address + on, turned))
    return address
