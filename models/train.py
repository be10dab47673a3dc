"""Float training: CenterNet targets, AdamW with one cosine cycle, an average of the weights, resumable after every epoch."""
from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from models import checkpoint
from models.data.transforms import augment, letterbox
from models.data.voc import Sample, VocFolder, find_split
from models.detectors.codenet import CHANNELS, PRESETS, Codenet, CodenetConfig, images_to_input
from models.detectors.trunk import load_trunk
from models.losses import Targets, detection_loss, focal_loss, make_targets
from models.score import score, torch_network
from sw.files import whole_file

logger = logging.getLogger(__name__)

#: The average of the weights forgets with this factor a step.
EMA_DECAY = 0.998
#: Share of the steps in which the learning rate rises.
WARM_UP = 0.05
#: Samples are kept decoded up to this many bytes.
CACHE_BYTES = 2**30
Batch = tuple[npt.NDArray[np.uint8], Targets]


class Views(Dataset[Sample]):
    """Samples as the network sees them: with probability ``random`` a random view, which depends on seed, epoch and index alone, else
    letterboxed."""

    def __init__(self, folder: VocFolder, size: tuple[int, int], *, random: float, flip: bool = False, seed: int = 0) -> None:
        self.folder, self.size, self.random, self.flip, self.seed = folder, size, random, flip, seed
        self.epoch = 0
        self._cache: dict[int, Sample] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.folder)

    def fill(self) -> None:
        """Decode as many samples as fit in memory, before worker processes copy this object."""
        for index in range(len(self)):
            if self._cached_bytes > CACHE_BYTES:
                break
            self._cache[index] = self.folder[index]
            self._cached_bytes += self._cache[index].image.nbytes

    def __getitem__(self, index: int) -> Sample:
        sample = self._cache.get(index) or self.folder[index]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        if rng.random() >= self.random:
            return letterbox(sample, self.size)[0]
        return augment(sample, self.size, rng, flip=self.flip)


class Collate:
    """Samples to a batch: raw images (N, H, W, 3) uint8 and targets. Difficult objects are trained on like others."""

    def __init__(self, config: CodenetConfig, box_area: float = 0.0) -> None:
        self.config, self.box_area = config, box_area

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        images = np.stack([s.image for s in samples])
        boxes, labels = [s.boxes for s in samples], [s.labels for s in samples]
        return images, make_targets(boxes, labels, classes=len(self.config.classes), size=self.config.size, box_area=self.box_area)


class Order(torch.utils.data.Sampler[list[int]]):
    """Batches of indices in the random order of one epoch; the last, smaller batch is dropped unless it is the only one."""

    def __init__(self, length: int, batch: int, seed: int) -> None:
        self.length, self.batch, self.seed, self.epoch = length, min(batch, length), seed, 0

    def __len__(self) -> int:
        return self.length // self.batch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch, self.length)).permutation(self.length)
        for first in range(0, len(self) * self.batch, self.batch):
            yield order[first : first + self.batch].tolist()


class Batches:
    """Training batches, epoch by epoch, prepared by ``workers`` processes (0: inline)."""

    def __init__(self, views: Views, config: CodenetConfig, *, batch: int, seed: int, workers: int, box_area: float = 0.0) -> None:
        self.views, self.order, self.collate, self.workers = views, Order(len(views), batch, seed), Collate(config, box_area), workers

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int) -> DataLoader[Batch]:
        self.views.epoch = self.order.epoch = epoch
        return DataLoader(self.views, batch_sampler=self.order, collate_fn=self.collate, num_workers=self.workers)  # type: ignore[arg-type]


class Average:
    """Exponential moving average of a model's parameters and statistics."""

    def __init__(self, model: nn.Module, decay: float = EMA_DECAY) -> None:
        self.decay, self.steps = decay, 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value.to(self.state[name].dtype), 1 - decay)
            else:
                self.state[name].copy_(value)


