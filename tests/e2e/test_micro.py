"""A whole small network: compiled, simulated in Verilator and in cocotb, compared with golden at every tensor."""
from pathlib import Path

import numpy as np
import pytest

from sim.accelerator import Recording, Stalls, VerilatorAccelerator
from sim.run import Case, run_cases
from sw import golden
from sw.compiler import compile, load_design, load_graph
from sw.errors import DeviceError
from sw.folding.fold import choose
from sw.folding.schedule import size_fifos
from sw.graph import Graph
from sw.lower import lower
from sw.ops import Array
from sw.testing import micro_network
from sw.verify import verify

pytestmark = pytest.mark.rtl


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("micro")
    compile(micro_network(folder / "micro.onnx"), folder / "compiled")
    return folder / "compiled"


def images(graph: Graph, count: int, seed: int = 0) -> Array:
    (name,) = graph.inputs
    return np.random.default_rng(seed).integers(0, 256, (count, *graph.tensors[name].type.shape))


def test_every_tensor_of_back_to_back_frames_equals_golden(compiled: Path) -> None:
    accelerator = VerilatorAccelerator(compiled)
    record = verify(accelerator.graph, images(accelerator.graph, 12), None, accelerator).record()
    assert record["mismatches"] == 0 and record["first_mismatch"] is None
    assert record["tensors_compared"] == len({t for n in accelerator.graph.nodes for t in n.outputs})
    assert record["offsets_prove"], record["offsets"]


def test_the_interval_is_the_planned_one(compiled: Path) -> None:
    accelerator = VerilatorAccelerator(compiled)
    result = accelerator.run(images(accelerator.graph, 6))
    ends = [end for _, end in result.cycles]
    assert ends[-1] - ends[-2] == load_design(compiled)["interval_cycles"]


@pytest.mark.parametrize(("p_valid", "p_ready"), [(0.3, 1.0), (1.0, 0.3), (0.5, 0.5), (0.05, 0.9), (0.9, 0.05)])
def test_random_stalls_lose_nothing_and_never_lock(compiled: Path, p_valid: float, p_ready: float) -> None:
    accelerator = VerilatorAccelerator(compiled, Stalls(seed=3, p_valid=p_valid, p_ready=p_ready))
    record = verify(accelerator.graph, images(accelerator.graph, 2, seed=1), None, accelerator).record()
    assert record["mismatches"] == 0


def test_no_progress_is_reported_with_the_waiting_streams(compiled: Path) -> None:
    accelerator = VerilatorAccelerator(compiled, Stalls(p_ready=0.0), watchdog=3000)
    with pytest.raises(DeviceError, match=r"(?s)no beat moved for 3000 cycles.*hm_node|hm: .*waits for its reader"):
        accelerator.run(images(accelerator.graph, 1))


class Whole:
    """The graph as one operator, for the unit bench."""

    name = "network"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def golden(self, *inputs: Array) -> tuple[Array, ...]:
        values = golden.run(self.graph, inputs[0])
        return tuple(values[t] for t in self.graph.outputs)


def test_the_whole_accelerator_in_cocotb_with_random_stalls(tmp_path: Path) -> None:
    graph = load_graph(micro_network(tmp_path / "micro.onnx"))
    design = lower(graph, choose(graph))
    design.links = size_fifos(design)
    run_cases([Case(name="micro", unit=design.accelerator(), op=Whole(graph), inputs=(images(graph, 5),))], tmp_path)  # type: ignore[arg-type]


def test_a_recording_answers_for_its_images_and_its_verilog_alone(compiled: Path, tmp_path: Path) -> None:
    accelerator = VerilatorAccelerator(compiled)
    pictures = images(accelerator.graph, 2)
    accelerator.record(pictures, tmp_path)
    recording = Recording(compiled, tmp_path)
    assert recording.holds(pictures) and not recording.holds(pictures[:1]) and not recording.holds(255 - pictures)
    assert verify(accelerator.graph, pictures, None, recording).record()["mismatches"] == 0
    text = (compiled / "accelerator_sim.v").read_text()
    (compiled / "accelerator_sim.v").write_text(text + "\n// changed\n")
    try:
        assert not recording.holds(pictures)
        with pytest.raises(DeviceError, match="run `warploom simulate` again"):
            recording.run(pictures)
    finally:
        (compiled / "accelerator_sim.v").write_text(text)
