"""Delay lines: a value as it was some steps ago."""
from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal, Value

from hw.lib.ring import counter
from hw.lib.store import place_of, ram

#: Steps from which on a delay is a memory instead of registers.
MEMORY_FROM = 4


def delayed(m: Module, value: Value, steps: int, en: Value, name: str) -> Value:
    """``value`` as it was ``steps`` steps ago; a step is a cycle with ``en`` set. What was there before the start is arbitrary.

    Few steps are registers, more are a memory with synchronous read: no path from ``value`` to the result. Behind block RAM, which is
    slow to answer, the last step is a register.
    """
    if steps < MEMORY_FROM:
        for k in range(steps):
            register = Signal(len(value), name=f"{name}_{k + 1}", reset_less=True)
            with m.If(en):
                m.d.sync += register.eq(value)
            value = register
        return value
    place = place_of(len(value), steps)
    if place == "block":
        steps -= 1
    m.submodules[name] = words = ram(len(value), steps, place)
    w_port, r_port = words.write_port(), words.read_port()
    at, after = counter(steps, f"{name}_at"), counter(steps, f"{name}_after")
    m.d.comb += after.eq(Mux(at == steps - 1, 0, at + 1))
    m.d.comb += [w_port.addr.eq(at), w_port.data.eq(value), w_port.en.eq(en), r_port.addr.eq(after), r_port.en.eq(en)]
    with m.If(en):
        m.d.sync += at.eq(after)
    return delayed(m, r_port.data, 1, en, f"{name}_out") if place == "block" else r_port.data


def delay_line(m: Module, value: Value, count: int, steps: int, en: Value, name: str) -> list[Value]:
    """``value`` and what it was ``steps``, 2·``steps``, ... ago, ``count`` values in all. One memory holds them all."""
    if count == 1:
        return [value]
    if steps < MEMORY_FROM:
        line = [value]
        for k in range(1, count):
            line.append(delayed(m, line[-1], steps, en, f"{name}_{k}"))
        return line
    size = len(value)
    chain = Signal(size * (count - 1), name=f"{name}_chain")
    late = delayed(m, chain, steps, en, name)
    line = [value, *(late[k * size : (k + 1) * size] for k in range(count - 1))]
    m.d.comb += chain.eq(Cat(line[:-1]))
    return line
