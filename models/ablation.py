"""What each restriction of the deformable operator costs: CoDeNet's table 1 (spec: float and W4A8, several seeds) for any data set.

Every variant (``models.variants``) is trained by one recipe. The rounded and the bilinear variants (F fraction bits) start from the
float network of the bounded square one of their seed. All are then quantized to W4A8 by one recipe; the offsets of the variants
without F stay float in it, since that is what F is about. The last network counts, and none is chosen by a figure. Each run leaves
its result in a file of its own; a repeated call goes on where it stopped.
"""
from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from models import checkpoint
from models.batches import Batches, Views
from models.data.digits import write_digits
from models.data.folder import Folder, open_folder
from models.data.voc import Sample
from models.detectors.codenet import Codenet, CodenetConfig
from models.epochs import cpu_seconds, run_epochs, write_json
from models.qat import activation_quantizers, calibrate, prepare
from models.quantize import QuantTrainer, calibration_batches
from models.score import score, torch_network
from models.train import Trainer, TrainOptions, make_config
from models.variants import VARIANTS, build, take_trunk
from sw.files import whole_file

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
#: The float networks' figures and the quantized ones'.
STAGES = ("float", "w4a8")
FIGURES = ("ap", "ap50", "ap75", "ap50_nms")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One recipe for all rows. images: of the training split, the first so many (0: all). epochs: of float training; tune: of variants
    that start from another; recover: of quantization-aware training. trunk: a float checkpoint, of which everything before the decoder
    is taken, or a ShuffleNetV2 state dict; None: random weights."""

    preset: str = "tiny"
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    images: int = 0
    epochs: int = 40
    tune: int = 4
    recover: int = 4
    batch: int = 16
    lr: float = 2e-3
    tune_lr: float = 5e-4
    recover_lr: float = 5e-4
    flip: bool = True
    augmentation: float = 0.8
    box_area: float = 0.0
    trunk: str | None = None
    split: str = "train"
    evaluate_split: str = "test"


SHIPPED = str(Path(__file__).parent / "checkpoints" / "tiny_digits.pt")
#: digits: the embedded set, for two seeds in well under two hours on two cores.
RECIPES = {
    "digits": Recipe(images=600, epochs=30, tune=3, recover=3, flip=False, augmentation=0.3, trunk=SHIPPED),
    "cells": Recipe(preset="small", network={"size": (256, 320), "laterals": True}, box_area=0.3),
    "steel": Recipe(preset="small", network={"size": (192, 192), "laterals": True}, epochs=14, tune=2, recover=2, box_area=0.3),
}


class VariantTrainer(Trainer):
    """A trainer of networks that their configuration alone does not describe."""

    def averaged(self) -> Codenet:
        model: Codenet = copy.deepcopy(self.model).cpu()
        for module in model.modules():
            module._forward_hooks.clear()  # deep supervision's
        model.load_state_dict({name: value.cpu() for name, value in self.average.state.items()})
        model.eval()
        return model


class Some:
    """The first ``count`` samples of a folder (0: all)."""

    def __init__(self, folder: Folder, count: int) -> None:
        self.folder, self.count = folder, min(count or len(folder), len(folder))
        self.split, self.classes, self.teaches_difficult = folder.split, folder.classes, folder.teaches_difficult
        self.check = folder.check

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return self.folder[index]


@dataclass(frozen=True)
class Ablation:
    """One table in the making: where it is written, from which data, by which recipe."""

    out: Path
    data: Path
    recipe: Recipe
    workers: int = 1
    progress: bool = True

    def folder(self, name: str, seed: int) -> Path:
        return self.out / name / f"seed{seed}"

    def key(self, name: str, seed: int) -> str:
        """Changes with anything that changes the result."""
        chain: list[Any] = [seed, dataclasses.asdict(self.recipe), str(self.data.resolve())]
        while name:
            chain.append([name, dataclasses.asdict(VARIANTS[name])])
            name = VARIANTS[name].start or ""
        return hashlib.sha256(json.dumps(chain, sort_keys=True).encode()).hexdigest()

    def result(self, name: str, seed: int) -> dict[str, Any] | None:
        """What a finished run found; None if it has not finished or was another one."""
        try:
            found: dict[str, Any] = json.loads((self.folder(name, seed) / "result.json").read_text())
        except (OSError, ValueError):
            return None
        return found if found.get("key") == self.key(name, seed) else None

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """Train, evaluate, quantize and evaluate one variant with one seed, unless that is done.

        ``cpu_seconds``: of the call that ended it, all cores together.
        """
        if (done := self.result(name, seed)) is not None:
            return done
        if (start := VARIANTS[name].start) is not None:
            self.run(start, seed)
        begun = cpu_seconds()
        folder, model = self.folder(name, seed), self._float(name, seed)
        result: dict[str, Any] = {"key": self.key(name, seed), "variant": name, "seed": seed, "float": self._score(model)}
        result["w4a8"] = self._score(self._quantized(name, seed, model))
        result["cpu_seconds"] = round(cpu_seconds() - begun, 1)
        write_json(folder / "result.json", result)
        return result

    def _config(self) -> CodenetConfig:
        classes = open_folder(self.data, self.recipe.split).classes
        return make_config(self.recipe.preset, classes, **self.recipe.network)

    def _batches(self, config: CodenetConfig, seed: int) -> Batches:
        r, folder = self.recipe, Some(open_folder(self.data, self.recipe.split, config.classes), self.recipe.images)
        views = Views(folder, config.size, random=r.augmentation, flip=r.flip, seed=seed)
        batches = Batches(views, config, batch=r.batch, seed=seed, workers=self.workers, box_area=r.box_area)
        views.fill()
        return batches

    def _float(self, name: str, seed: int) -> Codenet:
        """The trained float network; read back where it is there."""
        r, variant, folder, key = self.recipe, VARIANTS[name], self.folder(name, seed), self.key(name, seed)
        model = build(self._config(), variant, seed)
        if (found := _read(folder / "float.pt", key)) is not None:
            model.load_state_dict(found)
            return model.eval()
        if variant.start is not None:
            begun = _read(self.folder(variant.start, seed) / "float.pt", self.key(variant.start, seed))
            assert begun is not None, "the variant to start from is run before"
            model.load_state_dict(begun)
        elif r.trunk is not None:
            take_trunk(model, Path(r.trunk), seed)
        epochs, lr = (r.tune, r.tune_lr) if variant.start else (r.epochs, r.lr)
        options = TrainOptions(preset=r.preset, epochs=epochs, batch=r.batch, lr=lr, flip=r.flip, augmentation=r.augmentation, seed=seed)
        batches = self._batches(model.config, seed)
        trainer = VariantTrainer(model, options, steps=epochs * len(batches))
        trainer.resume(folder / "train.ckpt", key)
        run_epochs(trainer, batches, epochs, folder / "train.ckpt", key, title=f"{name}, seed {seed}", progress=self.progress)
        trained = trainer.averaged()
        checkpoint.save(folder / "float.pt", {"key": key, "state": trained.state_dict()})
        (folder / "train.ckpt").unlink()
        return trained

    def _quantized(self, name: str, seed: int, teacher: Codenet) -> Codenet:
        """The fake-quantized network after recovery, ready to be evaluated."""
        r, folder, key = self.recipe, self.folder(name, seed), self.key(name, seed)
        batches, model = self._batches(teacher.config, seed + 1), prepare(teacher)
        if VARIANTS[name].frac_bits is None:  # before calibration, which else would see whole pixels
            for path, quantizer in activation_quantizers(model).items():
                if path.endswith((".bound", ".offset")):
                    quantizer.bypass, quantizer.clamps = True, VARIANTS[name].bounded
        calibrate(model, calibration_batches(batches.views.folder, teacher.config.size))
        steps = max(1, r.recover * len(batches))
        trainer = QuantTrainer(model, teacher, steps=steps, lr=r.recover_lr, teaching=1.0)
        trainer.resume(folder / "quantize.ckpt", key)
        run_epochs(trainer, batches, r.recover, folder / "quantize.ckpt", key, title=f"{name}, seed {seed}, W4A8", progress=self.progress)
        return trainer.product()

    def _score(self, model: Codenet) -> dict[str, Any]:
        folder = open_folder(self.data, self.recipe.evaluate_split, model.config.classes)
        found = score(torch_network(model.eval()), folder, model.config.size, coco=True)
        return {"ap50": found["ap50"], "ap50_nms": found["ap50_nms"], "ap": found["coco"]["ap"], "ap75": found["coco"]["ap75"]}


def _read(path: Path, key: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    content = checkpoint.load(path)
    state: dict[str, Any] = content["state"]
    return state if content.get("key") == key else None


def ablation(
    out: Path, *, data: Path | None = None, preset: str = "digits", variants: list[str] | None = None, seeds: int = 2, workers: int = 1,
    network: dict[str, Any] | None = None, progress: bool = True, say: Callable[[str], None] = lambda _: None, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Run every variant with every seed and write ablation.json and ablation.md to ``out``, after each run anew.

    ``data``: None with the preset digits: the embedded set. ``network``: fields of CodenetConfig added to the preset's; ``changes``:
    fields of Recipe that replace the preset's.
    """
    if preset not in RECIPES:
        raise ValueError(f"preset must be one of {', '.join(RECIPES)}, not {preset!r}")
    names = list(variants or VARIANTS)
    if unknown := set(names) - set(VARIANTS):
        raise ValueError(f"variants must be among {', '.join(VARIANTS)}, not {', '.join(sorted(unknown))}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, not {seeds!r}")
    if data is None:
        if preset != "digits":
            raise ValueError(f"preset {preset} needs a data set")
        data = Path("data/digits")
        write_digits(data)
    recipe = dataclasses.replace(RECIPES[preset], network={**RECIPES[preset].network, **(network or {})}, **changes)
    made = Ablation(Path(out), Path(data), recipe, workers, progress)
    results: list[dict[str, Any]] = []
    for seed in range(seeds):  # seed by seed: a table of one seed comes first
        for name in names:
            done = made.result(name, seed) is not None
            results.append(made.run(name, seed))
            shown = ", ".join(f"{stage} AP50 {results[-1][stage]['ap50']:.4f}" for stage in STAGES)
            spent = f"{results[-1]['cpu_seconds']:.0f} CPU seconds{', found' if done else ''}"
            say(f"{len(results)}/{seeds * len(names)} {name}, seed {seed}: {shown} ({spent})")
            record = {"data": str(data), "recipe": dataclasses.asdict(made.recipe), "seeds": seeds, "rows": rows(results), "runs": results}
            write_json(made.out / "ablation.json", record)
            with whole_file(made.out / "ablation.md") as temporary:
                temporary.write_text(table(record))
    return record


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread (standard deviation over seeds; None of one seed) of every figure, by variant."""
    found = []
    for name in dict.fromkeys(r["variant"] for r in results):
        row: dict[str, Any] = {"variant": name, "seeds": [r["seed"] for r in results if r["variant"] == name]}
        for stage in STAGES:
            for figure in FIGURES:
                values = [r[stage][figure] or 0.0 for r in results if r["variant"] == name]
                row[f"{stage}_{figure}"] = mean(values)
                row[f"{stage}_{figure}_spread"] = stdev(values) if len(values) > 1 else None
        found.append(row)
    return found


def table(record: dict[str, Any]) -> str:
    """The rows as Markdown, in the columns of CoDeNet's table 1."""
    titles = [f"{stage} {figure}" for stage in ("float", "W4A8") for figure in ("AP", "AP50", "AP75", "AP50 NMS")]
    lines = [
        f"Ablation on {record['data']}, split {record['recipe']['evaluate_split']}, percent, mean ± standard deviation over seeds.",
        "Single pass; AP50 area metric, AP and AP75 as COCO has them, all without NMS unless labelled. W4A8: fake-quantized PyTorch.",
        "Rows with F offsets start from bounded-square's float network and train on; in the others offsets stay float in W4A8.",
        f"{sum(run['cpu_seconds'] for run in record['runs']) / 3600:.2f} hours of CPU time in all.",
        "",
        f"| operator | DW | bound | square | offsets | seeds | {' | '.join(titles)} |",
        "|---" * (6 + len(titles)) + "|",
    ]
    for row in record["rows"]:
        variant = VARIANTS[row["variant"]]
        marks = ["y", *("" if variant.static or not flag else "y" for flag in (variant.bounded, variant.square))]
        offsets = "" if variant.static else "float" if variant.frac_bits is None else f"F = {variant.frac_bits}"
        cells = [_cell(row[f"{stage}_{figure}"], row[f"{stage}_{figure}_spread"]) for stage in STAGES for figure in FIGURES]
        lines.append(f"| {' | '.join([row['variant'], *marks, offsets, str(len(row['seeds'])), *cells])} |")
    return "\n".join(lines) + "\n"


def _cell(value: float, spread: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
