"""``warploom ablation``: what each restriction of the deformable operator costs, as a table."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sw import steps
from sw.cli_train import Json, Number, Text, Whole, given, parse_size


def add_ablation(verb: Callable[..., Callable[[Callable[..., None]], object]], screen: Console, say: Callable[[str], None]) -> None:
    """Register the verb with the command line."""

    @verb()
    def ablation(
        out: Annotated[Path, typer.Option(help="Folder of the runs and of the table; repeat the command to go on after a stop.")] = Path(
            "runs/ablation"
        ),
        data: Annotated[Path | None, typer.Option("--data", help="A data set (default: the embedded digits).")] = None,
        preset: Annotated[str, typer.Option(help="Recipe: digits (2 hours on two cores with 2 seeds), cells, steel.")] = "digits",
        variant: Annotated[list[str] | None, typer.Option(help="Only this row; repeatable.")] = None,
        seeds: Annotated[int, typer.Option(min=1, help="How many seeds a row.")] = 2,
        epochs: Annotated[Whole, typer.Option(min=1, help="Epochs of float training.")] = None,
        tune: Annotated[Whole, typer.Option(min=1, help="Float epochs of rows that start from bounded-square.")] = None,
        recover: Annotated[Whole, typer.Option(min=0, help="Epochs of quantization-aware training (0: calibrate only).")] = None,
        images: Annotated[Whole, typer.Option(min=0, help="Only the first so many training images (0: all).")] = None,
        batch: Annotated[Whole, typer.Option(min=1, help="Images a step.")] = None,
        lr: Annotated[Number, typer.Option(help="Highest learning rate of float training.")] = None,
        width: Annotated[Number, typer.Option(help="Channel width: 0.25, 0.5, 1 or 2.")] = None,
        size: Annotated[Text, typer.Option(help="Input HEIGHTxWIDTH, multiples of 32.")] = None,
        trunk: Annotated[Text, typer.Option(help="Start from the trunk in this state dict or float checkpoint; none: random.")] = None,
        split: Annotated[Text, typer.Option(help="Which list of ImageSets/Main to train on.")] = None,
        evaluate: Annotated[Text, typer.Option("--evaluate", help="Which list to evaluate on (default: test).")] = None,
        workers: Annotated[int, typer.Option(min=0, help="Processes that prepare images.")] = 1,
        as_json: Json = False,
    ) -> None:
        """Train, quantize and evaluate every deformable variant under one recipe, over several seeds: CoDeNet's table 1 for your data."""
        changes = given(
            epochs=epochs, tune=tune, recover=recover, images=images, batch=batch, lr=lr, trunk=trunk, split=split, evaluate_split=evaluate
        )
        if changes.get("trunk") == "none":
            changes["trunk"] = None
        network = given(width=width, size=parse_size(size))
        record = steps.ablation(
            out, data=data, preset=preset, variants=variant, seeds=seeds, workers=workers, network=network, say=say, **changes
        )
        if as_json:
            print(json.dumps(record))
            return
        screen.print((out / "ablation.md").read_text(), markup=False, soft_wrap=True)
