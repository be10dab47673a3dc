"""The preset ``tiny`` from its shipped checkpoint: frozen PyTorch = golden at every tensor, golden = Verilog in cocotb under stalls."""
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from models import checkpoint
from models.data.scenes import draw_scene
from models.detectors.codenet import PRESETS, images_to_input
from models.exercise import exercise_offsets
from models.export import export_qonnx
from models.freeze import freeze
from models.frozen import FrozenNetwork
from models.qat import calibrate, prepare
from sim.accelerator import VerilatorAccelerator
from sim.run import Case, run_cases
from sw import golden
from sw.compiler import compile, load_graph
from sw.demo import CHECKPOINT
from sw.folding.fold import choose
from sw.folding.schedule import size_fifos
from sw.graph import Graph
from sw.lower import lower
from sw.ops import Array
from sw.verify import verify


def scenes(split: str, count: int) -> npt.NDArray[np.uint8]:
    return np.stack([draw_scene(False, 0, split, k, 128).image for k in range(count)])


@pytest.fixture(scope="module")
def frozen() -> FrozenNetwork:
    model = prepare(checkpoint.load_float(CHECKPOINT))
    calibrate(model, [images_to_input(scenes("train", 32))])
    return freeze(model)


@pytest.fixture(scope="module")
def exported(frozen: FrozenNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model.onnx"
    export_qonnx(frozen, path)
    return path


def test_the_shipped_checkpoint_is_the_preset() -> None:
    config = checkpoint.load_float(CHECKPOINT).config
    assert config == PRESETS["tiny"]
    assert 0.25 <= config.width <= 0.5 and all(128 <= n <= 192 for n in config.size)


def test_pytorch_equals_golden_at_every_tensor(frozen: FrozenNetwork, exported: Path) -> None:
    images = scenes("test", 4)
    record = verify(load_graph(exported), images.astype(np.int64), frozen.tensors(images), None).record()
    assert record["mismatches"] == 0, record["first_mismatch"]
    assert record["tensors_compared"] > 150 and record["values_compared"] > 5_000_000


def test_exercised_offsets_reach_both_ends_everywhere_and_agree(frozen: FrozenNetwork, tmp_path: Path) -> None:
    images = scenes("test", 4)
    other = exercise_offsets(frozen, images)
    export_qonnx(other, tmp_path / "model.onnx")
    record = verify(load_graph(tmp_path / "model.onnx"), images.astype(np.int64), other.tensors(images), None).record()
    assert record["mismatches"] == 0 and record["offsets_prove"] and len(record["offsets"]) == 3


class Whole:
    """The graph as one operator, for the unit bench."""

    name = "network"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        values = golden.run(self.graph, inputs[0])
        return tuple(values[t] for t in self.graph.outputs)


@pytest.mark.rtl
def test_the_whole_accelerator_in_cocotb_with_stalls_on_both_ends(exported: Path, tmp_path: Path) -> None:
    graph = load_graph(exported)
    design = lower(graph, choose(graph))
    design.links = size_fifos(design)
    case = Case(name="tiny", unit=design.accelerator(), op=Whole(graph), inputs=(scenes("test", 1).astype(np.int64),))  # type: ignore[arg-type]
    run_cases([case], tmp_path, runs=[(True, True)])


@pytest.mark.rtl
@pytest.mark.slow
def test_verilog_equals_pytorch_at_every_tensor_with_exercised_offsets(frozen: FrozenNetwork, tmp_path: Path) -> None:
    images = scenes("test", 3)
    other = exercise_offsets(frozen, images)
    export_qonnx(other, tmp_path / "model.onnx")
    compile(tmp_path / "model.onnx", tmp_path / "compiled")
    accelerator = VerilatorAccelerator(tmp_path / "compiled")
    record = verify(accelerator.graph, images.astype(np.int64), other.tensors(images), accelerator).record()
    assert record["mismatches"] == 0 and record["offsets_prove"]
