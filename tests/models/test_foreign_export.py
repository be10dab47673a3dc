"""A file that this project did not write: Brevitas' own QONNX export of an ordinary quantized network."""
import warnings
from pathlib import Path

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from brevitas.quant.fixed_point import Int8ActPerTensorFixedPoint, Int8WeightPerChannelFixedPoint, Uint8ActPerTensorFixedPoint
from torch import Tensor, nn

from sw import golden
from sw.compiler import load_graph


class Foreign(nn.Module):
    """Someone else's network: convolution, pooling, depthwise, pointwise, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        weights = {"weight_quant": Int8WeightPerChannelFixedPoint, "weight_bit_width": 4, "bias": False}
        self.image = qnn.QuantIdentity(act_quant=Uint8ActPerTensorFixedPoint)
        self.conv = qnn.QuantConv2d(3, 8, 3, stride=2, padding=1, **weights)
        self.relu = qnn.QuantReLU(act_quant=Uint8ActPerTensorFixedPoint)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.depthwise = qnn.QuantConv2d(8, 8, 3, padding=1, groups=8, **weights)
        self.middle = qnn.QuantIdentity(act_quant=Int8ActPerTensorFixedPoint)
        self.pointwise = qnn.QuantConv2d(8, 4, 1, **weights)
        self.out = qnn.QuantIdentity(act_quant=Int8ActPerTensorFixedPoint)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv(self.image(x))))
        result: Tensor = self.out(self.pointwise(self.middle(self.depthwise(x))))
        return result


def test_brevitas_own_export_compiles_and_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Foreign()
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, 16, 16), generator=generator)
    model.train()
    for _ in range(40):  # static ranges are collected
        model(images / 256)
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters of PyTorch and Brevitas warn about themselves
        from brevitas.export import export_qonnx

        export_qonnx(model, args=(images[:1] / 256).float(), export_path=str(tmp_path / "foreign.onnx"), dynamo=False)
    graph = load_graph(tmp_path / "foreign.onnx")
    with torch.no_grad():
        values = model(images / 256)
        step = float(model.out.act_quant.scale())
        steps = np.rint(np.moveaxis(values.numpy(), 1, 3) / step)
    scale = graph.tensors[graph.inputs[0]].scale[0]
    raw = np.clip(np.rint(np.moveaxis(images.numpy(), 1, 3) / 256 / float(scale)), 0, 255).astype(np.int64)
    got = golden.run(graph, raw)[graph.outputs[0]]
    assert float(graph.tensors[graph.outputs[0]].scale[0]) == pytest.approx(step)
    assert (got != steps).mean() < 1e-3 and np.abs(got - steps).max() <= 1  # float32 against exact integers
    assert len(np.unique(got)) > 20
