"""``warploom train``, ``quantize`` and ``sensitivity``. An option that is not given keeps the recipe's value, or else models' default."""
from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from sw import steps
from sw.errors import WarploomError

Run = Annotated[Path, typer.Option("--run", help="The run folder: every step reads from it and writes to it.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output; progress goes to standard error.")]
#: Bit widths where nothing else is said (models.qat.Bits).
WEIGHTS, ACTIVATIONS = {"*": 4, "conv1.0": 8}, {"*": 8}
Text: TypeAlias = str | None
Whole: TypeAlias = int | None
Number: TypeAlias = float | None
Switch: TypeAlias = bool | None
Recipe = Annotated[Text, typer.Option(help="Start from the options of a recipe: cells, cells-q, steel (models/recipes.py).")]
Epochs = Annotated[Whole, typer.Option(help="Passes over the training split.")]
Batch = Annotated[Whole, typer.Option(min=1, help="Images a step (of all processes together).")]
Rate = Annotated[Number, typer.Option(help="Highest learning rate.")]
Flip = Annotated[Switch, typer.Option("--flip/--no-flip", help="Mirror half of the images (not for digits).")]
Augmentation = Annotated[Number, typer.Option(min=0.0, max=1.0, help="Share of random crops and colours; the rest is as it is.")]
BoxArea = Annotated[Number, typer.Option(min=0.0, max=1.0, help="Teach boxes in a Gaussian of this part of their sides (0: at a point).")]
Split = Annotated[Text, typer.Option(help="Which list of ImageSets/Main to train on.")]
Validate = Annotated[Text, typer.Option("--validate", help="Which list chooses the best network and is evaluated at the end.")]
Every = Annotated[Whole, typer.Option("--validate-every", help="Epochs between validations (default: some twenty in all).")]
Keep = Annotated[Text, typer.Option(help="Which network to keep: best (on the validation list) or last.")]
Patience = Annotated[Whole, typer.Option(help="Stop after so many validations without a better one (0: never).")]
Seed = Annotated[Whole, typer.Option(help="Seed of weights, order and augmentation.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that prepare images.")]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "128" or "192x256" (height x width)."""
    if text is None:
        return None
    height, _, width = text.partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise WarploomError(f"--size must be like 128 or 192x256 (height x width), not {text!r}") from None


def parse_bits(entries: list[str] | None, name: str, start: dict[str, int]) -> dict[str, int] | None:
    """Options like ``4`` or ``decoder.*=8`` to a table of patterns that continues ``start``."""
    if not entries:
        return None
    table = dict(start)
    for entry in entries:
        pattern, _, bits = entry.rpartition("=")
        if pattern:
            table.pop(pattern, None)  # the last one decides
        try:
            table[pattern or "*"] = int(bits)
        except ValueError:
            raise WarploomError(f"--{name} must be like 4 or 'decoder.*=8', not {entry!r}") from None
    return table


def parse_fields(entries: list[str] | None) -> dict[str, Any] | None:
    """Options like ``kernel=9`` or ``deform_stages=[3,4]`` (JSON values; a bare word is text)."""
    if not entries:
        return None
    fields = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            raise WarploomError(f"--network must be like kernel=9 or gather=static, not {entry!r}")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def add_training(
    verb: Callable[..., Callable[[Callable[..., None]], object]], show: Callable[..., None], bars: Callable[[str], Any]
) -> None:
    """Register the three verbs with the command line."""

    @verb()
    def train(
        data: Annotated[Path, typer.Option("--data", help="A data set in Pascal VOC or COCO layout.")],
        run: Run = Path("runs/default"),
        recipe: Recipe = None,
        preset: Annotated[Text, typer.Option(help="Network, as `warploom models` lists them (default: tiny).")] = None,
        width: Annotated[Number, typer.Option(help="Channel width: 0.25, 0.5, 1 or 2.")] = None,
        size: Annotated[Text, typer.Option(help="Input HEIGHTxWIDTH, multiples of 32.")] = None,
        laterals: Annotated[Switch, typer.Option("--laterals/--no-laterals", help="Skip connections into the decoder.")] = None,
        network: Annotated[list[str] | None, typer.Option(help="Any field of CodenetConfig, like gather=static; repeatable.")] = None,
        epochs: Epochs = None,
        batch: Batch = None,
        lr: Rate = None,
        schedule: Annotated[Text, typer.Option(help="cosine, step (CoDeNet's) or constant.")] = None,
        weight_decay: Annotated[Number, typer.Option(min=0.0, help="Of weights, not of batch norms and biases.")] = None,
        clip: Annotated[Number, typer.Option(help="Greatest norm of the gradient.")] = None,
        ema: Annotated[Number, typer.Option(help="How slowly the average of the weights forgets (0: no average).")] = None,
        precision: Annotated[Text, typer.Option(help="float32, bfloat16 or (GPU) float16: mixed precision.")] = None,
        init: Annotated[Path | None, typer.Option(help="A float checkpoint to start from.")] = None,
        trunk: Annotated[Path | None, typer.Option(help="A ShuffleNetV2 state dict (torchvision's names) to start from.")] = None,
        flip: Flip = None,
        augmentation: Augmentation = None,
        deep: Annotated[Number, typer.Option(min=0.0, help="Weight of class maps supervised inside the network (0: none).")] = None,
        box_area: BoxArea = None,
        split: Split = None,
        evaluate_split: Validate = None,
        evaluate_every: Every = None,
        keep: Keep = None,
        patience: Patience = None,
        seed: Seed = None,
        workers: Workers = 1,
        device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
        tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log to RUN/tensorboard too.")] = False,
        as_json: Json = False,
    ) -> None:
        """Train a float detector. Repeat the command to continue after an interruption; torchrun -m sw.cli for several processes."""
        options = given(
            preset=preset, width=width, size=parse_size(size), laterals=laterals, epochs=epochs, batch=batch, lr=lr, schedule=schedule,
            weight_decay=weight_decay, clip=clip, ema=ema, precision=precision, init=init, trunk=trunk, flip=flip, deep=deep,
            augmentation=augmentation, box_area=box_area, split=split, evaluate_split=evaluate_split, evaluate_every=evaluate_every,
            keep=keep, patience=patience, seed=seed, network=parse_fields(network),
        )  # fmt: skip
        record = steps.train(run, data=data, recipe=recipe, workers=workers, device=device, tensorboard=tensorboard, **options)
        if os.environ.get("RANK", "0") != "0":
            return  # of several processes the first one speaks
        keys = "kept", "epoch", "split", "ap50", "ap50_nms", "ap50_11", "metric", "cpu_seconds"
        show({**record, **record.get("evaluation", {})}, as_json, *keys)

    @verb()
    def quantize(
        run: Run = Path("runs/default"),
        data: Annotated[Path | None, typer.Option("--data", help="A data set (default: the one the run was trained on).")] = None,
        recipe: Recipe = None,
        epochs: Annotated[Whole, typer.Option(min=0, help="Passes of quantization-aware training (0: calibrate only).")] = None,
        batch: Batch = None,
        lr: Rate = None,
        weights: Annotated[list[str] | None, typer.Option(help="Bits of weights, 4 or PATTERN=8 by module path; repeatable.")] = None,
        activations: Annotated[list[str] | None, typer.Option(help="Bits of activations, likewise.")] = None,
        imitation: Annotated[Number, typer.Option(min=0.0, help="Weight of what the float network computes on the way to them.")] = None,
        ema: Annotated[Number, typer.Option(help="How slowly the average of the weights forgets (0: no average).")] = None,
        settle: Annotated[Number, typer.Option(help="How often a weight may swing back before it is held (0: for ever).")] = None,
        norms: Annotated[Whole, typer.Option(min=0, help="Images to estimate batch norm from anew (0: as trained).")] = None,
        free_ranges: Annotated[Number, typer.Option(help="Share of training before activation scales snap to powers of two.")] = None,
        data_loss: Annotated[Number, typer.Option(min=0.0, help="Weight of the data's loss.")] = None,
        teaching: Annotated[Number, typer.Option(min=0.0, help="Weight of the float network's maps beside the data's loss.")] = None,
        flip: Flip = None,
        augmentation: Augmentation = None,
        box_area: BoxArea = None,
        split: Split = None,
        evaluate_split: Validate = None,
        evaluate_every: Every = None,
        keep: Keep = None,
        patience: Patience = None,
        seed: Seed = None,
        workers: Workers = 1,
        as_json: Json = False,
    ) -> None:
        """Quantize to 4-bit weights and 8-bit activations (or others), with training, and export QONNX."""
        options = given(
            epochs=epochs, batch=batch, lr=lr, norms=norms, free_ranges=free_ranges, data_loss=data_loss, teaching=teaching,
            imitation=imitation, ema=ema, settle=settle, flip=flip, augmentation=augmentation, box_area=box_area,
            weights=parse_bits(weights, "weights", WEIGHTS), activations=parse_bits(activations, "activations", ACTIVATIONS),
            split=split, evaluate_split=evaluate_split, evaluate_every=evaluate_every, keep=keep, patience=patience, seed=seed,
        )  # fmt: skip
        record = steps.quantize(run, data=data, recipe=recipe, workers=workers, **options)
        figures = [f"{name}{suffix}" for suffix in ("", "_nms") for name in ("float_ap50", "quantized_ap50", "loss")]
        show({**record, **record.get("evaluation", {})}, as_json, "epoch", "split", *figures, "cpu_seconds")

    @verb()
    def sensitivity(
        run: Run = Path("runs/default"),
        data: Annotated[Path | None, typer.Option("--data", help="A data set (default: the one the run was trained on).")] = None,
        split: Annotated[str, typer.Option(help="Which list to measure on.")] = "val",
        images: Annotated[Whole, typer.Option(min=1, help="Only the first so many images.")] = None,
        weights: Annotated[list[str] | None, typer.Option(help="Bits of weights, 4 or PATTERN=8 by module path; repeatable.")] = None,
        activations: Annotated[list[str] | None, typer.Option(help="Bits of activations, likewise.")] = None,
        worst: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 20,
        as_json: Json = False,
    ) -> None:
        """AP50 lost by each layer's quantization alone, worst first; calibrated, not trained."""
        bits = given(weights=parse_bits(weights, "weights", WEIGHTS), activations=parse_bits(activations, "activations", ACTIVATIONS))
        with bars("sensitivity") as progress:
            record = steps.sensitivity(run, data=data, split=split, images=images, progress=progress, **bits)
        if not as_json:
            for row in record["layers"][:worst]:
                figures = f"{row['loss']:+8.4f} {row['heat']:8.4f}"
                typer.echo(f"{row['kind']:12} {row['path']:28} {row['bits']:2} bits  AP50 {row['ap50']:.4f} ({figures})")
        show(record, as_json, "split", "images", "float_ap50", "all")
