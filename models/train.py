"""Float training: CenterNet's targets, AdamW, an average of the weights, best and last network; resumable after every epoch.

Under torchrun several processes share each batch (gloo on CPUs, NCCL on GPUs).
"""
from __future__ import annotations

import copy
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models import checkpoint
from models.batches import Batch, Batches, Views
from models.data.folder import Folder, has_split, open_folder
from models.detectors.codenet import PRESETS, Codenet, CodenetConfig, images_to_input
from models.detectors.trunk import load_trunk
from models.distributed import ALONE, Group, join, pick_device
from models.epochs import VAL, History, Watch, best_epoch, run_epochs, spent, write_json
from models.schedules import EMA_DECAY, SCHEDULES, Average, learning_rate
from models.score import score, torch_network
from models.supervision import Objective
from sw.files import whole_file

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Splits whose images training sees when it is told to use the key.
SEEN = {"trainval": ("trainval", "train", "val")}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train.

    preset, and what of it to change (None: nothing): width, size, laterals, ... as in CodenetConfig, in ``network``.
    epochs, batch (of all processes together), lr (highest), schedule (cosine, step as CoDeNet's, constant), weight_decay, clip (greatest
    norm of the gradient), ema (how slowly the average of the weights forgets; 0: no average), precision (float32, bfloat16, float16).
    init: a float checkpoint to start from; trunk: a ShuffleNetV2 state dict.
    flip: mirror half of the images (not for digits). augmentation: share of random crops and colours, the rest is as it is.
    deep: weight of the class maps that are supervised inside the network while training (0: none).
    box_area: 0: boxes are taught at their centres; else in a Gaussian area around them, this part of their sides.
    split: the list of images to train on. evaluate_split: the one to validate on (None: never), every evaluate_every epochs (0: some
    twenty times). keep: which network becomes float.pt, the ``best`` on that split or the ``last``; patience: stop after so many
    validations without a better one (0: never). A split that training sees is not validated on.
    """

    preset: str = "tiny"
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 40
    batch: int = 32
    lr: float = 2e-3
    schedule: str = "cosine"
    weight_decay: float = 0.05
    clip: float = 10.0
    ema: float = EMA_DECAY
    precision: str = "float32"
    init: str | None = None
    trunk: str | None = None
    flip: bool = True
    augmentation: float = 1.0
    deep: float = 0.5
    box_area: float = 0.0
    split: str = "train"
    evaluate_split: str | None = "val"
    evaluate_every: int = 0
    keep: str = "best"
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("schedule", SCHEDULES), ("precision", tuple(PRECISIONS)), ("keep", ("best", "last"))):
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}, not {getattr(self, name)!r}")
        for name in ("epochs", "batch", "lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)!r}")
        for name in ("evaluate_every", "patience", "deep", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)!r}")

    @classmethod
    def gather(cls, **options: Any) -> TrainOptions:
        """Options in which fields of CodenetConfig stand beside those of training, as on the command line; paths become strings."""
        network = dict(options.pop("network", {}))
        fields = {field.name for field in dataclasses.fields(CodenetConfig)} - {"classes"}
        if unknown := set(network) - fields:
            raise ValueError(f"a network has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(fields))}")
        for field in dataclasses.fields(CodenetConfig):
            if field.name in options and (value := options.pop(field.name)) is not None:
                network[field.name] = value
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(options) - known:
            raise ValueError(f"training has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
        plain: dict[str, Any] = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        return cls(network=network, **plain)

    @property
    def validation_every(self) -> int:
        return self.evaluate_every or -(-self.epochs // 20)


def make_config(preset: str, classes: Sequence[str], **given: Any) -> CodenetConfig:
    """The preset with the data's classes and whatever other field of the configuration is given (None: the preset's)."""
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, not {preset!r}")
    changes: dict[str, Any] = {"classes": tuple(classes)}
    changes |= {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None}
    return dataclasses.replace(PRESETS[preset], **changes)


def start_model(config: CodenetConfig, *, init: Path | str | None, trunk: Path | str | None, seed: int) -> Codenet:
    """A network with random weights, then whatever a trunk or a float checkpoint of equal shapes gives."""
    torch.manual_seed(seed)
    model = Codenet(config)
    if trunk is not None:
        logger.info("trunk %s: %s", trunk, load_trunk(model, Path(trunk)))
    if init is not None:
        given, own = checkpoint.load_float(Path(init)).state_dict(), model.state_dict()
        fits = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
        if len(fits) < len(own) / 2:
            raise ValueError(f"{init} must hold a network like this one: only {len(fits)} of {len(own)} tensors fit")
        model.load_state_dict(fits, strict=False)
        logger.info("init %s: %d of %d tensors", init, len(fits), len(own))
    return model


class Trainer:
    """State of one training run; ``save`` and ``resume`` carry it across an interruption."""

    def __init__(
        self, model: Codenet, options: TrainOptions, *, steps: int, device: torch.device | str = "cpu", group: Group = ALONE
    ) -> None:
        self.device, self.options, self.steps = torch.device(device), options, steps
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = Objective(self.model, options.deep).to(self.device)
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        helpers = list(self.objective.deep.parameters()) if self.objective.deep is not None else []
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain + helpers, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "float16")
        self.average = Average(model, options.ema)
        self.parallel: nn.Module = DistributedDataParallel(self.objective) if group.size > 1 else self.objective
        self.step, self.epochs_done = 0, 0
        self.history: History = []

    def train_on(self, batch: Batch) -> dict[str, float]:
        options = self.options
        rate = learning_rate(options.schedule, self.step, self.steps, options.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.parallel.train()
        image = images_to_input(batch[0]).to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, PRECISIONS[options.precision], enabled=options.precision != "float32"):
            losses = self.parallel(image, batch[1].to(self.device))
        if not torch.isfinite(losses["loss"]):
            raise RuntimeError(f"training diverged at step {self.step}; a smaller lr than {options.lr} may help")
        self.optimizer.zero_grad()
        self.scaler.scale(losses["loss"]).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.model)
        self.step += 1
        return {name: value.item() for name, value in losses.items()} | {"lr": rate}

    def averaged(self) -> Codenet:
        """The average of the weights as a network of its own on the CPU, in eval mode."""
        model = Codenet(self.model.config)
        model.load_state_dict({name: value.cpu() for name, value in self.average.state.items()})
        return model.eval()

    def save(self, path: Path, key: str) -> None:
        content = {"key": key, "model": self.model.state_dict(), "average": self.average.state, "optimizer": self.optimizer.state_dict()}
        content |= {"deep": self.objective.deep.state_dict() if self.objective.deep is not None else {}, "scaler": self.scaler.state_dict()}
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
        if self.objective.deep is not None:
            self.objective.deep.load_state_dict(content["deep"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.average.state = {name: value.to(self.device) for name, value in content["average"].items()}
        self.average.steps = self.step = content["step"]
        self.epochs_done, self.history = content["epochs"], json.loads(content["history"])
        return True


def evaluate_float(model: Codenet, data: Path, split: str) -> dict[str, Any]:
    """AP of a float network in eval mode on a split of ``data``; ``split`` names the one that was there."""
    folder = open_folder(data, split, model.config.classes)
    return {"split": folder.split, **score(torch_network(model), folder, model.config.size)}


def validation_folder(data: Path, trained_on: str, split: str | None, classes: Sequence[str]) -> Folder | None:
    """The images to choose the best network by; None if there are none that training does not see (a test split never stands in)."""
    if split is None or not has_split(data, split):
        return None
    folder = open_folder(data, split, classes)
    return None if folder.split in SEEN.get(trained_on, (trained_on,)) else folder


def watch_best(folder: Folder | None, model: Callable[[], Codenet], best: Path, options: TrainOptions) -> Watch | None:
    """Validation of ``model()`` on ``folder``; the best is stored in ``best``."""
    if folder is None:
        return None

    def figure() -> float:
        return float(score(torch_network(model()), folder, folder_size)["ap50"])

    folder_size = model().config.size
    return Watch(
        score=figure, keep=lambda: checkpoint.save_float(best, model()), every=options.validation_every, patience=options.patience
    )


def train(
    run: Path, *, data: Path, workers: int = 1, device: str = "auto", progress: bool = True, tensorboard: bool = False, **options: Any
) -> dict[str, Any]:
    """Train a float network on ``data`` and write float.pt, best.pt, last.pt, train.json, train.csv and config.json to ``run``.

    ``options``: TrainOptions' fields, and CodenetConfig's to change the preset. An interrupted call continues after its last whole epoch
    when repeated. Returns what train.json holds (in every process).
    """
    run, chosen, where = Path(run), TrainOptions.gather(**options), pick_device(device)
    if chosen.precision == "float16" and where.type == "cpu":
        raise ValueError("precision float16 needs a GPU; on a CPU use bfloat16 or float32")
    with join(where) as group:
        return _train(run, Path(data), chosen, where, group, workers, progress, tensorboard)


def _train(
    run: Path, data: Path, options: TrainOptions, device: torch.device, group: Group, workers: int, progress: bool, tensorboard: bool
) -> dict[str, Any]:
    folder = open_folder(data, options.split)
    folder.check()
    config = make_config(options.preset, folder.classes, **options.network)
    settings = {"data": str(data), **dataclasses.asdict(options)}
    model = start_model(config, init=options.init, trunk=options.trunk, seed=options.seed)
    views = Views(folder, config.size, random=options.augmentation, flip=options.flip, seed=options.seed)
    batches = Batches(
        views, config, batch=options.batch, seed=options.seed, workers=workers, box_area=options.box_area, group=group
    )
    trainer = Trainer(model, options, steps=options.epochs * len(batches), device=device, group=group)
    key = json.dumps([settings, config.to_json(), group.size], sort_keys=True)
    trainer.resume(run / "train.ckpt", key)
    if group.first:
        write_json(run / "config.json", {"model": json.loads(config.to_json()), "train": settings})
    views.fill()
    seen = validation_folder(data, folder.split, options.evaluate_split, config.classes)
    watch = watch_best(seen, trainer.averaged, run / "best.pt", options)
    run_epochs(
        trainer, batches, options.epochs, run / "train.ckpt", key, title="train", progress=progress, watch=watch, group=group,
        tensorboard=tensorboard,
    )  # fmt: skip
    return _finish(run, data, options, trainer, settings) if group.first else {"settings": settings, "history": trainer.history}


def _finish(run: Path, data: Path, options: TrainOptions, trainer: Trainer, settings: dict[str, Any]) -> dict[str, Any]:
    """Store the last network, choose the one to keep, evaluate it."""
    checkpoint.save_float(run / "last.pt", trainer.averaged(), settings=settings)
    best = best_epoch(trainer.history)
    kept = "best" if options.keep == "best" and best is not None else "last"
    with whole_file(run / "float.pt") as temporary:
        shutil.copyfile(run / f"{kept}.pt", temporary)
    result: dict[str, Any] = {"settings": settings, "history": trainer.history, "kept": kept}
    result |= {"epoch": best if kept == "best" else trainer.epochs_done, **spent(trainer.history)}
    if options.evaluate_split is not None:
        result["evaluation"] = evaluate_float(checkpoint.load_float(run / "float.pt"), data, options.evaluate_split)
    write_json(run / "train.json", result)
    return copy.deepcopy(result)


__all__ = ["VAL", "TrainOptions", "Trainer", "evaluate_float", "make_config", "start_model", "train"]
