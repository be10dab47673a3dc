"""The whole chain in one go: data, train, quantize, compile, simulate, verify, detect, report."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sw import steps

#: The small float network that the project ships, trained by `make checkpoint`.
CHECKPOINT = Path(__file__).resolve().parents[1] / "models" / "checkpoints" / "tiny_digits.pt"
IMAGES = 10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train and what must come out. ``least_ap50``: of the quantized network on the test split."""

    data: Path
    least_ap50: float
    most_loss: float
    train: dict[str, Any] = field(default_factory=dict)
    quantize: dict[str, Any] = field(default_factory=dict)


def plan(data: Path | None, trunk: Path | None, size: tuple[int, int] | None) -> Plan:
    """The embedded digits from the shipped checkpoint, or any VOC folder from a ShuffleNetV2 trunk at width 0.5."""
    if data is None:
        train: dict[str, Any] = {"preset": "tiny", "init": CHECKPOINT, "epochs": 2, "batch": 16, "lr": 2e-4, "flip": False}
        train |= {"augmentation": 0.3}
        quantize = {"epochs": 3, "lr": 5e-4, "flip": False, "augmentation": 0.3}
        return Plan(data=Path("data/digits"), least_ap50=0.70, most_loss=0.02, train=train, quantize=quantize)
    size = size or steps.upward("fitting_size")(data)
    train = {"preset": "small", "width": 0.5, "size": size, "trunk": trunk, "epochs": 40, "batch": 8, "lr": 2e-3, "augmentation": 0.6}
    train["split"] = steps.upward("find_split")(data, "trainval")
    quantize = {"epochs": 8, "batch": 8, "lr": 5e-4, "augmentation": 0.6, "split": train["split"]}
    return Plan(data=data, least_ap50=0.60, most_loss=0.05, train=train, quantize=quantize)


def demo(
    run: Path,
    *,
    data: Path | None = None,
    trunk: Path | None = None,
    size: tuple[int, int] | None = None,
    images: int = IMAGES,
    say: Callable[[str], None] = lambda _: None,
    bars: steps.Bars = steps.no_bars,
) -> dict[str, Any]:
    """Run every step into ``run`` and return the summary, with ``passed`` and what ``failed``. Repeat it to continue after a stop."""
    chosen, started = plan(data, trunk, size), time.monotonic()

    def stage(text: str) -> None:
        say(f"[{(time.monotonic() - started) / 60:4.1f} min] {text}")

    if data is None:
        stage("data: digits on photographs, drawn from scikit-learn's own")
        with bars("draw scenes") as progress:
            steps.data(chosen.data, progress=progress)
    start = chosen.train.get("init") or chosen.train.get("trunk") or "random weights"
    stage(f"train: from {start}")
    steps.train(run, data=chosen.data, **chosen.train)
    stage("quantize: 4-bit weights, 8-bit activations, with training")
    steps.quantize(run, **chosen.quantize)
    for backend in ("torch-float", "torch-quantized"):
        stage(f"evaluate {backend}")
        steps.evaluate(run, backend=backend, bars=bars)
    stage("compile: QONNX to Verilog")
    steps.compile(run, step=say)
    stage(f"simulate: {images} test images, every cycle")
    steps.simulate(run, images=images, bars=bars)
    for backend in ("golden", "rtl"):
        stage(f"evaluate {backend}")
        steps.evaluate(run, backend=backend, bars=bars)
    stage(f"verify: every tensor of {images} images, PyTorch = golden = Verilog")
    steps.verify(run, images=images, step=say, bars=bars)
    stage("detect: boxes from the Verilog's own output")
    steps.detect(run)
    stage("report")
    summary: dict[str, Any] = steps.report(run)["summary"]
    failed = check(chosen, summary)
    stage("done")
    minutes = (time.monotonic() - started) / 60
    return summary | {"report": str(run / "report.html"), "minutes": round(minutes, 1), "failed": failed, "passed": not failed}


def check(chosen: Plan, summary: dict[str, Any]) -> list[str]:
    """What the run falls short of."""
    failed = []
    ap50, loss = summary["ap50"]["torch-quantized"], summary["quantization_loss"]
    if ap50 < chosen.least_ap50:
        failed.append(f"AP50 of the quantized network is {ap50:.3f}, wanted at least {chosen.least_ap50:.2f}")
    if loss > chosen.most_loss:
        failed.append(f"quantization loses {loss:.3f} AP50, wanted at most {chosen.most_loss:.2f}")
    if summary["mismatches"]:
        failed.append(f"{summary['mismatches']} values differ between PyTorch, golden and Verilog")
    if summary["ap50"]["golden"] != ap50:
        failed.append(f"AP50 of golden is {summary['ap50']['golden']}, of PyTorch {ap50}: they must be equal")
    return failed
