"""Ports to a region of external memory: bursts of whole words, in order.

Addresses are bytes within the unit's own region, multiples of the word; its size is the unit's ``region_bytes``. What lies behind a port
cuts bursts as its bus needs them.
"""
from __future__ import annotations

from amaranth import unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

#: Words that one command may ask for.
MOST_WORDS = (1 << 16) - 1


def command_layout(address_bits: int) -> data.StructLayout:
    """``words`` words from byte ``address`` on."""
    return data.StructLayout({"address": address_bits, "words": 16})


class _Port(wiring.Signature):
    """Either port; equal if the sizes are."""

    def __init__(self, address_bits: int, data_bits: int, members: dict[str, wiring.Member]) -> None:
        if data_bits % 8 or data_bits & data_bits - 1 or data_bits < 8:
            raise ValueError(f"data_bits must be a power of two of at least 8, not {data_bits!r}")
        self.address_bits, self.data_bits = address_bits, data_bits
        super().__init__({"command": Out(stream.Signature(command_layout(address_bits))), **members})


class ReadPort(_Port):
    """``command``: what to read; ``data``: the words of all commands in their order, at any time after each; they wait to be taken."""

    def __init__(self, *, address_bits: int, data_bits: int) -> None:
        super().__init__(address_bits, data_bits, {"data": In(stream.Signature(unsigned(data_bits)))})


class WritePort(_Port):
    """``command``: where to write; ``data``: the words of all commands in their order, which come after each.

    ``done``: in this cycle one more command is finished, in order: from the next cycle on reads find its words.
    """

    def __init__(self, *, address_bits: int, data_bits: int) -> None:
        super().__init__(address_bits, data_bits, {"data": Out(stream.Signature(unsigned(data_bits))), "done": In(1)})
