"""The ablation's command from end to end with a budget of seconds; what its variants are; resuming."""
from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models import ablation
from models.ablation import RECIPES
from models.data.digits import write_digits
from models.detectors.codenet import CodenetConfig
from models.ops.deform import SquareDeform
from models.variants import VARIANTS, build

SMALL = CodenetConfig(size=(32, 32), classes=("a", "b"), decoder=(16, 8, 8), head_channels=8)
TINY: dict[str, Any] = {"network": {"width": 0.25, "size": [32, 32], "decoder": [8, 8, 8], "head_channels": 8}, "images": 4, "epochs": 1}
TINY |= {"batch": 2, "trunk": None}


def test_variants_are_the_operators_they_are_named_after() -> None:
    x = torch.rand(1, 3, 32, 32)
    for name, variant in VARIANTS.items():
        model = build(SMALL, variant).eval()
        assert model(x)[0].shape == (1, 2, 8, 8)
        stage: Any = model.decoder[0]
        if variant.static:
            assert stage.static.kernel_size == (int(name[-1]),) * 2
            continue
        assert isinstance(stage.deform, SquareDeform)
        assert stage.offset.out_channels == (1 if variant.square else 18)
        assert isinstance(stage.bound, nn.Hardtanh if variant.bounded else nn.Identity)
        assert stage.deform.taps.frac_bits == variant.frac_bits
        with torch.no_grad():
            stage.offset.bias.fill_(0.4)
            moved = stage.gather(torch.rand(1, 512, 1, 4))
        assert torch.isfinite(moved).all()
    assert [v.frac_bits for v in VARIANTS.values() if v.start == "bounded-square"] == [0, 1, 2, 3, 4]


def test_offsets_of_zero_make_all_deformable_variants_the_plain_convolution() -> None:
    x = torch.rand(2, 3, 32, 32)
    expected = build(SMALL, VARIANTS["dw3x3"], seed=3).eval()
    weights = {name.replace("static", "deform"): value for name, value in expected.state_dict().items()}
    for name in ("original", "bounded", "bounded-square", "rounded", "bilinear-2"):
        model = build(SMALL, VARIANTS[name]).eval()
        assert not model.load_state_dict(weights, strict=False).unexpected_keys
        torch.testing.assert_close(model(x)[0], expected(x)[0], rtol=0, atol=1e-5)


def test_from_training_to_the_table_and_again_without_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out, said = tmp_path / "data", tmp_path / "out", list[str]()
    write_digits(data, train=4, val=1, test=2, size=96)

    def run(names: list[str], seeds: int) -> dict[str, Any]:
        return ablation.ablation(out, data=data, variants=names, seeds=seeds, workers=0, progress=False, say=said.append, **TINY)

    scored, stopped = ablation.Ablation._score, []

    def stop(self: Any, model: Any) -> Any:
        stopped.append(1)
        if len(stopped) == 2:
            raise KeyboardInterrupt
        return scored(self, model)

    monkeypatch.setattr(ablation.Ablation, "_score", stop)
    with pytest.raises(KeyboardInterrupt):  # after quantization-aware training, before the result
        run(["original"], 1)
    monkeypatch.setattr(ablation.Ablation, "_score", scored)
    trained = (out / "original" / "seed0" / "float.pt").stat().st_mtime_ns
    names = ["dw9x9", "original", "bounded", "rounded"]
    record = run(names, 1)
    assert (out / "original" / "seed0" / "float.pt").stat().st_mtime_ns == trained, "float training was not repeated"
    assert (out / "bounded-square" / "seed0" / "result.json").exists(), "rounded starts from it"
    assert [row["variant"] for row in record["rows"]] == names and all(0 <= row["w4a8_ap50"] <= 1 for row in record["rows"])
    times = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    said.clear()
    again = run(names, 1)
    assert all("CPU seconds, found)" in line for line in said) and len(said) == 4
    assert min(each["cpu_seconds"] for each in record["runs"]) > 0 and "hours of CPU time in all" in (out / "ablation.md").read_text()
    assert times == {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert again["rows"] == record["rows"] == json.loads((out / "ablation.json").read_text())["rows"]
    text = (out / "ablation.md").read_text()
    for line in ("| rounded | y | y | y | F = 0 | 1 |", "| original | y |  |  | float | 1 |", "| dw9x9 | y |  |  |  | 1 |"):
        assert line in text


def test_rows_give_mean_and_spread() -> None:
    figures = {"ap": 0.1, "ap75": 0.2, "ap50_nms": 0.5}
    both = [{**figures, "ap50": v} for v in (0.4, 0.6)]
    results = [{"variant": "dw3x3", "seed": k, "float": each, "w4a8": each} for k, each in enumerate(both)]
    (row,) = ablation.rows(results)
    assert row["float_ap50"] == pytest.approx(0.5) and row["float_ap50_spread"] == pytest.approx(0.02**0.5) and row["seeds"] == [0, 1]
    assert ablation.rows(results[:1])[0]["w4a8_ap50_spread"] is None


def test_other_settings_are_other_runs(tmp_path: Path) -> None:
    first = ablation.Ablation(tmp_path, tmp_path, RECIPES["digits"])
    other = dataclasses.replace(first, recipe=dataclasses.replace(RECIPES["digits"], epochs=7))
    assert first.key("rounded", 0) != other.key("rounded", 0) != other.key("rounded", 1)
    with pytest.raises(ValueError, match="variants must be among"):
        ablation.ablation(tmp_path, data=tmp_path, variants=["none"])
    with pytest.raises(ValueError, match="needs a data set"):
        ablation.ablation(tmp_path, preset="steel")
