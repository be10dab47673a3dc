"""Counts of the published configurations, to the digit (CoDeNet's tables, recomputed)."""
from __future__ import annotations

import dataclasses
import re

import pytest

from models.counting import count_layers, describe
from models.detectors.codenet import PRESETS

#: name: parameters, true MACs, what the authors' counter reports in units of 1e8 (four digits are published), MiB at 4 bits.
PUBLISHED = {
    "a": (1_588_031, 279_844_352, 0.2855e9, 0.757),
    "b": (1_588_031, 287_806_976, 0.2940e9, 0.757),
    "c": (1_588_031, 1_119_377_408, 1.1419e9, 0.757),
    "d": (6_082_427, 3_507_274_240, 3.5460e9, 2.900),
    "e": (6_082_427, 3_539_124_736, 3.5802e9, 2.900),
    "coco": (1_591_931, 1_214_142_464, 1.2400e9, 0.759),
    "coco-2x": (6_139_383, 4_355_965_440, 4.4111e9, 2.927),
}
#: Layer, how often, input and output H x W x C, weights and MACs of each (spec of config b and of config e).
LAYERS_B = """
stem.conv 1 256x256x3 128x128x24 648 10616832
stage1.0.b1.dw 1 64x64x24 32x32x24 216 221184
stage1.0.b1.pw 1 32x32x24 32x32x58 1392 1425408
stage1.0.b2.pw1 1 64x64x24 64x64x58 1392 5701632
stage1.0.b2.dw 1 64x64x58 32x32x58 522 534528
stage1.0.b2.pw2 1 32x32x58 32x32x58 3364 3444736
stage1.[1..n].b2.pw1 3 32x32x58 32x32x58 3364 3444736
stage1.[1..n].b2.dw 3 32x32x58 32x32x58 522 534528
stage1.[1..n].b2.pw2 3 32x32x58 32x32x58 3364 3444736
stage2.0.b1.dw 1 32x32x116 16x16x116 1044 267264
stage2.0.b1.pw 1 16x16x116 16x16x116 13456 3444736
stage2.0.b2.pw1 1 32x32x116 32x32x116 13456 13778944
stage2.0.b2.dw 1 32x32x116 16x16x116 1044 267264
stage2.0.b2.pw2 1 16x16x116 16x16x116 13456 3444736
stage2.[1..n].b2.pw1 7 16x16x116 16x16x116 13456 3444736
stage2.[1..n].b2.dw 7 16x16x116 16x16x116 1044 267264
stage2.[1..n].b2.pw2 7 16x16x116 16x16x116 13456 3444736
stage3.0.b1.dw 1 16x16x232 8x8x232 2088 133632
stage3.0.b1.pw 1 8x8x232 8x8x232 53824 3444736
stage3.0.b2.pw1 1 16x16x232 16x16x232 53824 13778944
stage3.0.b2.dw 1 16x16x232 8x8x232 2088 133632
stage3.0.b2.pw2 1 8x8x232 8x8x232 53824 3444736
stage3.[1..n].b2.pw1 3 8x8x232 8x8x232 53824 3444736
stage3.[1..n].b2.dw 3 8x8x232 8x8x232 2088 133632
stage3.[1..n].b2.pw2 3 8x8x232 8x8x232 53824 3444736
conv5 1 8x8x464 8x8x1024 475136 30408704
dec1.offset 1 8x8x1024 8x8x1 1024 65536
dec1.dwdef 1 8x8x1024 8x8x1024 9216 589824
dec1.pw 1 8x8x1024 8x8x256 262144 16777216
dec2.offset 1 16x16x256 16x16x1 256 65536
dec2.dwdef 1 16x16x256 16x16x256 2304 589824
dec2.pw 1 16x16x256 16x16x128 32768 8388608
dec3.offset 1 32x32x128 32x32x1 128 131072
dec3.dwdef 1 32x32x128 32x32x128 1152 1179648
dec3.pw 1 32x32x128 32x32x64 8192 8388608
head.hm.pw1 1 64x64x64 64x64x64 4096 16777216
head.hm.dw 1 64x64x64 64x64x64 576 2359296
head.hm.pw2 1 64x64x64 64x64x20 1280 5242880
head.wh.pw1 1 64x64x64 64x64x64 4096 16777216
head.wh.dw 1 64x64x64 64x64x64 576 2359296
head.wh.pw2 1 64x64x64 64x64x2 128 524288
head.reg.pw1 1 64x64x64 64x64x64 4096 16777216
head.reg.dw 1 64x64x64 64x64x64 576 2359296
head.reg.pw2 1 64x64x64 64x64x2 128 524288
"""
LAYERS_E = """
stem.conv 1 512x512x3 256x256x24 648 42467328
stage1.0.b1.dw 1 128x128x24 64x64x24 216 884736
stage1.0.b1.pw 1 64x64x24 64x64x122 2928 11993088
stage1.0.b2.pw1 1 128x128x24 128x128x122 2928 47972352
stage1.0.b2.dw 1 128x128x122 64x64x122 1098 4497408
stage1.0.b2.pw2 1 64x64x122 64x64x122 14884 60964864
stage1.[1..n].b2.pw1 3 64x64x122 64x64x122 14884 60964864
stage1.[1..n].b2.dw 3 64x64x122 64x64x122 1098 4497408
stage1.[1..n].b2.pw2 3 64x64x122 64x64x122 14884 60964864
stage2.0.b1.dw 1 64x64x244 32x32x244 2196 2248704
stage2.0.b1.pw 1 32x32x244 32x32x244 59536 60964864
stage2.0.b2.pw1 1 64x64x244 64x64x244 59536 243859456
stage2.0.b2.dw 1 64x64x244 32x32x244 2196 2248704
stage2.0.b2.pw2 1 32x32x244 32x32x244 59536 60964864
stage2.[1..n].b2.pw1 7 32x32x244 32x32x244 59536 60964864
stage2.[1..n].b2.dw 7 32x32x244 32x32x244 2196 2248704
stage2.[1..n].b2.pw2 7 32x32x244 32x32x244 59536 60964864
stage3.0.b1.dw 1 32x32x488 16x16x488 4392 1124352
stage3.0.b1.pw 1 16x16x488 16x16x488 238144 60964864
stage3.0.b2.pw1 1 32x32x488 32x32x488 238144 243859456
stage3.0.b2.dw 1 32x32x488 16x16x488 4392 1124352
stage3.0.b2.pw2 1 16x16x488 16x16x488 238144 60964864
stage3.[1..n].b2.pw1 3 16x16x488 16x16x488 238144 60964864
stage3.[1..n].b2.dw 3 16x16x488 16x16x488 4392 1124352
stage3.[1..n].b2.pw2 3 16x16x488 16x16x488 238144 60964864
conv5 1 16x16x976 16x16x2153 2101328 537939968
dec1.offset 1 16x16x2153 16x16x1 2153 551168
dec1.dwdef 1 16x16x2153 16x16x2153 19377 4960512
dec1.pw 1 16x16x2153 16x16x256 551168 141099008
dec2.offset 1 32x32x256 32x32x1 256 262144
dec2.dwdef 1 32x32x256 32x32x256 2304 2359296
dec2.pw 1 32x32x256 32x32x128 32768 33554432
dec3.offset 1 64x64x128 64x64x1 128 524288
dec3.dwdef 1 64x64x128 64x64x128 1152 4718592
dec3.pw 1 64x64x128 64x64x64 8192 33554432
head.hm.pw1 1 128x128x64 128x128x64 4096 67108864
head.hm.dw 1 128x128x64 128x128x64 576 9437184
head.hm.pw2 1 128x128x64 128x128x20 1280 20971520
head.wh.pw1 1 128x128x64 128x128x64 4096 67108864
head.wh.dw 1 128x128x64 128x128x64 576 9437184
head.wh.pw2 1 128x128x64 128x128x2 128 2097152
head.reg.pw1 1 128x128x64 128x128x64 4096 67108864
head.reg.dw 1 128x128x64 128x128x64 576 9437184
head.reg.pw2 1 128x128x64 128x128x2 128 2097152
"""
PARTS = {"b1.dw": "branch1.0", "b1.pw": "branch1.2", "b2.pw1": "branch2.0", "b2.dw": "branch2.3", "b2.pw2": "branch2.5"}
LAST = {"pw1": "0", "dw": "3", "pw2": "6"}


