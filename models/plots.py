"""Plots of figures that other parts compute."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Resources of a device as records name them, and as readers know them.
RESOURCES = {"lut": "LUT", "ff": "flip-flops", "dsp": "multipliers", "bram36": "BRAM36"}


def plot_pareto(points: Sequence[dict[str, Any]], budget: dict[str, float], title: str, path: Path) -> None:
    """Shares of a device's resources against frames a second, one line a resource, the device's limit dashed; a PNG file at ``path``.

    ``points``: records of sw.folding.pareto.pareto; ``budget``: what the device has of each resource.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for key, label in RESOURCES.items():
        axes.plot([p["fps"] for p in points], [100 * p[key] / budget[key] for p in points], marker="o", label=label)
    axes.axhline(100, color="black", linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="frames a second", ylabel="% of the device", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
