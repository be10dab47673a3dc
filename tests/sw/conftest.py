"""Networks that several tests of the compiler share."""
import pytest

from sw.compiler import load_graph
from sw.graph import Graph
from sw.testing import QonnxWriter


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Small maps of many channels."""
    w = QonnxWriter(16, 16, seed=2)
    x = w.conv(w.image, "stem", 16, kernel=3, stride=2, bits=8)
    for k, channels in enumerate((48, 64, 96)):
        x = w.conv(w.conv(x, f"dw{k}", w.channels[x], kernel=3, depthwise=True, stride=1 + k % 2), f"pw{k}", channels)
    return load_graph(w.save(tmp_path_factory.mktemp("deep") / "deep.onnx", [w.conv(x, "head", 12, relu=False, out_bits=16)]))