def our_name(published: str) -> str:
    """The path in this project of a layer of the tables."""
    if found := re.fullmatch(r"stage(\d)\.(\d|\[1\.\.n\])\.(b\d\.\w+)", published):
        return f"stage{int(found[1]) + 1}.{found[2].replace('[1..n]', '1')}.{PARTS[found[3]]}"
    if found := re.fullmatch(r"dec(\d)\.(\w+)", published):
        return f"decoder.{int(found[1]) - 1}.{ {'offset': 'offset', 'dwdef': 'deform', 'pw': 'mix.0'}[found[2]]}"
    if found := re.fullmatch(r"head\.(\w+)\.(\w+)", published):
        return f"{found[1]}.{LAST[found[2]]}"
    return {"stem.conv": "conv1.0", "conv5": "conv5.0"}[published]


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_equal_the_published_ones(name: str) -> None:
    params, macs, thop, mebibytes = PUBLISHED[name]
    row = describe(name, PRESETS[name])
    assert (row["params"], row["macs"]) == (params, macs)
    assert row["thop_macs"] == pytest.approx(thop, abs=0.5e5)
    assert row["params"] / 2 / 2**20 == pytest.approx(mebibytes, abs=0.0005)
    assert row["macs"] == sum(layer["macs"] for layer in row["layers"])
    assert {"name", "params", "macs", "thop_macs", "input", "layers"} <= set(row)


