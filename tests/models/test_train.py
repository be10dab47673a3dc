"""Training and quantization end to end on a handful of drawn images; resumption; the files they leave."""
from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from models import checkpoint
from models import train as training
from models.batches import Batch, Order, Views
from models.data.voc import VocFolder
from models.detectors.codenet import Codenet, CodenetConfig
from models.distillation import OUTPUTS_WEIGHT, PLACES, distillation_loss, imitation_loss, watched
from models.frozen import FrozenNetwork
from models.quantize import load_quantized, quantize
from models.schedules import cosine_lr
from models.score import score, torch_network
from models.train import make_config, train
from sw import steps

XML = (
    "<annotation><size><width>64</width><height>64</height><depth>3</depth></size><object><name>{}</name>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object></annotation>"
)


def draw_set(root: Path, count: int = 16) -> Path:
    """A VOC folder of 64 x 64 images with one red or green square each."""
    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    names = [f"{index:03d}" for index in range(count)]
    for index, name in enumerate(names):
        x, y, kind = (int(v) for v in (rng.integers(2, 34), rng.integers(2, 34), index % 2))
        image = np.full((64, 64, 3), 60, np.uint8)
        image[y : y + 28, x : x + 28] = (220, 30, 30) if kind else (30, 220, 30)
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.png")
        text = XML.format(("green", "red")[kind], x + 1, y + 1, x + 28, y + 28)
        (root / "Annotations" / f"{name}.xml").write_text(text)
    for split in ("train", "val"):
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("squares") / "data")


SETTINGS: dict[str, Any] = {"size": (64, 64), "batch": 4, "flip": False, "workers": 0, "progress": False}


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(folder, data=data, epochs=8, lr=4e-3, keep="last", **SETTINGS)
    return folder


def test_loss_falls_and_files_are_there(run: Path, data: Path) -> None:
    result = json.loads((run / "train.json").read_text())
    losses = [epoch["loss"] for epoch in result["history"]]
    assert len(losses) == 8 and losses[-1] < 0.9 * losses[0]
    assert result["cpu_seconds"] == pytest.approx(sum(epoch["cpu_seconds"] for epoch in result["history"]), abs=0.06)
    assert min(epoch["cpu_seconds"] for epoch in result["history"]) > 0
    assert result["evaluation"]["split"] == "val" and 0 <= result["evaluation"]["ap50"] <= 1
    model = checkpoint.load_float(run / "float.pt")
    assert model.config.classes == ("green", "red") and not model.training
    assert json.loads((run / "config.json").read_text())["train"]["epochs"] == 8


def test_interrupted_training_ends_like_an_uninterrupted_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = {**SETTINGS, "data": data, "epochs": 3, "evaluate_split": None}
    train(tmp_path / "whole", **common)
    original, calls = training.Trainer.train_on, [0]

    def interrupted(self: training.Trainer, batch: Batch) -> dict[str, float]:
        calls[0] += 1
        if calls[0] == 6:  # in the second epoch
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(training.Trainer, "train_on", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", **common)
    assert not (tmp_path / "parts/float.pt").exists()
    train(tmp_path / "parts", **common)
    assert calls[0] == 6 + 8, "the first epoch is not repeated"
    a, b = (checkpoint.load_float(tmp_path / name / "float.pt").state_dict() for name in ("whole", "parts"))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], msg=name)


def test_training_starts_from_a_checkpoint(run: Path, data: Path, tmp_path: Path) -> None:
    result = train(tmp_path, data=data, epochs=1, lr=1e-5, init=run / "float.pt", evaluate_split=None, **SETTINGS)
    first = json.loads((run / "train.json").read_text())["history"][0]["hm"]
    assert result["history"][0]["hm"] < 0.98 * first  # untrained, at this learning rate, it would be no lower
    with pytest.raises(ValueError, match="must hold a network like this one"):
        train(tmp_path, data=data, init=run / "float.pt", preset="b", **SETTINGS)


def test_quantization_leaves_one_network_in_three_forms(run: Path, data: Path) -> None:
    result = quantize(run, data=data, epochs=2, batch=8, flip=False, workers=0, progress=False)
    losses = [epoch["distillation"] for epoch in result["history"]]
    assert np.isfinite(losses).all() and {"split", "float_ap50", "quantized_ap50", "loss", "loss_nms"} <= set(result["evaluation"])
    assert 0 < result["history"][0]["cpu_seconds"] < result["cpu_seconds"]
    frozen = FrozenNetwork.load(run / "frozen.pt")
    fake = load_quantized(run / "quantized.pt")
    images = np.stack([VocFolder(data, "val")[index].image for index in range(4)])
    for exact, rough in zip(frozen.maps(images), torch_network(fake)(images), strict=True):
        assert np.abs(exact - rough).mean() < 0.02 * exact.std(), "float32 may move one value by a step; what follows then differs a little"
    model = onnx.load(run / "model.onnx")
    assert [output.name for output in model.graph.output] == ["hm", "wh", "reg"]


