# amaranth: UnusedElaboratable=no
"""Verilog texts can be hashed: equal components give equal texts."""
from __future__ import annotations

from hw.params import Lanes, Window
from hw.units.conv import ConvUnit
from hw.verilog import convert


def unit(bias: int) -> ConvUnit:
    return ConvUnit(
        height=2, width=2, in_channels=2, out_channels=2, window=Window(), weights=[[[[1, 2]]], [[[3, -4]]]], bias=[0, bias],
        i=Lanes(lanes=1, bits=4, signed=False), o=Lanes(lanes=1, bits=9, signed=True),
    )  # fmt: skip


def test_equal_components_give_equal_texts() -> None:
    same = unit(1)
    assert convert(same, "top") == convert(unit(1), "top") == convert(same, "top")
    assert convert(same, "top") != convert(unit(2), "top")


def test_ports_keep_their_names_and_no_source_paths_leak() -> None:
    text = convert(unit(0), "top")
    for port in ("i__valid", "i__ready", "i__payload", "o__valid", "o__ready", "o__payload"):
        assert port in text
    assert ".py" not in text