@pytest.mark.parametrize(("preset", "table"), [("b", LAYERS_B), ("e", LAYERS_E)])
def test_every_layer_equals_the_published_table(preset: str, table: str) -> None:
    layers = {layer.name: layer for layer in count_layers(PRESETS[preset]) if layer.op != "batchnorm"}
    covered = 0
    for line in table.split("\n")[1:-1]:
        name, times, before, behind, weights, macs = line.split()
        layer = layers[our_name(name)]
        biases = layer.output[2] if name.endswith("offset") or (name.startswith("head") and name.endswith("pw2")) else 0
        assert (layer.params, layer.macs) == (int(weights) + biases, int(macs)), name
        assert (layer.input, layer.output) == tuple(tuple(map(int, shape.split("x"))) for shape in (before, behind)), name
        covered += int(times)
    assert covered == len(layers)


def test_other_stems_and_sizes_change_what_the_tables_say_they_change() -> None:
    a, b, c = ({x.name: x for x in count_layers(PRESETS[name]) if x.op != "batchnorm"} for name in "abc")
    assert (a["conv1.0"].output, a["conv1.0"].macs) == ((64, 64, 24), 2_654_208) and c["conv1.0"].macs == 10_616_832
    assert all(a[name] == b[name] for name in a if name != "conv1.0")
    assert all(c[name].macs == 4 * a[name].macs for name in a)


def test_network_a_has_the_ablations_counts() -> None:
    """The published figures have four digits: encoder 756.5 M and 1.2548 M; square 2.087 G and 2.011 M; plain 2.080 G and 2.012 M."""
    square = PRESETS["ablation"]
    row = describe("square", square)
    encoder = [layer for layer in row["layers"] if layer["name"].startswith(("conv1", "stage", "conv5"))]
    assert sum(x["params"] for x in encoder) == pytest.approx(1.2548e6, abs=50)
    assert sum(x["macs"] for x in encoder) == pytest.approx(756.5e6, abs=0.05e6)
    assert row["macs"] == pytest.approx(2.087e9, abs=0.5e6) and row["params"] == pytest.approx(2.011e6, abs=500)
    plain = describe("plain", dataclasses.replace(square, gather="static", bounds=(-8, 7)))
    assert plain["macs"] == pytest.approx(2.080e9, abs=0.5e6) and plain["params"] == pytest.approx(2.012e6, abs=500)


def test_a_large_kernel_counts_its_taps() -> None:
    layers = {x.name: x for x in count_layers(dataclasses.replace(PRESETS["b"], gather="static", kernel=9))}
    assert (layers["decoder.0.static"].op, layers["decoder.0.static"].macs) == ("dw9x9", 589_824 * 9)


def test_deformable_macs_are_not_the_counters() -> None:
    layers = {layer.name: layer for layer in count_layers(PRESETS["b"])}
    assert (layers["decoder.0.deform"].macs, layers["decoder.0.deform"].thop_macs) == (589_824, 0)
    assert layers["decoder.0.offset"].thop_macs == 65_536 + 64