def test_golden_is_evaluated_without_compiling(run: Path, data: Path) -> None:
    assert (run / "model.onnx").exists() and not (run / "compiled").exists()
    figures = [steps.evaluate(run, backend=name, data=data, split="val") for name in ("golden", "torch-quantized")]
    assert figures[0]["ap50"] == figures[1]["ap50"] and figures[0]["ap50_nms"] == figures[1]["ap50_nms"]


def test_failed_quantization_leaves_earlier_files_whole(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"earlier")
    with pytest.raises(FileNotFoundError):
        quantize(tmp_path, data=tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == b"earlier"


def test_score_of_a_network_that_knows_the_answer(data: Path) -> None:
    """Maps drawn from the ground truth score 1: boxes come back into the image's own pixels."""
    folder = VocFolder(data, "val")
    samples = [folder[index] for index in range(len(folder))]
    position = iter(range(0, len(samples), 4))

    def oracle(images: Any) -> Any:
        hm, wh, reg = np.full((len(images), 32, 32, 2), -9.0), np.zeros((len(images), 32, 32, 2)), np.zeros((len(images), 32, 32, 2))
        first = next(position)
        for index, sample in enumerate(samples[first : first + len(images)]):
            x1, y1, x2, y2 = sample.boxes[0] * 2 / 4  # letterboxed from 64 to 128, stride 4
            row, column = int((y1 + y2) / 2), int((x1 + x2) / 2)
            hm[index, row, column, sample.labels[0]] = 9.0
            wh[index, row, column] = x2 - x1, y2 - y1
            reg[index, row, column] = (x1 + x2) / 2 - column, (y1 + y2) / 2 - row
        return hm, wh, reg

    assert score(oracle, folder, (128, 128), batch=4)["ap50"] == pytest.approx(1.0)


def test_distillation_is_least_at_the_teachers_maps() -> None:
    torch.manual_seed(0)
    taught = (torch.randn(2, 3, 4, 4), torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4))
    assert distillation_loss(taught, taught).item() == pytest.approx(0, abs=1e-6)
    for index in range(3):
        other = [x.clone() for x in taught]
        other[index] = other[index] + 1
        assert distillation_loss(tuple(other), taught).item() > 0.01


def test_imitation_compares_every_place_and_balances_the_classes() -> None:
    model, other = (Codenet(CodenetConfig(size=(32, 32), decoder=(16, 8, 8), head_channels=8)).eval() for _ in range(2))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), watched(model) as mine, watched(other) as theirs:
        heat, _, _ = model(x)
        other(x)
    assert set(mine) == set(theirs) == set(PLACES) and not any(module._forward_hooks for module in model.modules())
    theirs = {path: torch.rand(2, 3, 4, 4) for path in PLACES}
    assert imitation_loss(theirs, theirs, heat, heat).item() == 0.0
    scaled = {path: 1.5 * value for path, value in theirs.items()}
    assert imitation_loss(scaled, theirs, heat, heat).item() == pytest.approx(OUTPUTS_WEIGHT * 0.25)
    one = theirs | {"stage3": torch.zeros_like(theirs["stage3"])}
    assert imitation_loss(one, theirs, heat, heat).item() == pytest.approx(OUTPUTS_WEIGHT / len(PLACES))
    taught = torch.full((1, 2, 4, 4), -20.0)  # one pixel of a rare class, four of another: each class counts alike
    taught[0, 0, 0, 0] = taught[0, 1, :2, :2] = 0.0
    off = [taught.clone() for _ in range(2)]
    off[0][0, 0, 0, 0] = off[1][0, 1, :2, :2] = 1.0
    rare, common = (imitation_loss(theirs, theirs, each, taught).item() for each in off)
    divergence = -(np.log(1 / (1 + np.exp(-1))) + np.log(1 / (1 + np.exp(1)))) / 2 - np.log(2)
    assert rare == pytest.approx(divergence / 2) and common == pytest.approx(divergence * 4 / 2 / 2)


def test_views_depend_on_seed_epoch_and_index_alone(data: Path) -> None:
    one, two = (Views(VocFolder(data, "train"), (64, 64), random=1.0, seed=3) for _ in range(2))
    two.fill()
    _ = two[5]
    assert np.array_equal(one[2].image, two[2].image)
    before = one[2].image
    one.epoch = 1
    assert not np.array_equal(one[2].image, before)


def test_order_is_a_permutation_in_batches() -> None:
    order = Order(10, 4, seed=0)
    batches = list(order)
    assert [len(batch) for batch in batches] == [4, 4] and len(set(itertools.chain(*batches))) == 8
    order.epoch = 1
    assert list(order) != batches
    assert len(Order(3, 8, seed=0)) == 1


def test_learning_rate_rises_and_falls() -> None:
    rates = [cosine_lr(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == pytest.approx(1.0) and rates[-1] < 0.01
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="preset must be one of"):
        make_config("huge", ["a"])
