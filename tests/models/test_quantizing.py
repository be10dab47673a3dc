"""Quantization's options: bits by configuration, post-training mode, batch norm estimated anew, ranges snapped last, sensitivity."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models import checkpoint
from models.detectors.codenet import Codenet, CodenetConfig
from models.freeze import freeze
from models.frozen import FrozenNetwork
from models.qat import FreeRanges, activation_quantizers, calibrate, prepare, reestimate_batch_norm, snapped
from models.quant_layers import QuantConv
from models.quantize import QuantizeOptions, QuantTrainer, quantize
from models.sensitivity import Switches, sensitivity
from sw.cli_train import ACTIVATIONS, WEIGHTS, parse_bits, parse_fields
from sw.errors import WarploomError

BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
XML = "<annotation><object><name>{}</name>" + BOX + "</object></annotation>"
CONFIG = CodenetConfig(size=(32, 32), classes=("g", "r"), decoder=(16, 8, 8), head_channels=8)
QUIET: dict[str, Any] = {"workers": 0, "progress": False, "batch": 4, "flip": False}


def trained_like() -> Codenet:
    torch.manual_seed(3)
    model = Codenet(CONFIG).train()
    with torch.no_grad():
        nn.init.normal_(model.get_submodule("hm.6").weight, std=0.5)  # type: ignore[arg-type]
        for _ in range(20):
            model(torch.rand(8, 3, 32, 32))
    return model.eval()


def prepared() -> tuple[Codenet, Codenet]:
    """A network ready for training with quantizers, and the float network that teaches it."""
    model = prepare(trained_like())
    calibrate(model, [torch.linspace(0, 1, 8 * 3 * 32 * 32).view(8, 3, 32, 32)])
    return model, trained_like()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for index in range(12):
        x, y = (int(v) for v in rng.integers(0, 16, 2))
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "JPEGImages" / f"{index}.png")
        (root / "Annotations" / f"{index}.xml").write_text(XML.format("gr"[index % 2], x + 1, y + 1, x + 16, y + 16))
    (root / "ImageSets/Main/train.txt").write_text("\n".join(map(str, range(8))))
    (root / "ImageSets/Main/val.txt").write_text("\n".join(map(str, range(8, 12))))
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    checkpoint.save_float(tmp_path / "float.pt", trained_like())
    return tmp_path


def test_post_training_mode_only_calibrates(run: Path, data: Path) -> None:
    before = checkpoint.load_float(run / "float.pt")
    result = quantize(run, data=data, epochs=0, norms=8, weights={"*": 8}, activations={"*": 6}, **QUIET)
    assert result["history"] == [] and {"loss", "loss_nms"} <= set(result["evaluation"])
    frozen = FrozenNetwork.load(run / "frozen.pt")
    assert {s.attributes["weight_bits"] for s in frozen.steps if "weight_bits" in s.attributes} == {8}
    assert frozen.ranges["conv5.0"].bits == 6
    after = checkpoint.load_float(run / "float.pt")
    assert all(torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True))


def test_batch_norm_gets_the_statistics_of_the_given_images() -> None:
    model = trained_like()
    batches = [torch.rand(4, 3, 32, 32) * 0.5 for _ in range(3)]
    reestimate_batch_norm(model, batches)
    norm = model.conv1[1]
    assert isinstance(norm, nn.BatchNorm2d) and not model.training and norm.momentum == 0.1
    with torch.no_grad():
        seen = [model.conv1[0](batch) for batch in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0), rtol=1e-4, atol=1e-5)


def test_free_ranges_learn_and_snap_to_powers_of_two() -> None:
    model = prepare(trained_like())
    calibrate(model, [torch.rand(8, 3, 32, 32)])
    trainer = QuantTrainer(model, trained_like(), steps=8, lr=0.02, teaching=1.0, free_ranges=0.5)
    ranges = trainer.ranges
    assert isinstance(ranges, FreeRanges) and trainer.snap_at == 4
    start = [float(p.detach()) for p in ranges.log2]
    from models.losses import make_targets

    targets = make_targets([np.array([[4, 4, 20, 20]], np.float32)] * 4, [np.zeros(1, np.int64)] * 4, classes=2, size=(32, 32))
    batch = (np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), targets)
    for _ in range(4):
        trainer.train_on(batch)
    learned = [float(p.detach()) for p in ranges.log2]
    assert sum(abs(a - b) > 1e-3 for a, b in zip(start, learned, strict=True)) > len(start) / 2
    assert any(abs(v - round(v)) > 1e-2 for v in learned)
    product = snapped(model)
    assert all(not q.free for q in activation_quantizers(product).values()) and all(q.free for q in ranges.quantizers)
    trainer.train_on(batch)
    assert [int(q.exponent) for q in ranges.quantizers] == [-round(v) for v in learned] and not any(q.free for q in ranges.quantizers)
    freeze(model)  # within the contract


def test_a_trainer_with_free_ranges_comes_back_whole(tmp_path: Path) -> None:
    def fresh() -> QuantTrainer:
        model = prepare(trained_like())
        calibrate(model, [torch.linspace(0, 1, 8 * 3 * 32 * 32).view(8, 3, 32, 32)])
        return QuantTrainer(model, trained_like(), steps=8, lr=0.02, teaching=1.0, free_ranges=0.5)

    trainer = fresh()
    assert trainer.ranges is not None
    with torch.no_grad():
        for p in trainer.ranges.log2:
            p.add_(0.3)
    trainer.step = 2
    trainer.save(tmp_path / "x.ckpt", "key")
    again = fresh()
    again.resume(tmp_path / "x.ckpt", "key")
    assert again.ranges is not None and again.step == 2
    assert all(torch.equal(a, b) for a, b in zip(again.ranges.log2, trainer.ranges.log2, strict=True))
    assert all(q.free[0] is p for q, p in zip(again.ranges.quantizers, again.ranges.log2, strict=True))
    trainer.ranges.snap()
    trainer.step = 5
    trainer.save(tmp_path / "x.ckpt", "key")
    late = fresh()
    late.resume(tmp_path / "x.ckpt", "key")
    assert late.ranges is not None and not any(q.free for q in late.ranges.quantizers)
    assert [q.scale for q in late.ranges.quantizers] == [q.scale for q in trainer.ranges.quantizers]


def test_interrupted_free_ranges_go_on(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the free part and again after the snap: the result is that of one go."""
    common = {**QUIET, "data": data, "epochs": 3, "free_ranges": 0.5, "settle": 0.001, "evaluate_split": None}
    whole, parts = run / "whole", run / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        (folder / "float.pt").write_bytes((run / "float.pt").read_bytes())
    quantize(whole, **common)
    original = QuantTrainer.train_on
    for stop in (3, 5):  # of 6 steps; the snap is before step 3

        def interrupted(self: QuantTrainer, batch: Any, stop: int = stop) -> dict[str, float]:
            if self.step == stop:
                raise KeyboardInterrupt
            return original(self, batch)

        monkeypatch.setattr(QuantTrainer, "train_on", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantize(parts, **common)
    monkeypatch.setattr(QuantTrainer, "train_on", original)
    quantize(parts, **common)
    a, b = (FrozenNetwork.load(folder / "frozen.pt") for folder in (whole, parts))
    assert a.ranges == b.ranges
    pairs = [(a.integers[name], b.integers[name]) for name in a.integers if name.endswith(".weight")]
    different, total = sum(int((x != y).sum()) for x, y in pairs), sum(x.numel() for x, y in pairs)
    assert different < 0.005 * total, "float32 sums differ in their last bits, and rounding passes a few of them on"
    one, two = (json.loads((folder / "quantize.json").read_text())["history"] for folder in (whole, parts))
    assert [note["loss"] for note in one] == pytest.approx([note["loss"] for note in two], rel=5e-3)


def test_the_average_is_exported_and_comes_back(tmp_path: Path) -> None:
    """The product holds the average of the weights over the steps, not the last ones; ``save`` and ``resume`` carry it."""

    def fresh(ema: float) -> QuantTrainer:
        return QuantTrainer(*prepared(), steps=4, lr=0.02, teaching=1.0, ema=ema)

    trainer, name = fresh(0.5), "conv5.0.weight"
    expected = trainer.model.get_parameter(name).detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            for p in trainer.model.parameters():
                p.add_(0.01 * step)
        trainer.average.update(trainer.model)
        decay = min(0.5, step / (step + 10))
        expected = decay * expected + (1 - decay) * trainer.model.get_parameter(name).detach()
    assert torch.allclose(trainer.product().get_parameter(name), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(trainer.model.get_parameter(name), expected, rtol=0, atol=1e-3)
    trainer.step = 3
    trainer.save(tmp_path / "x.ckpt", "key")
    again = fresh(0.5)
    again.resume(tmp_path / "x.ckpt", "key")
    assert again.average.steps == 3
    assert torch.equal(again.product().get_parameter(name), trainer.product().get_parameter(name))
    off = fresh(0.0)
    with torch.no_grad():
        off.model.get_parameter(name).add_(1.0)
    off.average.update(off.model)
    assert torch.equal(off.product().get_parameter(name), off.model.get_parameter(name)), "without an average the last weights count"


def test_what_is_held_outlives_an_interruption(tmp_path: Path) -> None:
    def fresh() -> QuantTrainer:
        return QuantTrainer(*prepared(), steps=4, lr=0.02, teaching=1.0, settle=0.001)

    trainer = fresh()
    assert trainer.oscillations is not None
    for state in trainer.oscillations.state.values():
        state["held"][0] = True
        state["frequency"].fill_(0.25)
    trainer.step = 3
    trainer.save(tmp_path / "x.ckpt", "key")
    again = fresh()
    again.resume(tmp_path / "x.ckpt", "key")
    assert again.oscillations is not None and again.oscillations.step == 3
    assert 0 < again.oscillations.share == trainer.oscillations.share
    assert all(bool((s["frequency"] == 0.25).all()) for s in again.oscillations.state.values())


def test_one_part_alone_is_quantized() -> None:
    model, x = prepare(trained_like()), torch.rand(2, 3, 32, 32)
    calibrate(model, [x])
    switches = Switches(model)
    with torch.no_grad():
        switches.only(None)
        free = [m.clone() for m in model(x)]
        for a, b in zip(free, trained_like()(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        switches.only(("weights", "stage4.3.branch2.0"))
        layer = model.get_submodule("stage4.3.branch2.0")
        assert isinstance(layer, QuantConv) and sum(not each.bypass for each in switches.layers.values()) == 1 and not layer.bypass
        assert not torch.equal(model(x)[0], free[0])
        switches.only(("activations", "conv1.2"))
        assert sum(not q.bypass for q in switches.places.values()) == 1
        assert not torch.equal(model(x)[0], free[0])
        switches.only(None, everything=True)
        assert not any(q.bypass for q in switches.places.values())


def test_sensitivity_has_a_row_for_every_part_and_knows_the_worst(run: Path, data: Path) -> None:
    record = sensitivity(run, data=data, images=3, weights={"*": 8, "decoder.2.mix.0": 2}, activations={"*": 8})
    rows = {(row["kind"], row["path"]): row for row in record["layers"]}
    assert len(rows) == len(record["layers"]) == 74 + len({p for k, p in rows if k == "activations"})
    coarse = rows["weights", "decoder.2.mix.0"]
    assert coarse["bits"] == 2 and rows["activations", "decoder.0.bound"]["bits"] == 6
    heat = [row["heat"] for row in record["layers"] if row["kind"] == "weights"]
    assert coarse["heat"] == max(heat) > 3 * sorted(heat)[len(heat) // 2]
    losses = [row["loss"] for row in record["layers"]]
    assert losses == sorted(losses, reverse=True) and record["all"]["heat"] > 0 and record["images"] == 3
    assert json.loads((run / "sensitivity.json").read_text()) == record


def test_options_of_the_command_line_become_tables() -> None:
    assert parse_bits(["6", "decoder.*=8", "conv1.0=7"], "weights", WEIGHTS) == {"*": 6, "decoder.*": 8, "conv1.0": 7}
    assert list(parse_bits(["conv1.0=7", "3"], "weights", WEIGHTS) or {}) == ["*", "conv1.0"], "the general one stays first"
    assert parse_bits(None, "activations", ACTIVATIONS) is None
    assert parse_fields(["kernel=9", "gather=static", "deform_stages=[3,4]"]) == {"kernel": 9, "gather": "static", "deform_stages": [3, 4]}
    for call in (lambda: parse_bits(["a=b"], "weights", WEIGHTS), lambda: parse_fields(["kernel"])):
        with pytest.raises(WarploomError, match="must be like"):
            call()


@pytest.mark.parametrize(
    "options", [{"keep": "worst"}, {"norms": -1}, {"free_ranges": 1.0}, {"ema": 1.0}, {"settle": -0.1}, {"weights": {"*": 9}}, {"batch": 0}]
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        QuantizeOptions(**options)


def test_a_loaded_state_keeps_what_is_no_part_of_it() -> None:
    """Quantizers stay the same objects: with their bypass, and with learned ranges, which an average then is exported with."""
    model = prepare(trained_like())
    calibrate(model, [torch.rand(8, 3, 32, 32)])
    before = activation_quantizers(model)
    for path, quantizer in before.items():
        quantizer.bypass = path.endswith(".bound")
    ranges = FreeRanges(model)
    with torch.no_grad():
        for learned in ranges.log2:
            learned.sub_(2.0)
    finer = {path: int(q.exponent) + 2 * bool(q.free) for path, q in before.items()}
    parameters = {name: id(p) for name, p in model.named_parameters()}
    model.load_state_dict(model.state_dict())
    after = activation_quantizers(model)
    assert all(after[path] is quantizer for path, quantizer in before.items())
    assert {name: id(p) for name, p in model.named_parameters()} == parameters, "an optimizer holds these"
    product = activation_quantizers(snapped(model, model.state_dict()))
    assert {p: int(q.exponent) for p, q in product.items() if before[p].bits <= 8} == {p: finer[p] for p in finer if before[p].bits <= 8}
    assert [p for p, q in product.items() if q.bypass] == [p for p in before if p.endswith(".bound")] != []
