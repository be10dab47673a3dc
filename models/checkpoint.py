"""Checkpoint files: tensors and one JSON string, loaded as weights only, so that no file can run code."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.detectors.codenet import Codenet, CodenetConfig
from sw.files import whole_file


def save(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` (tensors, numbers, strings, lists and dicts of them) to ``path``, whole or not at all."""
    with whole_file(Path(path)) as temporary:
        torch.save(content, temporary)


def load(path: Path) -> dict[str, Any]:
    """Read what ``save`` wrote; ValueError if it is something else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        message = f"{path} must be a checkpoint of this project, tensors and plain values only ({reason}); nothing in it was run"
        raise ValueError(message) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a checkpoint of this project, not a {type(content).__name__}")
    return content


def save_float(path: Path, model: Codenet, *, small: bool = False, **about: Any) -> None:
    """The float network: config, state and ``about``, JSON-able facts.

    ``small``, to ship: weights as 8-bit integers with a scale each output channel, everything else in float16.
    """
    state = {name: shrink(value) if small else value for name, value in model.state_dict().items()}
    save(path, {"config": model.config.to_json(), "about": json.dumps(about), "state": state})


def shrink(value: Tensor) -> Tensor | dict[str, Tensor]:
    """A tensor in a quarter or half of its bytes."""
    if not value.is_floating_point():
        return value
    if value.ndim < 2:
        return value.half() if float(value.abs().max()) < 6e4 else value
    scale = (value.flatten(1).abs().amax(1) / 127).clamp(min=1e-12)
    codes = torch.round(value / scale.view(-1, *[1] * (value.ndim - 1))).to(torch.int8)
    return {"codes": codes, "scale": scale}


def load_float(path: Path) -> Codenet:
    """The float network in ``path``, in eval mode; ValueError if config and tensors do not make one."""
    content = load(path)
    try:
        model = Codenet(CodenetConfig.from_json(content["config"]))
        model.load_state_dict(as_float32(content["state"]))
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} must be a float checkpoint (config and state): {str(error)[:200]}") from error
    return model.eval()


def as_float32(state: dict[str, Any]) -> dict[str, Tensor]:
    """The state with shrunk tensors as they were."""

    def widen(value: Any) -> Tensor:
        if isinstance(value, dict):
            codes: Tensor = value["codes"]
            restored: Tensor = codes.float() * value["scale"].view(-1, *[1] * (codes.ndim - 1))
            return restored
        tensor: Tensor = value
        return tensor.float() if tensor.is_floating_point() else tensor

    return {name: widen(value) for name, value in state.items()}
