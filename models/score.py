"""AP of anything that turns images into head maps, in the pixels of the original images."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.data.folder import Folder
from models.data.transforms import letterbox, unletterbox
from models.data.voc import Sample
from models.detectors.codenet import STRIDE, images_to_input
from models.metrics import evaluate_voc
from models.nms import OVERLAP, suppress
from sw.decode import Detections, decode

Floats = npt.NDArray[np.floating[Any]]
#: Images (N, H, W, 3) uint8 to real-valued maps hm (N, h, w, classes), wh and reg (N, h, w, 2).
Maps = tuple[Floats, Floats, Floats]
Network = Callable[[npt.NDArray[np.uint8]], Maps]
#: The same images to the boxes of each, in pixels of the network's input: a network that decodes by itself.
Finder = Callable[[npt.NDArray[np.uint8]], list[Detections]]
#: Least score that counts: AP needs the long tail.
THRESHOLD = 0.01


def torch_network(model: nn.Module) -> Network:
    """A float or fake-quantized model, which must be in eval mode, as a Network."""

    def run(images: npt.NDArray[np.uint8]) -> Maps:
        with torch.inference_mode():
            hm, wh, reg = model(images_to_input(images).contiguous(memory_format=torch.channels_last))
        return tuple(x.float().permute(0, 2, 3, 1).numpy() for x in (hm, wh, reg))

    return run


def mirrored(network: Network) -> Network:
    """CenterNet's flip test: two passes, heat (as probability) and sizes averaged over the image and its mirror, offsets of the image."""

    def run(images: npt.NDArray[np.uint8]) -> Maps:
        hm, wh, reg = network(images)
        other_hm, other_wh, _ = (x[:, :, ::-1] for x in network(np.ascontiguousarray(images[:, :, ::-1])))
        p = (expit(hm) + expit(other_hm)) / 2
        return np.log(p) - np.log1p(-p), (wh + other_wh) / 2, reg

    return run


def expit(x: Floats) -> Floats:
    """The sigmoid in float64, kept off 0 and 1 so that its inverse exists."""
    return np.clip((1 + np.tanh(x.astype(np.float64) / 2)) / 2, 1e-12, 1 - 1e-12)


def detect(
    network: Network, samples: list[Sample], size: tuple[int, int], *, threshold: float = THRESHOLD, finder: Finder | None = None
) -> list[Detections]:
    """Boxes of each sample in its own pixels; the network sees it letterboxed to ``size``. All samples make one batch.

    The boxes are those of the ``finder``, if there is one, that score at least ``threshold``; else they are decoded from maps here.
    """
    boxed = [letterbox(sample, size) for sample in samples]
    images = np.stack([sample.image for sample, _, _ in boxed])
    if finder is None:
        found = decode(*network(images), stride=STRIDE, threshold=threshold)
    else:
        found = [_from(each, threshold) for each in finder(images)]
    back = []
    for each, sample, (_, scale, offset) in zip(found, samples, boxed, strict=True):
        rows, columns = sample.image.shape[:2]
        back.append(dataclasses.replace(each, boxes=unletterbox(each.boxes, scale, offset, (rows, columns))))
    return back


def _from(found: Detections, threshold: float) -> Detections:
    """The boxes with at least that score."""
    good = found.scores >= threshold
    return Detections(boxes=found.boxes[good], scores=found.scores[good], labels=found.labels[good])


def score(
    network: Network, folder: Folder, size: tuple[int, int], *, images: int | None = None, batch: int = 32, flip_test: bool = False,
    coco: bool = False, progress: Callable[[int, int], None] | None = None, finder: Finder | None = None,
) -> dict[str, Any]:  # fmt: skip
    """``models.metrics.evaluate_voc`` of ``network`` on the first ``images`` of ``folder`` (None: all), without and with NMS.

    ap50 and ap50_11 are without non-maximum suppression, ap50_nms and ap50_11_nms with it; ``passes`` is 2 with ``flip_test``, else 1.
    ``coco``: COCO's figures too, without NMS, under that name; ``finder``: see :func:`detect` (the flip test needs maps and leaves it).
    """
    finder = None if flip_test else finder
    network = mirrored(network) if flip_test else network
    count = len(folder) if images is None else min(images, len(folder))
    found, truth = [], []
    for first in range(0, count, batch):
        samples = [folder[index] for index in range(first, min(first + batch, count))]
        found += detect(network, samples, size, finder=finder)
        truth += [dataclasses.replace(sample, image=sample.image[:0]) for sample in samples]
        if progress is not None:
            progress(len(truth), count)
    result = evaluate_voc(found, truth, folder.classes)
    with_nms = evaluate_voc([suppress(each) for each in found], truth, folder.classes)
    how = "two passes (flip test)" if flip_test else "single pass"
    result |= {"metric": f"{result['metric']}, {how}, no NMS; *_nms: NMS at IoU {OVERLAP:g}", "passes": 1 + flip_test}
    if coco:
        from models.coco_metrics import evaluate_coco  # needs pycocotools, which nothing else does

        result["coco"] = evaluate_coco(found, truth, folder.classes)
    return result | {f"{name}_nms": with_nms[name] for name in ("ap50", "ap50_11")}
