"""Every recipe is made of options that exist, and the command line starts from it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.quantize import QuantizeOptions
from models.recipes import RECIPES, recipe
from models.train import TrainOptions, make_config
from sw import steps


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_options_that_exist(name: str) -> None:
    options = TrainOptions.gather(**recipe(name).train)
    config = make_config(options.preset, ("a", "b"), **options.network)
    assert config.width == 0.5 and config.laterals == ("laterals" in recipe(name).train)
    assert QuantizeOptions(**recipe(name).quantize).epochs > 0


def test_given_options_override_the_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    real = steps.upward

    def note(run: Path, **options: Any) -> dict[str, Any]:
        seen.append(options)
        return {}

    monkeypatch.setattr(steps, "upward", lambda name: note if name in ("train", "quantize") else real(name))
    steps.train(tmp_path, recipe="cells", data=tmp_path, epochs=1)
    steps.quantize(tmp_path, recipe="cells", data=tmp_path, lr=1.0)
    assert seen[0] == {**recipe("cells").train, "data": tmp_path, "epochs": 1}
    assert seen[1] == {**recipe("cells").quantize, "data": tmp_path, "lr": 1.0}
    with pytest.raises(ValueError, match="recipe must be one of cells, cells-q, steel"):
        recipe("cake")
