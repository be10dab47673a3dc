"""Training's options: schedules, precision, early stopping, best and last, logs, several processes."""
from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models import checkpoint
from models.batches import Order
from models.distributed import ALONE, Group, pick_device
from models.epochs import VAL, Watch, best_epoch, run_epochs
from models.schedules import Average, learning_rate, step_lr
from models.train import TrainOptions, train, validation_folder

ROOT = Path(__file__).resolve().parents[2]
BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
XML = "<annotation><object><name>{}</name>" + BOX + "</object></annotation>"
SETTINGS: dict[str, Any] = {
    "width": 0.25, "size": (32, 32), "decoder": (16, 8, 8), "head_channels": 8, "batch": 4, "workers": 0, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of 32 x 32 with a square each, half of them for validation."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for index in range(12):
        x, y = (int(v) for v in rng.integers(0, 16, 2))
        image = np.full((32, 32, 3), 60, np.uint8)
        image[y : y + 16, x : x + 16] = (220, 30, 30) if index % 2 else (30, 220, 30)
        Image.fromarray(image).save(root / "JPEGImages" / f"{index}.png")
        (root / "Annotations" / f"{index}.xml").write_text(XML.format("gr"[index % 2], x + 1, y + 1, x + 16, y + 16))
    (root / "ImageSets/Main/train.txt").write_text("\n".join(map(str, range(8))))
    (root / "ImageSets/Main/val.txt").write_text("\n".join(map(str, range(8, 12))))
    return root


def test_step_schedule_drops_where_codenets_does() -> None:
    rates = [step_lr(step, 90, 1.0, warm_up=0.0) for step in range(90)]
    assert rates[49] == 1.0 and rates[50] == pytest.approx(0.1) and rates[69] == pytest.approx(0.1) and rates[70] == pytest.approx(0.01)
    assert learning_rate("constant", 50, 100, 3.0) == 3.0 and learning_rate("step", 99, 100, 1.0) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="schedule must be one of"):
        learning_rate("linear", 0, 1, 1.0)


def test_average_follows_and_can_be_off() -> None:
    layer = nn.Linear(1, 1, bias=False)
    slow, off = Average(layer, 0.9), Average(layer, 0.0)
    for value in range(200):
        nn.init.constant_(layer.weight, float(value))
        slow.update(layer)
        off.update(layer)
    assert off.state["weight"].item() == 199.0
    assert slow.state["weight"].item() == pytest.approx(199 - 9, abs=0.1)  # lags by decay / (1 - decay) steps


class Counted:
    """A trainer that only counts."""

    def __init__(self) -> None:
        self.step, self.epochs_done, self.history = 0, 0, list[dict[str, float]]()

    def train_on(self, batch: Any) -> dict[str, float]:
        self.step += 1
        return {"loss": 1.0 / self.step, "lr": 1.0}

    def save(self, path: Path, key: str) -> None:
        """Nothing to keep."""


class Three:
    """Batches: three an epoch."""

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int) -> list[int]:
        return [0, 1, 2]


def run_with(figures: list[float], tmp_path: Path, **settings: Any) -> tuple[Counted, list[int]]:
    trainer, kept, left = Counted(), list[int](), iter(figures)
    watch = Watch(score=lambda: next(left), keep=lambda: kept.append(trainer.epochs_done), **settings)
    run_epochs(trainer, Three(), len(figures), tmp_path / "x.ckpt", "", title="x", progress=False, watch=watch)  # type: ignore[arg-type]
    return trainer, kept


def test_early_stopping_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    figures = [0.1, 0.3, 0.2, 0.25, 0.2, 0.9, 0.9]
    trainer, kept = run_with(figures, tmp_path, patience=3)
    assert trainer.epochs_done == 5 and kept == [1, 2] and best_epoch(trainer.history) == 2
    trainer, kept = run_with(figures, tmp_path)
    assert trainer.epochs_done == 7 and kept == [1, 2, 6, 7] and best_epoch(trainer.history) == 7
    assert best_epoch([{"loss": 1.0}]) is None


def test_validation_every_few_epochs_and_always_at_the_end(tmp_path: Path) -> None:
    trainer, _ = run_with([0.1, 0.2, 0.3, 0.4, 0.5], tmp_path, every=2)
    assert [k for k, note in enumerate(trainer.history, start=1) if VAL in note] == [2, 4, 5]


def test_csv_log_has_one_line_an_epoch(tmp_path: Path) -> None:
    run_with([0.1, 0.2], tmp_path)
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"] and float(rows[1][VAL]) == 0.2
    assert float(rows[1]["loss"]) == pytest.approx(np.mean([1 / 4, 1 / 5, 1 / 6]))


