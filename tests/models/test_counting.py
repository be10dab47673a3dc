"""Counts of the published configurations, to the digit (CoDeNet's tables, recomputed)."""
import pytest

from models.counting import count_layers, describe
from models.detectors.codenet import PRESETS

#: name: parameters, true MACs, what the authors' counter reports in units of 1e8 (four digits are published).
PUBLISHED = {
    "a": (1_588_031, 279_844_352, 0.2855e9),
    "b": (1_588_031, 287_806_976, 0.2940e9),
    "c": (1_588_031, 1_119_377_408, 1.1419e9),
    "d": (6_082_427, 3_507_274_240, 3.5460e9),
    "e": (6_082_427, 3_539_124_736, 3.5802e9),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_equal_the_published_ones(name: str) -> None:
    params, macs, thop = PUBLISHED[name]
    row = describe(name, PRESETS[name])
    assert (row["params"], row["macs"]) == (params, macs)
    assert row["thop_macs"] == pytest.approx(thop, abs=0.5e5)
    assert row["macs"] == sum(layer["macs"] for layer in row["layers"])


def test_layers_of_config_b() -> None:
    layers = {layer.name: layer for layer in count_layers(PRESETS["b"])}
    stem = layers["conv1.0"]
    assert (stem.input, stem.output, stem.params, stem.macs) == ((256, 256, 3), (128, 128, 24), 648, 10_616_832)
    assert layers["conv5.0"].macs == 30_408_704
    assert (layers["decoder.0.deform"].macs, layers["decoder.0.deform"].thop_macs) == (589_824, 0)
    assert layers["decoder.0.offset"].macs == 65_536 and layers["decoder.0.offset"].thop_macs == 65_536 + 64
    assert sum(x.macs for x in layers.values() if x.op == "dwdeform3x3") == 2_359_296
