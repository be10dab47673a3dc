"""What a quantized network learns from the float network that it comes from: its maps, and what it computes on the way to them."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.losses import WH_WEIGHT

#: Modules whose outputs are compared: the trunk's stages and the decoder's.
PLACES = ("stage2", "stage3", "stage4", "conv5", "decoder.0", "decoder.1", "decoder.2")
#: Weight of those outputs beside the heat maps: it makes both count about alike when weights have 4 bits.
OUTPUTS_WEIGHT = 10.0


def distillation_loss(maps: tuple[Tensor, ...], taught: tuple[Tensor, ...]) -> Tensor:
    """How far hm, wh and reg are from the float network's, weighted by where that sees objects.

    Heat: quality focal loss (Li et al., arXiv 2006.04388) with the float network's probability as its target, divided by their sum; sizes
    and offsets: L1, weighted by the pixel's greatest probability.
    """
    target = torch.sigmoid(taught[0])
    there = target.amax(1, keepdim=True)
    objects = there.sum().clamp(min=1)
    miss = (torch.sigmoid(maps[0]) - target).abs().square()
    heat = (miss * nn.functional.binary_cross_entropy_with_logits(maps[0], target, reduction="none")).sum()
    size, shift = (((mine - theirs).abs() * there).sum() for mine, theirs in zip(maps[1:], taught[1:], strict=True))
    loss: Tensor = (heat + WH_WEIGHT * size + shift) / objects
    return loss


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The outputs at PLACES of the forward passes inside the block, the last one's each."""
    seen: dict[str, Tensor] = {}
    places = [(path, model.get_submodule(path)) for path in PLACES]
    hooks = [place.register_forward_hook(lambda _m, _i, output, path=path: seen.__setitem__(path, output)) for path, place in places]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def imitation_loss(mine: dict[str, Tensor], theirs: dict[str, Tensor], heat: Tensor, taught: Tensor) -> Tensor:
    """How far the outputs at PLACES and the heat maps (N, classes, H, W; logits) are from the float network's.

    Outputs: squared distance over the float network's squares, averaged over the places (after FitNets, Romero et al., arXiv 1412.6550):
    every pixel and channel teaches, where the heads' maps teach at a few objects. Heat: Kullback-Leibler divergence of the
    probabilities, over what the float network sees of each class, averaged over the classes: rare ones count as much as they do in AP,
    and small differences, which decide the order of weak detections, have a gradient, which a focal loss takes from them.
    """
    parts = [(mine[path] - theirs[path]).square().sum() / theirs[path].square().sum().clamp(min=1e-6) for path in PLACES]
    target, entropy = torch.sigmoid(taught), nn.functional.binary_cross_entropy_with_logits
    miss = entropy(heat, target, reduction="none") - entropy(taught, target, reduction="none")
    return OUTPUTS_WEIGHT * torch.stack(parts).mean() + (miss.sum((0, 2, 3)) / target.sum((0, 2, 3)).clamp(min=1)).mean()