def cosine_lr(step: int, steps: int, peak: float, warm_up: float = WARM_UP) -> float:
    """Learning rate at ``step`` of ``steps``: linear rise, then half a cosine down to 0."""
    rise = max(1, round(warm_up * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def progress_bar(enabled: bool) -> Progress:
    """A bar on standard error with the time left; silent unless ``enabled``."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), disable=not enabled)


def write_json(path: Path, content: Any) -> None:
    """JSON to ``path``, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def make_config(preset: str, classes: Sequence[str], **given: Any) -> CodenetConfig:
    """The preset with the data's classes and whatever other field of the configuration is given (None: the preset's)."""
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, not {preset!r}")
    changes: dict[str, Any] = {"classes": tuple(classes)}
    changes |= {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(PRESETS[preset], **changes)


def start_model(config: CodenetConfig, *, init: Path | None, trunk: Path | None, seed: int) -> Codenet:
    """A network with random weights, then whatever a trunk or a float checkpoint of equal shapes gives."""
    torch.manual_seed(seed)
    model = Codenet(config)
    if trunk is not None:
        logger.info("trunk %s: %s", trunk, load_trunk(model, trunk))
    if init is not None:
        given, own = checkpoint.load_float(init).state_dict(), model.state_dict()
        fits = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
        if len(fits) < len(own) / 2:
            raise ValueError(f"{init} must hold a network like this one: only {len(fits)} of {len(own)} tensors fit")
        model.load_state_dict(fits, strict=False)
        logger.info("init %s: %d of %d tensors", init, len(fits), len(own))
    return model


class DeepSupervision(nn.Module):
    """Class maps read off conv5 and the first two decoder stages while training, so that the trunk learns classes from the first step.

    The network's only path from classes to trunk runs through the whole decoder, which makes learning from few images slow. Each
    map (strides 32, 16, 8) is held against the heat map target's maximum over its cell, with the same focal loss. The layers are
    not part of the network and are thrown away.
    """

    def __init__(self, model: Codenet) -> None:
        super().__init__()
        mixed = "joined" if model.config.laterals else "mix"
        places = [model.get_submodule(path) for path in ("conv5", f"decoder.0.{mixed}", f"decoder.1.{mixed}")]
        widths = (CHANNELS[model.config.width][-1], *model.config.decoder)
        layers = [nn.Conv2d(n, len(model.config.classes), 1) for n, _ in zip(widths, places, strict=False)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, -2.19)
        self.layers = nn.ModuleList(layers)
        self.seen: dict[int, Tensor] = {}
        for k, place in enumerate(places):
            place.register_forward_hook(lambda _module, _inputs, output, k=k: self.seen.__setitem__(k, output))

    def loss(self, target: Tensor) -> Tensor:
        """Sum of the focal losses of the maps of the last forward pass; ``target`` (N, classes, H, W)."""
        total = torch.zeros(())
        for k, layer in enumerate(self.layers):
            logits = layer(self.seen.pop(k))
            factor = target.shape[-1] // logits.shape[-1]
            total = total + focal_loss(logits, F.max_pool2d(target, factor))
        return total


class Trainer:
    """State of one training run; ``save`` and ``resume`` carry it across an interruption."""

    def __init__(self, model: Codenet, *, steps: int, lr: float, weight_decay: float, deep: float = 0.0) -> None:
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.deep = DeepSupervision(model) if deep else None
        if self.deep is not None:
            groups.append({"params": list(self.deep.parameters()), "weight_decay": 0.0})
        self.deep_weight = deep
        self.optimizer = torch.optim.AdamW(groups, lr=lr)
        self.average = Average(model)
        self.steps, self.lr, self.step, self.epochs_done = steps, lr, 0, 0
        self.history: list[dict[str, float]] = []

    def train_on(self, batch: Batch) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_lr(self.step, self.steps, self.lr)
        self.model.train()
        image = images_to_input(batch[0]).contiguous(memory_format=torch.channels_last)
        losses = detection_loss(self.model(image), batch[1])  # float32: bfloat16 gained nothing here, AMX or not
        if self.deep is not None:
            losses["deep"] = self.deep.loss(batch[1].hm)
            losses["loss"] = losses["loss"] + self.deep_weight * losses["deep"]
        if not torch.isfinite(losses["loss"]):
            raise RuntimeError(f"training diverged at step {self.step}; a smaller lr than {self.lr} may help")
        self.optimizer.zero_grad()
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        self.average.update(self.model)
        self.step += 1
        return {name: value.item() for name, value in losses.items()}

    def save(self, path: Path, key: str) -> None:
        content = {"key": key, "model": self.model.state_dict(), "average": self.average.state, "optimizer": self.optimizer.state_dict()}
        content["deep"] = self.deep.state_dict() if self.deep is not None else {}
        checkpoint.save(path, content | {"step": self.step, "epochs": self.epochs_done, "history": json.dumps(self.history)})

    def resume(self, path: Path, key: str) -> bool:
        """Continue from ``path`` if it is there and of the same run (``key``: its settings)."""
        if not path.exists():
            return False
        content = checkpoint.load(path)
        if content.get("key") != key:
            logger.warning("%s is of a run with other settings: training starts anew", path)
            return False
        self.model.load_state_dict(content["model"])
        if self.deep is not None:
            self.deep.load_state_dict(content["deep"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.average.state, self.average.steps = content["average"], content["step"]
        self.step, self.epochs_done, self.history = content["step"], content["epochs"], json.loads(content["history"])
        return True


class Resumable(Protocol):
    """What an epoch loop needs of a trainer."""

    step: int
    epochs_done: int
    history: list[dict[str, float]]

    def train_on(self, batch: Batch) -> dict[str, float]:
        """One step; its losses."""

    def save(self, path: Path, key: str) -> None:
        """Write all that ``resume`` needs."""


def run_epochs(trainer: Resumable, batches: Batches, epochs: int, path: Path, key: str, title: str, progress: bool) -> None:
    """Run the epochs that are left, saving to ``path`` after each; the trainer notes the mean losses."""
    with progress_bar(progress) as bar:
        task = bar.add_task(title, total=epochs * len(batches), completed=trainer.step, note="")
        for epoch in range(trainer.epochs_done, epochs):
            losses = []
            for each in batches.epoch(epoch):
                losses.append(trainer.train_on(each))
                bar.update(task, advance=1, note=f"loss {losses[-1]['loss']:.3f}")
            trainer.epochs_done = epoch + 1
            trainer.history.append({name: float(np.mean([loss[name] for loss in losses])) for name in losses[0]})
            logger.info("epoch %d: %s", epoch + 1, trainer.history[-1])
            trainer.save(path, key)


def evaluate_float(model: Codenet, data: Path, split: str) -> dict[str, Any]:
    """AP of a float network in eval mode on a split of ``data``."""
    folder = VocFolder(data, find_split(data, split), model.config.classes)
    return score(torch_network(model), folder, model.config.size)


def train(
    run: Path,
    *,
    data: Path,
    preset: str = "tiny",
    width: float | None = None,
    size: tuple[int, int] | None = None,
    laterals: bool | None = None,
    epochs: int = 40,
    batch: int = 32,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    init: Path | None = None,
    trunk: Path | None = None,
    flip: bool = True,
    augmentation: float = 1.0,
    deep: float = 0.5,
    box_area: float = 0.0,
    split: str = "train",
    seed: int = 0,
    workers: int = 1,
    progress: bool = True,
    evaluate_split: str | None = "val",
) -> dict[str, Any]:
    """Train a float network on ``data`` (a VOC folder) and write float.pt, train.json and config.json to ``run``.

    flip: mirror half of the images (not for digits). augmentation: share of random crops and colours, the rest is as it is.
    deep: weight of the class maps that are supervised inside the network while training (0: none).
    box_area: 0: boxes are taught at their centres; else in a Gaussian area around them, this part of their sides.
    split: the list of images to train on (train or trainval). init: a float checkpoint to start from; trunk: a ShuffleNetV2 state dict.
    An interrupted call continues after its last whole epoch when repeated. Returns what train.json holds.
    """
    run = Path(run)
    folder = VocFolder(data, find_split(data, split))
    folder.check()
    config = make_config(preset, folder.classes, width=width, size=size, laterals=laterals)
    settings = {
        "data": str(data), "epochs": epochs, "batch": batch, "lr": lr, "weight_decay": weight_decay, "flip": flip,
        "augmentation": augmentation, "deep": deep, "box_area": box_area, "split": split, "seed": seed,
        "init": str(init) if init else None, "trunk": str(trunk) if trunk else None,
    }  # fmt: skip
    model = start_model(config, init=init, trunk=trunk, seed=seed)
    views = Views(folder, config.size, random=augmentation, flip=flip, seed=seed)
    batches = Batches(views, config, batch=batch, seed=seed, workers=workers, box_area=box_area)
    trainer = Trainer(model, steps=epochs * len(batches), lr=lr, weight_decay=weight_decay, deep=deep)
    key = json.dumps([settings, config.to_json()], sort_keys=True)
    trainer.resume(run / "train.ckpt", key)
    write_json(run / "config.json", {"model": json.loads(config.to_json()), "train": settings})
    views.fill()
    run_epochs(trainer, batches, epochs, run / "train.ckpt", key, "train", progress)
    model.load_state_dict(trainer.average.state)
    model.eval()
    result: dict[str, Any] = {"settings": settings, "history": trainer.history}
    if evaluate_split is not None:
        result["evaluation"] = {"split": evaluate_split, **evaluate_float(model, data, evaluate_split)}
    checkpoint.save_float(run / "float.pt", model, settings=settings)
    write_json(run / "train.json", result)
    return result
