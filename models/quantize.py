"""Quantization-aware training: all weights, biases and weight scales, taught by data and by the float network's maps."""
from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import checkpoint
from models.data.voc import VocFolder, find_split
from models.detectors.codenet import Codenet, images_to_input
from models.export import export_qonnx
from models.frozen import FrozenNetwork, freeze
from models.losses import WH_WEIGHT, detection_loss
from models.qat import calibrate, pack, prepare, settle_heads, unpack
from models.score import score, torch_network
from models.train import Batch, Batches, Views, cosine_lr, evaluate_float, run_epochs, write_json
from sw.files import whole_file

logger = logging.getLogger(__name__)

#: Images that choose the activations' scales.
CALIBRATION_IMAGES = 256
#: Weight scales are learned as powers of two's exponents: their steps are larger than weights'.
SCALE_LR = 4.0


def distillation_loss(maps: tuple[Tensor, ...], taught: tuple[Tensor, ...]) -> Tensor:
    """How far hm, wh and reg are from the float network's, weighted by where that sees objects.

    Heat: quality focal loss (Li et al., arXiv 2006.04388) with the float network's probability as its target, divided by their sum; sizes
    and offsets: L1, weighted by the pixel's greatest probability.
    """
    target = torch.sigmoid(taught[0])
    there = target.amax(1, keepdim=True)
    objects = there.sum().clamp(min=1)
    miss = (torch.sigmoid(maps[0]) - target).abs().square()
    heat = (miss * nn.functional.binary_cross_entropy_with_logits(maps[0], target, reduction="none")).sum()
    size, shift = (((mine - theirs).abs() * there).sum() for mine, theirs in zip(maps[1:], taught[1:], strict=True))
    loss: Tensor = (heat + WH_WEIGHT * size + shift) / objects
    return loss


