"""Multiplier primitives of two families: instances for synthesis, the same behaviour as a model for simulation.

Only the part of each primitive that is used is modelled, as the vendors' guides describe it (AMD UG579; Lattice FPGA-TN-02205):
the tests compare model and arithmetic. An elaboration for :data:`PRIMITIVES` instantiates, any other one gets the model.
"""
from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

#: Platform to elaborate for where the primitives shall be instantiated (hw/verilog.py).
PRIMITIVES = "primitives"


def register(m: Module, value: Any, en: Signal, name: str) -> Signal:
    """``value`` one enabled clock later."""
    out = Signal(value.shape(), name=name, reset_less=True)
    with m.If(en):
        m.d.sync += out.eq(value)
    return out


class Dsp48e2(wiring.Component):
    """``p = (d - a) · b [+ pcin] [+ rnd]``: pre-adder, 27×18 multiplier and post-adder of UltraScale+, all registers used.

    Ports: ``a``, ``d`` (27 bits signed), ``b`` (18 bits signed), ``pcin``, ``p`` (48 bits), ``pcout`` (``p`` for the
    next ``pcin``, a wire of its own), ``en``. Latency four enabled clocks
    from ``a``, ``b``, ``d`` to ``p``, one from ``pcin``. ``rnd``: constant; ``cascade``: whether ``pcin`` is used (not with ``rnd``).
    """

    a: Signal
    d: Signal
    b: Signal
    pcin: Signal
    en: Signal
    p: Signal
    pcout: Signal

    LATENCY = 4

    def __init__(self, *, rnd: int = 0, cascade: bool = False) -> None:
        if cascade and rnd:
            raise ValueError(f"rnd must be 0 inside a cascade, not {rnd!r}")
        if not 0 <= rnd < 1 << 47:
            raise ValueError(f"rnd must be in 0..2^47 - 1, not {rnd!r}")
        self.rnd, self.cascade = rnd, cascade
        super().__init__({
            "a": In(signed(27)), "d": In(signed(27)), "b": In(signed(18)), "pcin": In(signed(48)), "en": In(1),
            "p": Out(signed(48)), "pcout": Out(signed(48)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        if platform == PRIMITIVES:
            m.submodules.dsp = self.instance()
            return m
        a, d = register(m, self.a, self.en, "a1"), register(m, self.d, self.en, "d1")
        ad = Signal(signed(27))
        m.d.comb += ad.eq(d - a)
        b = register(m, register(m, self.b, self.en, "b1"), self.en, "b2")
        ad_r = register(m, ad, self.en, "ad1")
        product = register(m, ad_r * b, self.en, "product")
        with m.If(self.en):
            m.d.sync += self.p.eq(product + (self.pcin if self.cascade else self.rnd))
        m.d.comb += self.pcout.eq(self.p)
        return m

    def instance(self) -> Instance:
        """DSP48E2 with OPMODE W (0 or RND) + Z (0 or PCIN) + multiplier, INMODE D - A2, AMULTSEL AD."""
        opmode = (0b10 if self.rnd else 0) << 7 | (0b001 if self.cascade else 0) << 4 | 0b0101
        enables = ("CEA1", "CEA2", "CEAD", "CEB1", "CEB2", "CED", "CEM", "CEP")
        return Instance(
            "DSP48E2",
            p_AMULTSEL="AD", p_BMULTSEL="B", p_PREADDINSEL="A", p_USE_MULT="MULTIPLY", p_USE_SIMD="ONE48",
            p_AREG=1, p_ACASCREG=1, p_BREG=2, p_BCASCREG=2, p_DREG=1, p_ADREG=1, p_MREG=1, p_PREG=1, p_CREG=0,
            p_ALUMODEREG=0, p_CARRYINREG=0, p_CARRYINSELREG=0, p_INMODEREG=0, p_OPMODEREG=0, p_RND=Const(self.rnd, 48),
            i_CLK=ClockSignal(), i_A=Cat(self.a, self.a[-1].replicate(3)), i_B=self.b, i_D=self.d,
            i_PCIN=self.pcin if self.cascade else Const(0, 48), i_INMODE=Const(0b01100, 5), i_OPMODE=Const(opmode, 9),
            **{f"i_{name}": self.en for name in enables}, i_C=Const(0, 48), **tied(),
            o_P=self.p, o_PCOUT=self.pcout,
        )  # fmt: skip


class DspMac(wiring.Component):
    """``p = (c if load else p) + a · b``: a DSP48E2 that multiplies and accumulates.

    Ports: ``a`` (27 bits signed), ``b`` (18 bits signed); ``en``: their registers and the product's move; ``c`` (48 bits), ``load``,
    used together with the product, so two enabled clocks after ``a`` and ``b``; ``add``: the sum ``p`` (48 bits) is taken.
    """

    a: Signal
    b: Signal
    c: Signal
    load: Signal
    en: Signal
    add: Signal
    p: Signal

    def __init__(self) -> None:
        super().__init__({
            "a": In(signed(27)), "b": In(signed(18)), "c": In(signed(48)), "load": In(1), "en": In(1), "add": In(1), "p": Out(signed(48)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        if platform == PRIMITIVES:
            m.submodules.dsp = self.instance()
            return m
        a, b = register(m, self.a, self.en, "a1"), register(m, self.b, self.en, "b1")
        product = register(m, a * b, self.en, "product")
        with m.If(self.add):
            m.d.sync += self.p.eq(Mux(self.load, self.c, self.p) + product)
        return m

    def instance(self) -> Instance:
        """DSP48E2 with OPMODE Z (P or C) + multiplier."""
        enables = {"CEA2": self.en, "CEB2": self.en, "CEM": self.en, "CEP": self.add}
        others = ("CEA1", "CEB1", "CEAD", "CED")
        return Instance(
            "DSP48E2",
            p_AMULTSEL="A", p_BMULTSEL="B", p_PREADDINSEL="A", p_USE_MULT="MULTIPLY", p_USE_SIMD="ONE48",
            p_AREG=1, p_ACASCREG=1, p_BREG=1, p_BCASCREG=1, p_DREG=0, p_ADREG=0, p_MREG=1, p_PREG=1, p_CREG=0,
            p_ALUMODEREG=0, p_CARRYINREG=0, p_CARRYINSELREG=0, p_INMODEREG=0, p_OPMODEREG=0, p_RND=Const(0, 48),
            i_CLK=ClockSignal(), i_A=Cat(self.a, self.a[-1].replicate(3)), i_B=self.b, i_D=Const(0, 27), i_C=self.c,
            i_PCIN=Const(0, 48), i_INMODE=Const(0, 5), i_OPMODE=Cat(Const(0b0101, 4), self.load, Const(0b01, 2), Const(0, 2)),
            **{f"i_{name}": en for name, en in enables.items()}, **{f"i_{name}": Const(0) for name in others}, **tied(), o_P=self.p,
        )  # fmt: skip


def tied() -> dict[str, Const]:
    """Inputs of a DSP48E2 that nobody uses here, at 0."""
    widths = {"RSTA": 1, "RSTB": 1, "RSTC": 1, "RSTCTRL": 1, "RSTD": 1, "RSTINMODE": 1, "RSTM": 1, "RSTP": 1, "RSTALLCARRYIN": 1,
              "RSTALUMODE": 1, "CARRYIN": 1, "CARRYINSEL": 3, "CARRYCASCIN": 1, "MULTSIGNIN": 1, "ALUMODE": 4, "ACIN": 30, "BCIN": 18,
              "CEC": 1, "CECTRL": 1, "CEALUMODE": 1, "CECARRYIN": 1, "CEINMODE": 1}  # fmt: skip
    return {f"i_{name}": Const(0, width) for name, width in widths.items()}


class Mult18x18d(wiring.Component):
    """``p = a · b``: 18×18 signed multiplier of ECP5 with its input, pipeline and output registers.

    Ports: ``a``, ``b`` (18 bits signed), ``en``, ``p`` (36 bits signed). Latency three enabled clocks.
    """

    a: Signal
    b: Signal
    en: Signal
    p: Signal

    LATENCY = 3

    def __init__(self) -> None:
        super().__init__({"a": In(signed(18)), "b": In(signed(18)), "en": In(1), "p": Out(signed(36))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        if platform == PRIMITIVES:
            m.submodules.mult = self.instance()
            return m
        a, b = register(m, self.a, self.en, "a1"), register(m, self.b, self.en, "b1")
        product = register(m, a * b, self.en, "product")
        with m.If(self.en):
            m.d.sync += self.p.eq(product)
        return m

    def instance(self) -> Instance:
        """MULT18X18D with CLK0 and CE0 on all registers."""
        parts = ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT")
        modes: dict[str, Any] = {f"p_REG_{part}_CLK": "CLK0" for part in parts} | {f"p_REG_{part}_CE": "CE0" for part in parts}
        ports = {f"i_A{k}": self.a[k] for k in range(18)} | {f"i_B{k}": self.b[k] for k in range(18)}
        outs = {f"o_P{k}": self.p[k] for k in range(36)}
        ties = {f"i_{name}{k}": Const(0) for name in ("CLK", "CE", "RST") for k in range(4) if (name, k) not in (("CLK", 0), ("CE", 0))}
        return Instance("MULT18X18D", i_CLK0=ClockSignal(), i_CE0=self.en, i_SIGNEDA=Const(1), i_SIGNEDB=Const(1),
                        i_SOURCEA=Const(0), i_SOURCEB=Const(0), **modes, **ports, **outs, **ties)  # fmt: skip
