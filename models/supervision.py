"""What a detector is trained on: CenterNet's losses and, while training, class maps inside the network."""
from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.detectors.codenet import CHANNELS, Codenet
from models.losses import Targets, detection_loss, focal_loss
from models.ops.pointwise import Pointwise


class DeepSupervision(nn.Module):
    """Class maps read off conv5 and the first two decoder stages while training, so that the trunk learns classes from the first step.

    The network's only path from classes to trunk runs through the whole decoder, which makes learning from few images slow. Each
    map (strides 32, 16, 8) is held against the heat map target's maximum over its cell, with the same focal loss. The layers are
    not part of the network and are thrown away.
    """

    def __init__(self, model: Codenet) -> None:
        super().__init__()
        places = [model.conv5, *(stage.get_submodule(str(stage.last)) for stage in (model.decoder[0], model.decoder[1]))]
        widths = (CHANNELS[model.config.width][-1], *model.config.decoder)
        layers = [Pointwise(n, len(model.config.classes), 1) for n, _ in zip(widths, places, strict=False)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, -2.19)
        self.layers = nn.ModuleList(layers)
        self.seen: dict[int, Tensor] = {}
        for k, place in enumerate(places):
            place.register_forward_hook(lambda _module, _inputs, output, k=k: self.seen.__setitem__(k, output))

    def loss(self, target: Tensor) -> Tensor:
        """Sum of the focal losses of the maps of the last forward pass; ``target`` (N, classes, H, W)."""
        total = target.new_zeros(())
        for k, layer in enumerate(self.layers):
            logits = layer(self.seen.pop(k))
            factor = target.shape[-1] // logits.shape[-1]
            total = total + focal_loss(logits, F.max_pool2d(target, factor))
        return total


class Objective(nn.Module):
    """A detector with its losses as one module, so that data-parallel wrappers see all that is trained: (images, targets) to losses."""

    def __init__(self, model: Codenet, deep: float) -> None:
        super().__init__()
        self.model, self.weight = model, deep
        self.deep = DeepSupervision(model) if deep else None

    def forward(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        losses = detection_loss(self.model(images), targets)
        if self.deep is not None:
            losses["deep"] = self.deep.loss(targets.hm)
            losses["loss"] = losses["loss"] + self.weight * losses["deep"]
        return losses