class QuantTrainer:
    """State of one quantization-aware training; ``save`` and ``resume`` carry it across an interruption."""

    def __init__(self, model: Codenet, teacher: Codenet, *, steps: int, lr: float, teaching: float) -> None:
        self.model, self.teacher = model, teacher
        scales = [p for name, p in model.named_parameters() if name.endswith(".log2")]
        others = [p for name, p in model.named_parameters() if not name.endswith(".log2")]
        self.optimizer = torch.optim.Adam([{"params": others, "times": 1.0}, {"params": scales, "times": SCALE_LR}], lr=lr)
        self.steps, self.lr, self.teaching, self.step, self.epochs_done = steps, lr, teaching, 0, 0
        self.history: list[dict[str, float]] = []

    def train_on(self, batch: Batch) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_lr(self.step, self.steps, self.lr) * group["times"]
        self.model.train()
        x = images_to_input(batch[0]).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            taught = self.teacher(x)
        maps = self.model(x)
        losses = detection_loss(maps, batch[1])
        losses["distillation"] = distillation_loss(maps, taught)
        total = losses["loss"] + self.teaching * losses["distillation"]
        if not torch.isfinite(total):
            raise RuntimeError(f"training diverged at step {self.step}; a smaller lr than {self.lr} may help")
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        self.step += 1
        return {name: value.item() for name, value in losses.items()}

    def save(self, path: Path, key: str) -> None:
        content = {"key": key, "model": pack(self.model), "optimizer": self.optimizer.state_dict()}
        checkpoint.save(path, content | {"step": self.step, "epochs": self.epochs_done, "history": json.dumps(self.history)})

    def resume(self, path: Path, key: str) -> None:
        """Continue from ``path`` if it is there and of the same run (``key``: its settings)."""
        content = checkpoint.load(path) if path.exists() else {}
        if content.get("key") == key:
            self.model.load_state_dict(content["model"]["state"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.step, self.epochs_done, self.history = content["step"], content["epochs"], json.loads(content["history"])


def calibration_batches(folder: VocFolder, size: tuple[int, int], *, images: int = CALIBRATION_IMAGES, batch: int = 16) -> list[Tensor]:
    """Network inputs from the first ``images`` of ``folder``, letterboxed."""
    views = Views(folder, size, random=0.0)
    count = min(images, len(views))
    chunks = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
    return [images_to_input(np.stack([views[index].image for index in chunk])) for chunk in chunks]


def load_quantized(path: Path) -> Codenet:
    """The fake-quantized network in quantized.pt, in eval mode; ValueError if the file is none."""
    try:
        return unpack(checkpoint.load(path)).eval()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_products(run: Path, model: Codenet) -> FrozenNetwork:
    """quantized.pt, frozen.pt and model.onnx of a trained, fake-quantized ``model`` in ``run``; returns the frozen network."""
    model.eval()
    settle_heads(model)
    frozen = freeze(model)
    checkpoint.save(run / "quantized.pt", pack(model))
    with whole_file(run / "frozen.pt") as temporary:
        frozen.save(temporary)
    export_qonnx(frozen, run / "model.onnx")
    return frozen


def quantize(
    run: Path,
    *,
    data: Path,
    epochs: int = 3,
    batch: int = 16,
    lr: float = 1e-3,
    teaching: float = 1.0,
    flip: bool = True,
    augmentation: float = 1.0,
    box_area: float = 0.0,
    split: str = "train",
    seed: int = 0,
    workers: int = 1,
    progress: bool = True,
    evaluate_split: str | None = "val",
) -> dict[str, Any]:
    """Quantize ``run``/float.pt with the training split of ``data`` and write quantized.pt, frozen.pt, model.onnx and quantize.json.

    epochs: of quantization-aware training, 0: calibration only. teaching: weight of the float network's maps beside the data's loss.
    An interrupted call continues after its last whole epoch when repeated. Returns what quantize.json holds.
    """
    run = Path(run)
    teacher = checkpoint.load_float(run / "float.pt")
    config = teacher.config
    folder = VocFolder(data, find_split(data, split), config.classes)
    torch.manual_seed(seed)
    model = prepare(teacher)
    views = Views(folder, config.size, random=augmentation, flip=flip, seed=seed + 1)
    batches = Batches(views, config, batch=batch, seed=seed + 1, workers=workers, box_area=box_area)
    settings = {"data": str(data), "epochs": epochs, "batch": batch, "lr": lr, "teaching": teaching, "flip": flip}
    settings |= {"augmentation": augmentation, "box_area": box_area, "split": split, "seed": seed}
    calibrate(model, calibration_batches(folder, config.size))
    for network in (model, teacher):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = QuantTrainer(model, teacher, steps=max(1, epochs * len(batches)), lr=lr, teaching=teaching)
    weights = sum(float(value.double().sum()) for value in teacher.state_dict().values())  # another float.pt is another run
    key = json.dumps([settings, config.to_json(), weights], sort_keys=True)
    trainer.resume(run / "quantize.ckpt", key)
    views.fill()
    run_epochs(trainer, batches, epochs, run / "quantize.ckpt", key, "quantize", progress)
    write_products(run, model)
    result: dict[str, Any] = {"settings": settings, "history": trainer.history}
    if evaluate_split is not None:
        result["evaluation"] = evaluate_quantized(model, teacher, data, evaluate_split)
    write_json(run / "quantize.json", result)
    return result


def evaluate_quantized(model: Codenet, teacher: Codenet, data: Path, split: str) -> dict[str, Any]:
    """AP50 of the fake-quantized and the float network on a split, and what quantization lost."""
    folder = VocFolder(data, find_split(data, split), model.config.classes)
    quantized = score(torch_network(model.eval()), folder, model.config.size)["ap50"]
    floating = evaluate_float(teacher, data, split)["ap50"]
    return {"split": split, "float_ap50": floating, "quantized_ap50": quantized, "loss": floating - quantized}
