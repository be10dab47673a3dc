"""Pretrained trunks: torchvision-named ShuffleNetV2 state dicts into a Codenet, preprocessing folded into the stem."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.detectors.codenet import Codenet

#: What torchvision's trunks expect of RGB in [0, 1]: (x - mean) / std.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Modules that torchvision's state dicts may hold.
TRUNK = ("conv1", "stage2", "stage3", "stage4", "conv5")


@dataclass(frozen=True)
class TrunkReport:
    """Which tensors came from the file; which of the trunk's and of the file's did not match, each with the reason."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    differ: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded"
        for what, names in (("stay random, not in the file", self.missing), ("of the file not used", self.unused), ("differ", self.differ)):
            if names:
                text += f"; {len(names)} {what}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        return text


def fold_preprocessing(state: dict[str, Tensor], *, normalized: bool) -> dict[str, Tensor]:
    """A copy of a trunk's state for input raw / 256 instead of raw / 255, or instead of (raw / 255 - mean) / std if ``normalized``.

    Exact inside the image. At the border they differ: the original pads with its 0, the mean colour, and this network with black.
    """
    state = dict(state)
    weight = state["conv1.0.weight"].double()
    if normalized:
        weight = weight / torch.tensor(IMAGENET_STD, dtype=torch.float64).view(1, 3, 1, 1)
        shift = (weight * torch.tensor(IMAGENET_MEAN, dtype=torch.float64).view(1, 3, 1, 1)).sum((1, 2, 3))
        state["conv1.1.running_mean"] = (state["conv1.1.running_mean"].double() + shift).float()
    state["conv1.0.weight"] = (weight * (256 / 255)).float()
    return state


def load_trunk(model: Codenet, path: Path, *, normalized: bool | None = None) -> TrunkReport:
    """Load stem and stages from ``path``, a state dict with torchvision's names (weights only: the file cannot run code).

    normalized: whether the trunk expects ImageNet's mean and std; None: only if the file's name says "meanstd" or "nanodet".
    Raises ValueError if the file is no such state dict or fits nowhere.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} must be a PyTorch state dict: {error}") from error
    if not isinstance(state, dict) or "conv1.0.weight" not in state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} must be a state dict with torchvision's ShuffleNetV2 names (conv1.0.weight, stage2.0...)")
    if normalized is None:
        normalized = "meanstd" in path.name or "nanodet" in path.name
    own = {name: value for name, value in model.state_dict().items() if name.split(".")[0] in TRUNK}
    if state["conv1.0.weight"].shape == own["conv1.0.weight"].shape:
        state = fold_preprocessing(state, normalized=normalized)
    if model.config.blocks != "torchvision":
        raise ValueError(f"{path} has torchvision's wiring; a network with blocks {model.config.blocks!r} cannot use it")
    state = {_own_name(name, own): value for name, value in state.items()}
    fits = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    differ = {n: f"{n} is {_shape(v)}, here {_shape(own[n])}" for n, v in state.items() if n in own and n not in fits}
    if not any(name.startswith("stage") for name in fits):
        raise ValueError(f"{path} does not fit a network of width {model.config.width}: no stage has its shapes")
    model.load_state_dict(fits, strict=False)
    missing, unused = set(own) - set(fits) - set(differ), set(state) - set(fits) - set(differ)
    return TrunkReport(tuple(fits), tuple(sorted(missing)), tuple(sorted(unused)), tuple(differ.values()))


def _own_name(name: str, own: dict[str, Tensor]) -> str:
    """A depthwise kernel of the file is the deformable one's start where the trunk gathers."""
    deep = f"{name.removesuffix('.weight')}.deform.weight"
    return deep if deep in own else name


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
