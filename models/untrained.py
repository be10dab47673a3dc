"""Networks without training: a preset with random weights (or a trunk's), calibrated, its offsets exercised, for benches of the
hardware."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.data.scenes import draw_scene
from models.detectors.codenet import PRESETS, Codenet, images_to_input
from models.detectors.trunk import load_trunk
from models.exercise import exercise_offsets
from models.export import export_qonnx
from models.freeze import freeze
from models.qat import calibrate, prepare

#: Scenes that the ranges are calibrated on.
CALIBRATION = 2


def export_untrained(
    preset: str, folder: Path, frames: int, *, network: Mapping[str, Any] | None = None, trunk: Path | None = None, frac_bits: int = 3,
    seed: int = 0,
) -> None:  # fmt: skip
    """Write model.onnx and images.npy (``frames``, H, W, 3) of the embedded scenes into ``folder``; ``network``: other values of
    fields of the preset's CodenetConfig.

    Every deformable layer sees at least 8 distinct offsets on the first image, both ends of the range included (models/exercise.py), so
    a comparison on it proves the gather. The same arguments give the same files. ValueError if there is no such preset or value.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    torch.manual_seed(seed)
    config = dataclasses.replace(PRESETS[preset], frac_bits=frac_bits, **(network or {}))
    height, width = config.size
    model = Codenet(config).eval()
    if trunk is not None:
        load_trunk(model, trunk)

    def scenes(split: str, count: int) -> np.ndarray:
        return np.stack([draw_scene(False, seed, split, k, max(height, width)).image[:height, :width] for k in range(count)])

    model = prepare(model)
    calibrate(model, [images_to_input(scenes("train", CALIBRATION))])
    exercised = exercise_offsets(freeze(model), scenes("test", 1), seed=seed)
    export_qonnx(exercised, folder / "model.onnx")
    np.save(folder / "images.npy", scenes("test", frames))
