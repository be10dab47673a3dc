"""The four ways to run one network, behind one form: images in, real-valued head maps or boxes out."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import checkpoint
from models.data.folder import open_folder
from models.data.transforms import letterbox
from models.data.voc import Sample
from models.frozen import FrozenNetwork
from models.score import Finder, Maps, Network, torch_network
from sw.decode import Detections
from sw.detections import TENSOR, boxes_of, decoder, heads
from sw.graph import Graph
from sw.runtime.accelerator import Accelerator

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A network with what it must be fed: ``size`` (height, width) of its input and its classes, in the order of its scores.

    ``finder``: its boxes, where it decodes by itself; the maps then are beside the way.
    """

    name: str
    network: Network
    size: tuple[int, int]
    classes: tuple[str, ...]
    finder: Finder | None = None


def torch_float(run: Path) -> Backend:
    """The float network as trained."""
    model = checkpoint.load_float(run / "float.pt")
    return Backend(name="torch-float", network=torch_network(model), size=model.config.size, classes=model.config.classes)


def torch_quantized(run: Path) -> Backend:
    """The frozen quantized network, evaluated exactly."""
    frozen = FrozenNetwork.load(run / "frozen.pt")

    def network(images: Images) -> Maps:
        hm, wh, reg = frozen.maps(images)
        return hm, wh, reg

    return Backend(name="torch-quantized", network=network, size=frozen.config.size, classes=frozen.config.classes)


def accelerated(name: str, accelerator: Accelerator) -> Backend:
    """Any accelerator: its boxes if it decodes, and its maps' integers times their power-of-two scales. ValueError if it is no detector."""
    graph = accelerator.graph

    def network(images: Images) -> Maps:
        ran = accelerator.run(images, keep=() if decoder(graph) is None else map_names(graph))
        return real_maps(graph, ran.outputs | ran.tensors)

    def finder(images: Images) -> list[Detections]:
        return boxes_of(graph, accelerator.run(images).outputs[TENSOR])

    own = finder if decoder(graph) is not None else None
    return Backend(name=name, network=network, size=input_size(graph), classes=class_names(graph), finder=own)


def stored(name: str, graph: Graph, images: Images, outputs: dict[str, npt.NDArray[Any]]) -> Backend:
    """Outputs that a simulation has written, boxes if the graph decodes, else maps: answers for exactly the images that it ran."""
    place = {image.tobytes(): k for k, image in enumerate(images)}

    def chosen(batch: Images) -> dict[str, npt.NDArray[Any]]:
        unknown = sum(image.tobytes() not in place for image in batch)
        if unknown:
            raise ValueError(f"{unknown} of {len(batch)} images were not simulated; run `warploom simulate` with more --images")
        return {t: values[[place[image.tobytes()] for image in batch]] for t, values in outputs.items()}

    def network(batch: Images) -> Maps:
        return real_maps(graph, chosen(batch))

    def finder(batch: Images) -> list[Detections]:
        return boxes_of(graph, chosen(batch)[TENSOR])

    own = finder if decoder(graph) is not None else None
    return Backend(name=name, network=network, size=input_size(graph), classes=class_names(graph), finder=own)


def map_names(graph: Graph) -> tuple[str, ...]:
    """The tensors hm, wh and reg; ValueError if the graph is no detector."""
    names = heads(graph) or graph.outputs
    if len(names) != 3:
        raise ValueError(f"a detector must have three outputs (hm, wh, reg), not {list(graph.outputs)}")
    return names


def real_maps(graph: Graph, tensors: dict[str, npt.NDArray[Any]]) -> Maps:
    """hm, wh and reg as real values (N, h, w, C) from the graph's tensors; ValueError if they are not there, since boxes were kept."""
    names = map_names(graph)
    if missing := [t for t in names if t not in tensors]:
        raise ValueError(f"the maps {', '.join(missing)} were not kept, only boxes; compile with `--detections 0`")
    hm, wh, reg = (tensors[t] * graph.tensors[t].scale_array() for t in names)
    return hm, wh, reg


def input_size(graph: Graph) -> tuple[int, int]:
    """(height, width) of the image."""
    kind = graph.tensors[graph.inputs[0]].type
    return kind.height, kind.width


def class_names(graph: Graph) -> tuple[str, ...]:
    """Class names from the file's metadata, else numbers."""
    count = graph.tensors[map_names(graph)[0]].type.channels
    try:
        names = json.loads(graph.metadata.get("classes", "null"))
    except ValueError:
        names = None
    if isinstance(names, list) and len(names) == count and all(isinstance(n, str) for n in names):
        return tuple(names)
    return tuple(str(k) for k in range(count))


def first_samples(data: Path, split: str, classes: Sequence[str], size: tuple[int, int], count: int) -> tuple[list[Sample], Images]:
    """The first ``count`` samples of a split and their letterboxed images (N, height, width, 3)."""
    folder = open_folder(data, split, classes)
    samples = [folder[k] for k in range(min(count, len(folder)))]
    return samples, np.stack([letterbox(s, size)[0].image for s in samples])


def fitting_size(data: Path, longest: int = 256) -> tuple[int, int]:
    """(height, width) of an input whose longer side is ``longest`` and that fits the first image of ``data``; multiples of 32."""
    folder = open_folder(data, "train")
    rows, columns = folder[0].image.shape[:2]
    scale = longest / max(rows, columns)
    height, width = (max(32, round(n * scale / 32) * 32) for n in (rows, columns))
    return height, width
