"""Recipes: options of training and quantization that belong together, by name. ``warploom train --recipe NAME`` starts from one.

Each was chosen on the validation split of the data set it names; test splits were looked at for the figures alone.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options for TrainOptions (with CodenetConfig's) and QuantizeOptions; any of them can be overridden by name."""

    about: str
    train: dict[str, Any]
    quantize: dict[str, Any]


_CELLS: dict[str, Any] = {"preset": "small", "size": (256, 320), "epochs": 40, "batch": 16, "augmentation": 0.8, "box_area": 0.3}
_STEEL: dict[str, Any] = {"preset": "small", "size": (192, 192), "epochs": 40, "batch": 16, "augmentation": 0.8, "box_area": 0.3}
#: The average of the weights is what counts, and the float network teaches more than the data: less noise in the choice, less lost.
_QUANTIZE: dict[str, Any] = {"batch": 16, "lr": 5e-4, "augmentation": 0.8, "box_area": 0.3, "ema": 0.99, "teaching": 4.0}
#: The float network teaches alone, on its way to the maps, too, and weights that swing are held.
_SETTLED: dict[str, Any] = {
    "epochs": 30, "batch": 8, "lr": 5e-4, "augmentation": 0.8, "box_area": 0.3, "ema": 0.99, "data_loss": 0.0, "teaching": 1.0,
    "imitation": 2.0, "settle": 0.01,
}  # fmt: skip

RECIPES = {
    "cells": Recipe(
        about="bccd_320 with laterals, x0.5 trunk: small objects; 700 CPU seconds",
        train={**_CELLS, "laterals": True},
        quantize=_SETTLED,
    ),
    "cells-q": Recipe(
        about="bccd_320, network Q as CoDeNet has it (no laterals), x0.5 trunk; 710 CPU seconds",
        train={**_CELLS, "epochs": 40},
        quantize=_SETTLED,
    ),
    "steel": Recipe(
        about="neu_det with laterals, x0.5 trunk; 1,380 CPU seconds",
        train={**_STEEL, "laterals": True},
        quantize={"epochs": 10, **_QUANTIZE},
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name; ValueError if there is none."""
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, not {name!r}")
    return RECIPES[name]
