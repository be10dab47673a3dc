"""Every relative of network Q that can be quantized: frozen PyTorch = golden at every tensor of its export."""
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.detectors.blocks import EvenOddBlock, Gather
from models.detectors.codenet import PRESETS, Codenet, CodenetConfig, images_to_input
from models.exercise import exercise_offsets
from models.export import export_qonnx
from models.freeze import freeze
from models.qat import Bits, calibrate, pack, prepare, unpack
from sw.compiler import load_graph
from sw.ops import Deform, Depthwise
from sw.verify import verify

SMALL = CodenetConfig(size=(32, 64), classes=("a", "b"), decoder=(16, 8, 8), head_channels=8, stem="stride4")
IMAGES = np.random.default_rng(1).integers(0, 256, (16, *SMALL.size, 3), dtype=np.uint8)
VARIANTS: dict[str, dict[str, Any]] = {
    "mix first": {"order": "mix-first", "decoder": (16, 16, 16)},
    "mix first, static 5x5, laterals": {"order": "mix-first", "gather": "static", "kernel": 5, "laterals": True},
    "static 9x9": {"gather": "static", "kernel": 9},
    "static 7x7": {"gather": "static", "kernel": 7},
    "static 3x3, dilation 3": {"gather": "static", "dilation": 3},
    "rounded, positive": {"frac_bits": 0, "bounds": (0, 7)},
    "deform*": {"deform_stages": (3, 4), "laterals": True},
    "network A's wiring": {
        "order": "mix-first", "blocks": "even-odd", "heads": "gather", "bounds": (0, 7), "width": 0.5},
}


def trained_like(config: CodenetConfig) -> Codenet:
    """Random weights and batch norms whose statistics fit the images."""
    torch.manual_seed(0)
    model, x = Codenet(config).train(), images_to_input(IMAGES)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.bias.normal_(std=0.3)
        for _ in range(20):
            model(x)
    return model.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_golden_equals_pytorch_at_every_tensor(name: str, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, **VARIANTS[name])
    prepared = prepare(trained_like(config))
    calibrate(prepared, [images_to_input(IMAGES)])
    frozen = freeze(prepared)
    if config.deform_stages:
        frozen = exercise_offsets(frozen, IMAGES)
    export_qonnx(frozen, tmp_path / "model.onnx")
    graph = load_graph(tmp_path / "model.onnx")
    record = verify(graph, IMAGES[:3].astype(np.int64), frozen.tensors(IMAGES[:3]), None).record()
    assert record["mismatches"] == 0, record["first_mismatch"]
    deforms = [node.op for node in graph.nodes if isinstance(node.op, Deform)]
    expected = 3 * (config.gather == "square") + (7 + 3) * bool(config.deform_stages) + 3 * (config.heads == "gather")
    assert len(deforms) == expected
    if config.deform_stages or config.heads == "gather":
        assert any(op.bias.any() for op in deforms), "batch norms fold into deformable layers"
    if config.gather == "static":
        reach = config.dilation * (config.kernel // 2)
        windows = [node.op.window for node in graph.nodes if isinstance(node.op, Depthwise)]
        assert sum(w.pad == (reach,) * 4 and w.kernel == (config.kernel,) * 2 for w in windows) == 3


@pytest.mark.parametrize(("weights", "activations"), [(2, 8), (3, 4), (8, 8), (5, 2)])
def test_any_bit_widths_by_layer(weights: int, activations: int, tmp_path: Path) -> None:
    bits = Bits(weights={"*": weights, "conv1.0": 8, "hm.*": 6}, activations={"*": activations, "conv1.2": 7})
    prepared = prepare(trained_like(SMALL), bits)
    calibrate(prepared, [images_to_input(IMAGES)])
    frozen = freeze(prepared)
    found = {step.name: step.attributes["weight_bits"] for step in frozen.steps if "weight_bits" in step.attributes}
    assert found["conv1.0"] == 8 and found["hm.0"] == 6 and found["decoder.1.deform"] == found["conv5.0"] == weights
    assert frozen.ranges["conv1.0"].bits == 7 and frozen.ranges["conv5.0"].bits == activations
    assert frozen.ranges["hm"].bits == 16 and frozen.ranges["decoder.0.offset"].bits == 6
    export_qonnx(frozen, tmp_path / "model.onnx")
    record = verify(load_graph(tmp_path / "model.onnx"), IMAGES[:2].astype(np.int64), frozen.tensors(IMAGES[:2]), None).record()
    assert record["mismatches"] == 0, record["first_mismatch"]
    again = freeze(unpack(pack(prepared)))
    assert again.ranges == frozen.ranges and again.steps == frozen.steps


def test_bits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bits of weights must be in 2\.\.8, not 9 for 'hm"):
        Bits(weights={"hm.*": 9})
    with pytest.raises(ValueError, match=r"bits of activations must be in 2\.\.8"):
        Bits(activations={"*": 1})


def test_network_a_must_be_trained_with_bounds_that_hardware_has() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=r"quantized offsets must lie within -8\.\.7, not 0\.\.8"):
        prepare(Codenet(PRESETS["ablation"]))


def test_even_odd_block_is_its_authors() -> None:
    """megvii's channel_shuffle: (B * C / 2, 2, H * W) transposed: even channels pass, odd ones are worked on."""
    block = EvenOddBlock(8, 8, 1).eval()
    x = torch.rand(2, 8, 4, 4)
    even, odd = x[:, 0::2], x[:, 1::2]
    torch.testing.assert_close(block(x), torch.cat([even, block.branch2(odd)], 1))
    wide = EvenOddBlock(6, 16, 2).eval()
    assert wide(torch.rand(1, 6, 8, 8)).shape == (1, 16, 4, 4) and wide.branch1(torch.rand(1, 6, 8, 8)).shape[1] == 6


def test_a_static_gather_is_a_depthwise_convolution() -> None:
    with pytest.raises(ValueError, match="a square gather has kernel 3"):
        Gather(kernel=5)
    with pytest.raises(ValueError, match="kernel must be 3, 5, 7 or 9"):
        dataclasses.replace(SMALL, gather="static", kernel=4)
    model = Codenet(dataclasses.replace(SMALL, gather="static", kernel=9, dilation=2))
    static = model.decoder[0].static
    assert isinstance(static, nn.Conv2d) and static.groups == 512 and static.padding == (8, 8)
    assert not hasattr(model.decoder[0], "offset")
