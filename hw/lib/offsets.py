"""Where the taps of a deformable layer lie: from codes to distances."""
from __future__ import annotations

from amaranth import Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, stream

from hw.lib.ring import counter
from hw.params import Lanes


class Offsets:
    """The taps of a pixel p, in steps of 2^-F pixel: at p + s·(i, j) with one dilation s a pixel, or, ``free``, at p + (i, j) + offset.

    Codes come as a stream: one lane a pixel, s = (code + ``base``)·2^-F, or with ``free`` two (y, x) a tap, offset = code·2^-F. A code
    beyond ``low``..``high`` saturates. ``size`` K, odd, >= 3; ``frac_bits`` F in 0..4; ``base``: 2^F (the default) where the code is s - 1,
    0 where it is s. Raises ValueError for arguments out of range.
    """

    def __init__(self, *, size: int, frac_bits: int, low: int, high: int, base: int | None, free: bool, offset: Lanes) -> None:
        if size < 3 or size % 2 == 0:
            raise ValueError(f"kernel size must be odd and at least 3, not {size!r}")
        if not 0 <= frac_bits <= 4:
            raise ValueError(f"frac_bits must be in 0..4, not {frac_bits!r}")
        if low > high:
            raise ValueError(f"low must be at most high, not {low!r} > {high!r}")
        if offset.lanes != 1 + free:
            raise ValueError(f"offset must have {'two lanes' if free else 'one lane'}, not {offset.lanes!r}")
        self.size, self.frac_bits, self.low, self.high, self.free = size, frac_bits, low, high, free
        self.base = 1 << frac_bits if base is None else base

    @property
    def furthest(self) -> int:
        """Greatest distance of a tap from its pixel along an axis, in 2^-F pixels."""
        half = self.size // 2
        if self.free:
            return (half << self.frac_bits) + max(abs(self.low), abs(self.high))
        return max(abs(self.low + self.base), abs(self.high + self.base)) * half

    @property
    def reach(self) -> int:
        """Rows around a pixel that its taps touch: R = ceil(max|s|·(K-1)/2), or (K-1)/2 + ceil(max|offset|) if they are free."""
        return -(-self.furthest // (1 << self.frac_bits))

    @property
    def bits(self) -> int:
        """Bits of a signed distance."""
        return self.furthest.bit_length() + 1

    def distances(
        self, m: Module, codes: stream.Interface, *, known: Signal, tap_done: Value, pixel_done: Value, groups: int = 1
    ) -> tuple[list[Value], list[Value]]:
        """Takes ``codes``; distances of the next tap, were it in each row (down) and in each column (right) of taps.

        ``known``, driven here: they are there. ``tap_done``, ``pixel_done``: the tap, or the pixel's last one, is dealt with; a pixel's
        taps come ``groups`` times.
        """
        return self._free(m, codes, tap_done, known, groups) if self.free else self._square(m, codes, pixel_done, known)

    def _saturated(self, code: Value) -> Value:
        return Mux(code < self.low, self.low, Mux(code > self.high, self.high, code))

    def _square(self, m: Module, codes: stream.Interface, pixel_done: Value, known: Signal) -> tuple[list[Value], list[Value]]:
        half, dilation = self.size // 2, Signal(signed(self.bits), name="dilation")
        m.d.comb += codes.ready.eq(~known | pixel_done)
        with m.If(codes.ready):
            m.d.sync += [known.eq(codes.valid), dilation.eq(self._saturated(codes.payload[0]) + self.base)]
        distances = [dilation * k for k in range(-half, half + 1)]
        return distances, distances

    def _free(self, m: Module, codes: stream.Interface, tap_done: Value, known: Signal, groups: int) -> tuple[list[Value], list[Value]]:
        """The offsets of a pixel come with its first channel group and are kept for the others."""
        half, taps = self.size // 2, self.size**2
        source = codes.payload.as_value()
        fetch, arrives = Signal(), Signal()  # an offset is wanted, is there
        m.d.comb += fetch.eq(~known | tap_done)
        if groups == 1:
            m.d.comb += [codes.ready.eq(fetch), arrives.eq(codes.valid)]
        else:
            at, turn = counter(taps, "offset_tap"), counter(groups, "offset_group")
            m.submodules.offsets = kept = memory.Memory(shape=len(source), depth=taps, init=[])
            w_port, r_port, new = kept.write_port(), kept.read_port(domain="comb"), turn == 0
            m.d.comb += [codes.ready.eq(fetch & new), arrives.eq(codes.valid | ~new)]
            m.d.comb += [w_port.addr.eq(at), r_port.addr.eq(at), w_port.data.eq(source), w_port.en.eq(fetch & new & codes.valid)]
            with m.If(fetch & arrives):
                m.d.sync += at.eq(Mux(at == taps - 1, 0, at + 1))
                with m.If(at == taps - 1):
                    m.d.sync += turn.eq(Mux(turn == groups - 1, 0, turn + 1))
            source = Mux(new, source, r_port.data)
        found = data.View(codes.payload.shape(), source)
        held = [Signal(signed(max(abs(self.low), abs(self.high)).bit_length() + 1), name=f"offset_{n}") for n in "yx"]
        with m.If(fetch):
            m.d.sync += [known.eq(arrives), *(h.eq(self._saturated(found[k])) for k, h in enumerate(held))]
        down, right = ([(k << self.frac_bits) + h for k in range(-half, half + 1)] for h in held)
        return down, right
