"""Quantization-aware training: all weights, biases and weight scales, taught by data and by the float network's maps."""
from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import checkpoint
from models.batches import Batch, Batches, Views
from models.data.folder import Folder, open_folder
from models.detectors.codenet import Codenet, images_to_input
from models.distillation import distillation_loss, imitation_loss, watched
from models.epochs import History, Watch, best_epoch, run_epochs, spent, write_json
from models.export import export_qonnx
from models.freeze import freeze
from models.frozen import FrozenNetwork
from models.losses import detection_loss
from models.oscillations import Oscillations
from models.qat import Bits, FreeRanges, calibrate, pack, prepare, reestimate_batch_norm, settle_heads, snapped, unpack
from models.schedules import Average, cosine_lr
from models.score import score, torch_network
from models.train import evaluate_float, validation_folder
from sw.files import whole_file

logger = logging.getLogger(__name__)

#: Images that choose the activations' scales.
CALIBRATION_IMAGES = 256
#: Weight scales are learned as powers of two's exponents: their steps are larger than weights'.
SCALE_LR = 4.0


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """How to quantize.

    epochs: of quantization-aware training; 0: post-training quantization, calibration only. batch, lr (highest): of that training.
    data_loss, teaching, imitation: weights of the data's loss, of the float network's maps, and of what it computes on the way to them
    (``models.distillation``). A small data set's loss is best left out: its every epoch is one more in which to learn images by heart.
    ema: how slowly the average of the weights and their scales forgets, which is what is validated and exported (0: no average): between
    two roundings a weight swings, and the average of its swings rounds better. settle: how often a weight may turn back before it is held
    (``models.oscillations``; 0: none is).
    weights, activations: bit widths by module path (``Bits``), 2 to 8. norms: training views from which batch norm's statistics are
    estimated anew before they are folded (0: as training left them). free_ranges: share of the training in which activation scales are
    learned as any numbers; they are snapped to powers of two last, and the rest recovers (0: powers of two from calibration on).
    flip, augmentation, box_area, split, evaluate_split, evaluate_every, keep, patience, seed: as in training.
    """

    epochs: int = 3
    batch: int = 16
    lr: float = 1e-3
    data_loss: float = 1.0
    teaching: float = 1.0
    imitation: float = 0.0
    ema: float = 0.0
    settle: float = 0.0
    weights: dict[str, int] = dataclasses.field(default_factory=lambda: Bits().weights)
    activations: dict[str, int] = dataclasses.field(default_factory=lambda: Bits().activations)
    norms: int = 0
    free_ranges: float = 0.0
    flip: bool = True
    augmentation: float = 1.0
    box_area: float = 0.0
    split: str = "train"
    evaluate_split: str | None = "val"
    evaluate_every: int = 0
    keep: str = "best"
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.keep not in ("best", "last"):
            raise ValueError(f"keep must be best or last, not {self.keep!r}")
        for name in ("epochs", "norms", "data_loss", "teaching", "imitation", "evaluate_every", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)!r}")
        for name in ("batch", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)!r}")
        for name in ("free_ranges", "ema", "settle"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and less than 1, not {getattr(self, name)!r}")
        Bits(weights=self.weights, activations=self.activations)

    @property
    def validation_every(self) -> int:
        return self.evaluate_every or max(1, -(-self.epochs // 20))


class QuantTrainer:
    """State of one quantization-aware training; ``save`` and ``resume`` carry it across an interruption."""

    def __init__(
        self, model: Codenet, teacher: Codenet, *, steps: int, lr: float, teaching: float, data_loss: float = 1.0,
        imitation: float = 0.0, free_ranges: float = 0.0, ema: float = 0.0, settle: float = 0.0,
    ) -> None:  # fmt: skip
        self.model, self.teacher, self.average = model, teacher, Average(model, ema)
        self.oscillations = Oscillations(model, settle, steps) if settle else None
        self.weights = {"loss": data_loss, "distillation": teaching, "imitation": imitation}
        self.ranges = FreeRanges(model) if free_ranges else None
        self.snap_at = round(free_ranges * steps)
        self.parameters = list(model.parameters())
        scales = [p for name, p in model.named_parameters() if name.endswith(".log2")]
        others = [p for name, p in model.named_parameters() if not name.endswith(".log2")]
        if self.ranges is not None:
            scales += self.ranges.log2
        self.optimizer = torch.optim.Adam([{"params": others, "times": 1.0}, {"params": scales, "times": SCALE_LR}], lr=lr)
        self.steps, self.lr, self.step, self.epochs_done = steps, lr, 0, 0
        self.history: History = []

    def train_on(self, batch: Batch) -> dict[str, float]:
        if self.ranges is not None and self.step == self.snap_at:
            self.ranges.snap()
        rate = cosine_lr(self.step, self.steps, self.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["times"]
        if not self.model.training:  # Brevitas' thousands of modules take their time
            self.model.train()
        x = images_to_input(batch[0]).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), watched(self.teacher) as theirs:
            taught = self.teacher(x)
        with watched(self.model) as mine:
            maps = self.model(x)
        losses = detection_loss(maps, batch[1])
        losses["distillation"], losses["imitation"] = distillation_loss(maps, taught), imitation_loss(mine, theirs, maps[0], taught[0])
        total = torch.stack([weight * losses[name] for name, weight in self.weights.items()]).sum()
        if not torch.isfinite(total):
            raise RuntimeError(f"training diverged at step {self.step}; a smaller lr than {self.lr} may help")
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()
        held = {}
        if self.oscillations is not None:
            self.oscillations.update()
            held = {"held": self.oscillations.share}
        self.average.update(self.model)
        self.step += 1
        return {name: value.item() for name, value in losses.items()} | held | {"lr": rate}

    def product(self) -> Codenet:
        """The average of the weights as a network of its own in eval mode, all scales snapped: what would be exported now."""
        return snapped(self.model, self.average.state)

    def save(self, path: Path, key: str) -> None:
        content: dict[str, Any] = {"key": key, "model": pack(self.model), "optimizer": self.optimizer.state_dict()}
        content["average"] = self.average.state
        content["oscillations"] = self.oscillations.state if self.oscillations is not None else {}
        content["ranges"] = [p.detach() for p in self.ranges.log2] if self.ranges is not None else []
        checkpoint.save(path, content | {"step": self.step, "epochs": self.epochs_done, "history": json.dumps(self.history)})

    def resume(self, path: Path, key: str) -> None:
        """Continue from ``path`` if it is there and of the same run (``key``: its settings)."""
        content = checkpoint.load(path) if path.exists() else {}
        if content.get("key") == key:
            self.model.load_state_dict(content["model"]["state"])
            self.optimizer.load_state_dict(content["optimizer"])
            for own, saved in zip(self.ranges.log2 if self.ranges is not None else [], content["ranges"], strict=True):
                own.data.copy_(saved)
            if self.ranges is not None and content["step"] > self.snap_at:  # snapped before: the exponents are in the model's state
                for quantizer in self.ranges.quantizers:
                    quantizer.free = []
            self.average.state, self.average.steps = content["average"], content["step"]
            if self.oscillations is not None:
                self.oscillations.state, self.oscillations.step = content["oscillations"], content["step"]
            self.step, self.epochs_done, self.history = content["step"], content["epochs"], json.loads(content["history"])


def calibration_batches(folder: Folder, size: tuple[int, int], *, images: int = CALIBRATION_IMAGES, batch: int = 16) -> list[Tensor]:
    """Network inputs from the first ``images`` of ``folder``, letterboxed."""
    return view_batches(Views(folder, size, random=0.0), images=images, batch=batch)


def view_batches(views: Views, *, images: int, batch: int = 16) -> list[Tensor]:
    """Network inputs (N, 3, H, W) from the first ``images`` of ``views``, ``batch`` at a time."""
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


def quantize(run: Path, *, data: Path, workers: int = 1, progress: bool = True, **options: Any) -> dict[str, Any]:
    """Quantize ``run``/float.pt with a split of ``data`` and write quantized.pt, frozen.pt, model.onnx, quantize.csv and quantize.json.

    ``options``: QuantizeOptions' fields. An interrupted call continues after its last whole epoch when repeated. Returns what
    quantize.json holds.
    """
    run, data, chosen = Path(run), Path(data), QuantizeOptions(**options)
    teacher = checkpoint.load_float(run / "float.pt")
    config = teacher.config
    folder = open_folder(data, chosen.split, config.classes)
    torch.manual_seed(chosen.seed)
    source = checkpoint.load_float(run / "float.pt")
    views = Views(folder, config.size, random=chosen.augmentation, flip=chosen.flip, seed=chosen.seed + 1)
    if chosen.norms:
        reestimate_batch_norm(source, view_batches(views, images=chosen.norms))
    model = prepare(source, Bits(weights=chosen.weights, activations=chosen.activations))
    batches = Batches(views, config, batch=chosen.batch, seed=chosen.seed + 1, workers=workers, box_area=chosen.box_area)
    settings = {"data": str(data), **dataclasses.asdict(chosen)}
    calibrate(model, calibration_batches(folder, config.size))
    for network in (model, teacher):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = max(1, chosen.epochs * len(batches))
    free = chosen.free_ranges if chosen.epochs else 0.0
    weights = {"data_loss": chosen.data_loss, "teaching": chosen.teaching, "imitation": chosen.imitation}
    trainer = QuantTrainer(model, teacher, steps=steps, lr=chosen.lr, free_ranges=free, ema=chosen.ema, settle=chosen.settle, **weights)
    total = sum(float(value.double().sum()) for value in teacher.state_dict().values())  # another float.pt is another run
    key = json.dumps([settings, config.to_json(), total], sort_keys=True)
    trainer.resume(run / "quantize.ckpt", key)
    views.fill()
    watch = _watch(trainer, data, folder.split, chosen, run / "quantize.best") if chosen.epochs else None
    run_epochs(trainer, batches, chosen.epochs, run / "quantize.ckpt", key, title="quantize", progress=progress, watch=watch)
    best = best_epoch(trainer.history) if chosen.keep == "best" else None
    model = trainer.product() if best is None else load_quantized(run / "quantize.best")
    write_products(run, model)
    result: dict[str, Any] = {"settings": settings, "history": trainer.history, "epoch": best or trainer.epochs_done}
    result |= spent(trainer.history)
    if chosen.evaluate_split is not None:
        result["evaluation"] = evaluate_quantized(model, teacher, data, chosen.evaluate_split)
    write_json(run / "quantize.json", result)
    return result


def _watch(trainer: QuantTrainer, data: Path, trained_on: str, options: QuantizeOptions, best: Path) -> Watch | None:
    """Validation of the fake-quantized network, with the rules of training."""
    config = trainer.model.config
    folder = validation_folder(data, trained_on, options.evaluate_split, config.classes)
    if folder is None:
        return None

    return Watch(
        score=lambda: float(score(torch_network(trainer.product()), folder, config.size)["ap50"]),
        keep=lambda: checkpoint.save(best, pack(trainer.product())),
        every=options.validation_every,
        patience=options.patience,
    )


def evaluate_quantized(model: Codenet, teacher: Codenet, data: Path, split: str) -> dict[str, Any]:
    """AP50 of the fake-quantized and the float network on a split, without and with NMS, and what quantization lost."""
    folder = open_folder(data, split, model.config.classes)
    quantized, floating = score(torch_network(model.eval()), folder, model.config.size), evaluate_float(teacher, data, split)
    result: dict[str, Any] = {"split": folder.split}
    for suffix in ("", "_nms"):
        a, b = floating[f"ap50{suffix}"], quantized[f"ap50{suffix}"]
        result |= {f"float_ap50{suffix}": a, f"quantized_ap50{suffix}": b, f"loss{suffix}": a - b}
    return result
