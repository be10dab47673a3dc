"""Image input unit."""
from __future__ import annotations

from typing import Any, Literal

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.lib.fifo import Fifo
from hw.lib.groups import last_group, used_lanes
from hw.lib.ring import counter
from hw.params import Lanes

from .base import Unit, signature


class ImageUnit(Unit):
    """Raw pixels to the network's input: RGB order and black around the picture. Golden model: sw.ops.image.Image.golden.

    Throughput one beat of the output a cycle: while padding leaves, input waits; a frame's first beat of padding waits for its
    first beat of input. Latency 1; ready is registered at the output.

    Parameters
    ----------
    height, width, channels: of the picture
    order: "rgb" or "bgr" (then a beat must carry all three channels)
    pad: (top, left, bottom, right)
    i: stream in, also the type of the output
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(
        self, *, height: int, width: int, i: Lanes, channels: int = 3, order: Literal["rgb", "bgr"] = "rgb",
        pad: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> None:  # fmt: skip
        if min(height, width, channels) < 1:
            raise ValueError(f"height, width and channels must be positive, not {(height, width, channels)!r}")
        if min(pad) < 0:
            raise ValueError(f"pad must not be negative, not {pad!r}")
        if order not in ("rgb", "bgr"):
            raise ValueError(f"order must be rgb or bgr, not {order!r}")
        if order == "bgr" and (channels != 3 or i.lanes < 3):
            raise ValueError(f"order bgr needs 3 channels in a beat, not {channels!r} in beats of {i.lanes!r}")
        self.height, self.width, self.channels, self.order, self.pad, self.lanes = height, width, channels, order, pad, i
        self.groups = i.beats(channels)
        self.out_size = height + pad[0] + pad[2], width + pad[1] + pad[3]
        super().__init__({"i": In(signature(i)), "o": Out(signature(i))})

    @property
    def frame_cycles(self) -> int:
        """One cycle a beat of the padded picture."""
        return self.out_size[0] * self.out_size[1] * self.groups

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.slice = out = Fifo(self.lanes, 2)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        row, col = counter(self.out_size[0], "row"), counter(self.out_size[1], "col")
        (top, left, _, _), taken = self.pad, Signal()
        inside, begun = Signal(), Signal()  # begun: the frame has a beat
        in_row, in_col = (row >= top) & (row < top + self.height), (col >= left) & (col < left + self.width)
        m.d.comb += [inside.eq(in_row & in_col), out.i.valid.eq((begun & ~inside) | self.i.valid), self.i.ready.eq(inside & out.i.ready)]
        m.d.comb += taken.eq(out.i.valid & out.i.ready)
        last = last_group(m, self.groups, taken)
        last_col, last_row = col == self.out_size[1] - 1, row == self.out_size[0] - 1
        with m.If(taken):
            m.d.sync += begun.eq(~(last & last_col & last_row))
        with m.If(taken & last):
            m.d.sync += col.eq(Mux(last_col, 0, col + 1))
            with m.If(last_col):
                m.d.sync += row.eq(Mux(last_row, 0, row + 1))
        used = used_lanes(self.channels, self.lanes, last)
        channels = [*range(self.lanes.lanes)] if self.order == "rgb" else [2, 1, 0, *range(3, self.lanes.lanes)]
        m.d.comb += out.i.payload.as_value().eq(Cat(
            Mux(inside & ok, self.i.payload[k].as_unsigned() if self.lanes.signed else self.i.payload[k], 0)
            for k, ok in zip(channels, used, strict=True)
        ))  # fmt: skip
        return m