def test_best_and_last_are_kept_apart(data: Path, tmp_path: Path) -> None:
    result = train(tmp_path, data=data, epochs=3, evaluate_every=1, precision="bfloat16", schedule="step", **SETTINGS)
    figures = [note[VAL] for note in result["history"]]
    assert result["kept"] == "best" and figures[result["epoch"] - 1] == max(figures)
    best, last, chosen = (checkpoint.load_float(tmp_path / f"{name}.pt").state_dict() for name in ("best", "last", "float"))
    assert all(torch.equal(best[name], chosen[name]) for name in best)
    assert all(value.dtype != torch.bfloat16 for value in last.values()), "mixed precision keeps float32 weights"
    assert result["evaluation"]["ap50"] == pytest.approx(max(figures)) and "ap50_nms" in result["evaluation"]
    again = train(tmp_path, data=data, epochs=3, evaluate_every=1, precision="bfloat16", schedule="step", keep="last", **SETTINGS)
    assert again["kept"] == "last" and again["epoch"] == 3


def test_no_test_split_ever_chooses_a_network(data: Path, tmp_path: Path) -> None:
    assert validation_folder(data, "train", "val", ("g", "r")) is not None
    assert validation_folder(data, "trainval", "val", ("g", "r")) is None, "training sees it"
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/test.txt").write_text("0")
    assert validation_folder(tmp_path, "train", "val", ("g", "r")) is None


def test_a_stand_in_for_the_training_list_is_not_validated_on(data: Path, tmp_path: Path) -> None:
    """Where trainval stands in for train, val is part of what is trained on."""
    shutil.copytree(data, tmp_path / "data")
    lists = tmp_path / "data/ImageSets/Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    result = train(tmp_path / "run", data=tmp_path / "data", epochs=1, **SETTINGS)
    assert result["kept"] == "last" and VAL not in result["history"][0] and result["evaluation"]["split"] == "val"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "schedule must be one of cosine, step, constant"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"epochs": 0}, "epochs must be more than 0"),
        ({"patience": -1}, "patience must not be negative"),
        ({"speed": 3}, "training has no option speed"),
        ({"network": {"depth": 3}}, "a network has no depth"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainOptions.gather(**options)


def test_float16_and_gpus_need_a_gpu(data: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        train(tmp_path, data=data, precision="float16", **SETTINGS)
    with pytest.raises(ValueError, match="sees no GPU"):
        pick_device("cuda")


def test_processes_share_every_batch() -> None:
    whole = list(Order(10, 4, seed=0))
    parts = [list(Order(10, 4, seed=0, group=Group(rank, 2))) for rank in (0, 1)]
    for batch, one, two in zip(whole, *parts, strict=True):
        assert sorted(one + two) == sorted(batch) and len(one) == len(two) == 2
    with pytest.raises(ValueError, match="at least one image for each of 4 processes"):
        Order(10, 3, seed=0, group=Group(0, 4))
    assert ALONE.share(3.0) == 3.0 and ALONE.mean({"loss": 1.0}) == {"loss": 1.0}


SCRIPT = """
import json, sys
from pathlib import Path
import torch
from torch import distributed
from models import train as training

original = training.run_epochs

def checked(trainer, *args, **kwargs):
    original(trainer, *args, **kwargs)
    total = torch.stack([p.detach().double().sum() for p in trainer.model.parameters()]).sum()
    others = [torch.zeros_like(total) for _ in range(2)]
    distributed.all_gather(others, total)
    assert torch.equal(others[0], others[1]), "the processes' weights differ"

training.run_epochs = checked
settings = json.loads(sys.argv[3])
result = training.train(Path(sys.argv[2]), data=Path(sys.argv[1]), **settings)
print(json.dumps([note["loss"] for note in result["history"]]))
"""


def test_two_processes_train_one_network(data: Path, tmp_path: Path) -> None:
    """torchrun, two CPU processes over gloo: equal weights and histories in both, files written once."""
    (tmp_path / "script.py").write_text(SCRIPT)
    settings = SETTINGS | {"epochs": 2, "evaluate_every": 1, "lr": 4e-3, "device": "cpu"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def launch() -> list[float]:
        command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
        arguments = [str(tmp_path / "script.py"), str(data), str(tmp_path / "run"), json.dumps(settings)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        one, two = (json.loads(line) for line in done.stdout.strip().split("\n")[-2:])
        assert one == two, "both processes know the same history"
        return list(one)

    losses = launch()
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert {"float.pt", "best.pt", "last.pt", "train.csv", "train.json"} <= {p.name for p in (tmp_path / "run").iterdir()}


def test_tensorboard_logs_or_says_what_is_missing(data: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ValueError, match="TensorBoard needs its package"):
            train(tmp_path, data=data, epochs=1, tensorboard=True, evaluate_split=None, **SETTINGS)
    else:
        train(tmp_path, data=data, epochs=1, tensorboard=True, evaluate_split=None, **SETTINGS)
        assert any((tmp_path / "tensorboard").iterdir())
