"""The loop over epochs: losses noted, validation, early stopping, files from which an interrupted run goes on."""
from __future__ import annotations

import csv
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.batches import Batch, Batches
from models.distributed import ALONE, Group
from sw.files import whole_file

logger = logging.getLogger(__name__)

#: Name of the validation figure in the history: AP50 without NMS, single pass, of the average of the weights.
VAL = "val_ap50"
History = list[dict[str, float]]


class Resumable(Protocol):
    """What an epoch loop needs of a trainer."""

    step: int
    epochs_done: int
    history: History

    def train_on(self, batch: Batch) -> dict[str, float]:
        """One step; its losses, and the learning rate as ``lr``."""

    def save(self, path: Path, key: str) -> None:
        """Write all that ``resume`` needs."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Validation while training: ``score`` gives the figure, ``keep`` stores the network as the best one so far.

    every: epochs between two validations (the last epoch always has one). patience: stop after so many validations without a better
    figure (0: never).
    """

    score: Callable[[], float]
    keep: Callable[[], None]
    every: int = 1
    patience: int = 0

    def due(self, done: int, epochs: int) -> bool:
        return done % self.every == 0 or done == epochs

    def tired(self, history: History) -> bool:
        figures = [note[VAL] for note in history if VAL in note]
        return 0 < self.patience <= len(figures) - 1 - int(np.argmax(figures)) if figures else False


def best_epoch(history: History) -> int | None:
    """The last epoch (counted from 1) with the greatest validation figure; None if there is none."""
    found = [(note[VAL], epoch) for epoch, note in enumerate(history, start=1) if VAL in note]
    return max(found)[1] if found else None


def cpu_seconds() -> float:
    """CPU time of this process and of the workers that have ended, which another user of the machine hardly changes."""
    return sum(os.times()[:4])


def spent(history: History) -> dict[str, float]:
    """``seconds`` that passed while training and ``cpu_seconds`` of all cores together, validation included, over all epochs."""
    return {name: round(sum(note.get(name, 0.0) for note in history), 1) for name in ("seconds", "cpu_seconds")}


def progress_bar(enabled: bool) -> Progress:
    """A bar on standard error with the time left; silent unless ``enabled``."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), disable=not enabled)


def run_epochs(
    trainer: Resumable,
    batches: Batches,
    epochs: int,
    path: Path,
    key: str,
    *,
    title: str,
    progress: bool = True,
    watch: Watch | None = None,
    group: Group = ALONE,
    tensorboard: bool = False,
) -> None:
    """Run the epochs that are left, saving to ``path`` after each and logging to the CSV file beside it (and to TensorBoard)."""
    board = _board(path.parent / "tensorboard") if tensorboard and group.first else None
    with progress_bar(progress and group.first) as bar:
        task = bar.add_task(title, total=epochs * len(batches), completed=trainer.step, note="")
        for epoch in range(trainer.epochs_done, epochs):
            if watch is not None and watch.tired(trainer.history):
                logger.info("no better figure in %d validations: stopped after %d epochs", watch.patience, epoch)
                break
            started, used, losses = time.monotonic(), cpu_seconds(), []
            for each in batches.epoch(epoch):
                losses.append(trainer.train_on(each))
                bar.update(task, advance=1, note=f"loss {losses[-1]['loss']:.3f}")
            note = group.mean({name: float(np.mean([loss[name] for loss in losses])) for name in losses[0]})
            note["seconds"] = round(time.monotonic() - started, 1)
            trainer.epochs_done = epoch + 1
            if watch is not None and watch.due(epoch + 1, epochs):
                _validate(trainer.history, note, watch, group)
            note["cpu_seconds"] = round(cpu_seconds() - used, 1)
            trainer.history.append(note)
            logger.info("epoch %d: %s", epoch + 1, ", ".join(f"{name} {value:.4g}" for name, value in note.items()))
            if group.first:
                trainer.save(path, key)
                write_csv(path.with_suffix(".csv"), trainer.history)
            if board is not None:
                for name, value in note.items():
                    board.add_scalar(name, value, epoch + 1)
    if board is not None:
        board.close()


def _validate(history: History, note: dict[str, float], watch: Watch, group: Group) -> None:
    """Score in the first process, tell the others, keep the network if it is the best so far."""
    note[VAL] = group.share(watch.score() if group.first else 0.0)
    if group.first and note[VAL] >= max((old[VAL] for old in history if VAL in old), default=-1.0):
        watch.keep()


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("logging to TensorBoard needs its package: pip install 'warploom[tensorboard]'") from error
    return SummaryWriter(str(folder))


def write_csv(path: Path, history: History) -> None:
    """One line an epoch; whole or not at all."""
    columns = ["epoch", *dict.fromkeys(name for note in history for name in note)]
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({"epoch": epoch, **note} for epoch, note in enumerate(history, start=1))


def write_json(path: Path, content: Any) -> None:
    """JSON to ``path``, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
