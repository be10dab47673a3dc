"""What the quantization of each layer costs by itself: everything else stays in float."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from brevitas.nn import QuantHardTanh

from models import checkpoint
from models.data.folder import Folder, open_folder
from models.data.voc import Sample
from models.detectors.codenet import Codenet
from models.epochs import write_json
from models.metrics import evaluate_voc
from models.qat import Bits, activation_quantizers, calibrate, prepare, quant_layers
from models.quant_layers import QuantConv, quantizer_of
from models.quantize import calibration_batches
from models.score import Maps, Network, detect, expit, torch_network

Progress = Callable[[int, int], None]


class Switches:
    """A prepared and calibrated model in which quantization can be switched on part by part."""

    def __init__(self, model: Codenet) -> None:
        self.model = model.eval()
        self.layers: dict[str, QuantConv] = {}
        chosen = set(map(id, quant_layers(model)))
        for path, module in model.named_modules():
            if id(module) in chosen and isinstance(module, QuantConv):
                self.layers[path] = module
        self.places = activation_quantizers(model)
        for module in model.modules():
            if isinstance(module, QuantHardTanh):
                quantizer_of(module).clamps = True

    def parts(self) -> list[tuple[str, str]]:
        """(kind, path) of everything that can be quantized alone: weights of a layer, activations of a place."""
        return [("weights", path) for path in self.layers] + [("activations", path) for path in self.places if path != "input"]

    def only(self, part: tuple[str, str] | None, *, everything: bool = False) -> None:
        """Quantize nothing but ``part`` (None: nothing), or everything."""
        for path, layer in self.layers.items():
            layer.bypass = not everything and part != ("weights", path)
        for path, quantizer in self.places.items():
            quantizer.bypass = not everything and part != ("activations", path)


def _compare(network: Network, folder: Folder, samples: list[Sample], size: tuple[int, int]) -> tuple[float, Any]:
    """AP50 (no NMS, single pass) and the heat maps as probabilities."""
    found, heat = [], []

    def watched(pictures: Any) -> Maps:
        maps = network(pictures)
        heat.append(expit(maps[0]))
        return maps

    for first in range(0, len(samples), 16):
        found += detect(watched, samples[first : first + 16], size)
    return float(evaluate_voc(found, samples, folder.classes)["ap50"]), np.concatenate(heat)


def sensitivity(
    run: Path,
    *,
    data: Path,
    split: str = "val",
    images: int | None = None,
    weights: dict[str, int] | None = None,
    activations: dict[str, int] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """AP50 that each layer's weights, and each place's activations, lose when they alone are quantized (calibrated on the training split,
    not trained), on the first ``images`` of ``split``; written to run/sensitivity.json.

    Rows, worst first: kind, path, bits, ap50, loss (of AP50), heat (root mean square change of the heat maps' probabilities, which still
    tells layers apart where AP does not move). ``all``: everything quantized. weights, activations: ``Bits``.
    """
    run, data = Path(run), Path(data)
    source = checkpoint.load_float(run / "float.pt")
    bits = Bits(**{k: v for k, v in (("weights", weights), ("activations", activations)) if v is not None})
    model = prepare(source, bits)
    calibrate(model, calibration_batches(open_folder(data, "train", source.config.classes), source.config.size))
    switches = Switches(model)
    folder = open_folder(data, split, source.config.classes)
    samples = [folder[k] for k in range(len(folder) if images is None else min(images, len(folder)))]
    network, size, parts = torch_network(model), source.config.size, switches.parts()
    switches.only(None)
    whole, heat = _compare(network, folder, samples, size)
    rows = []
    for done, part in enumerate(parts, start=1):
        switches.only(part)
        ap50, changed = _compare(network, folder, samples, size)
        rows.append(_row(switches, part, bits) | {"ap50": ap50, "loss": whole - ap50, "heat": _rms(changed - heat)})
        if progress is not None:
            progress(done, len(parts))
    switches.only(None, everything=True)
    total, changed = _compare(network, folder, samples, size)
    rows.sort(key=lambda row: (-row["loss"], -row["heat"]))
    together = {"ap50": total, "loss": whole - total, "heat": _rms(changed - heat)}
    record = {"split": folder.split, "images": len(samples), "float_ap50": whole, "all": together, "layers": rows}
    write_json(run / "sensitivity.json", record)
    return record


def _row(switches: Switches, part: tuple[str, str], bits: Bits) -> dict[str, Any]:
    kind, path = part
    return {"kind": kind, "path": path, "bits": bits.weight(path) if kind == "weights" else switches.places[path].bits}


def _rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


