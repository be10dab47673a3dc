"""The comparison itself: it finds what differs, names the place, and insists on every tensor."""
import re
from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import pytest

from sw import golden
from sw.compiler import load_graph
from sw.errors import WarploomError
from sw.graph import Graph
from sw.ops import Array
from sw.runtime.accelerator import Accelerator, GoldenAccelerator, Progress, Result
from sw.testing import micro_network
from sw.verify import verify


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return load_graph(micro_network(tmp_path_factory.mktemp("verify") / "m.onnx"))


def images(graph: Graph, count: int = 2) -> Array:
    (name,) = graph.inputs
    return np.random.default_rng(0).integers(0, 256, (count, *graph.tensors[name].type.shape))


def as_torch(graph: Graph, pictures: Array) -> dict[str, npt.NDArray[np.float64]]:
    """What exact PyTorch would give: every tensor of the file, real values (N, C, H, W)."""
    values = golden.run(graph, pictures)
    found = {}
    for name, origin in graph.origins.items():
        real = origin.recover(values[origin.tensor]) * graph.tensors[origin.tensor].scale_array()
        found[name] = np.moveaxis(real, 3, 1)
    return found | {name: np.zeros((1, 1, 1, 1)) for name in graph.removed}


class Wrong(Accelerator):
    """Golden with one value changed in some tensors."""

    def __init__(self, graph: Graph, changes: dict[str, tuple[int, int, int, int]]) -> None:
        self.graph, self.changes = graph, changes

    def run(self, images: Array, keep: Collection[str] = (), progress: Progress | None = None) -> Result:
        result = GoldenAccelerator(self.graph).run(images, keep)
        tensors = {t: v.copy() for t, v in result.tensors.items()}
        for tensor, place in self.changes.items():
            tensors[tensor][place] += 1
        return Result(outputs=result.outputs, tensors=tensors)


def test_equal_tensors_pass_and_all_are_counted(graph: Graph) -> None:
    pictures = images(graph)
    record = verify(graph, pictures, as_torch(graph, pictures), GoldenAccelerator(graph)).record()
    assert record["mismatches"] == 0 and record["first_mismatch"] is None and record["images"] == 2
    compared = {r["tensor"] for r in record["tensors"]}
    assert compared == set(graph.origins) | {t for n in graph.nodes for t in n.outputs}
    assert record["tensors_removed"] == len(graph.removed) == len(record["removed"])
    assert record["values_compared"] == sum(r["values"] for r in record["tensors"])


def test_the_first_difference_in_network_order_is_named(graph: Graph) -> None:
    wrong = Wrong(graph, {"dec1": (1, 2, 3, 4), "down": (1, 3, 2, 5), "hm": (0, 0, 0, 0)})
    record = verify(graph, images(graph), None, wrong).record()
    assert record["mismatches"] == 3
    first = record["first_mismatch"]
    place = {k: first[k] for k in ("node", "tensor", "image", "row", "column", "channel", "op")}
    wanted = {"node": "down_node", "tensor": "down", "image": 1, "row": 3, "column": 2, "channel": 5, "op": "requant"}
    assert place == wanted and first["rtl"] == first["golden"] + 1
    (around,) = first["inputs"].values()
    assert len(around) == 2 and len(around[0]) == 3  # row 3 is the last of a 4x4 map


def test_a_difference_of_pytorch_is_found_through_the_recorded_map(graph: Graph) -> None:
    pictures = images(graph)
    tensors = as_torch(graph, pictures)
    moved = next(n for n, o in graph.origins.items() if o.steps)  # behind a permutation or a repetition
    scale = graph.tensors[graph.origins[moved].tensor].scale_array()
    tensors[moved] = tensors[moved].copy()
    tensors[moved][0, 1, 2, 3] += scale.ravel()[0 if scale.size == 1 else 1]
    record = verify(graph, pictures, tensors, None).record()
    first = record["first_mismatch"]
    assert record["mismatches"] == 1 and (first["row"], first["column"], first["channel"]) == (2, 3, 1)
    assert first["torch"] == first["golden"] + 1


def test_tensors_that_nobody_accounts_for_are_an_error(graph: Graph) -> None:
    pictures = images(graph)
    tensors = as_torch(graph, pictures)
    with pytest.raises(WarploomError, match="does not know"):
        verify(graph, pictures, {**tensors, "stranger": np.zeros((2, 1, 1, 1))}, None)
    tensors.pop(next(iter(graph.origins)))
    with pytest.raises(WarploomError, match="PyTorch lacks"):
        verify(graph, pictures, tensors, None)


def test_inexact_pytorch_is_an_error(graph: Graph) -> None:
    pictures = images(graph)
    tensors = as_torch(graph, pictures)
    tensors["dec1"] = tensors["dec1"] + 1e-9
    with pytest.raises(WarploomError, match="not whole in units of its scale"):
        verify(graph, pictures, tensors, None)


def test_offsets_that_prove_nothing_are_told_apart(graph: Graph) -> None:
    dark = np.zeros_like(images(graph))
    assert not verify(graph, dark, None, None).record()["offsets_prove"]
    assert verify(graph, images(graph, 12), None, None).record()["offsets_prove"]


@pytest.mark.parametrize("beyond", [1, -1])
def test_golden_may_not_leave_the_ranges_of_its_types(graph: Graph, monkeypatch: pytest.MonkeyPatch, beyond: int) -> None:
    """Narrow types would wrap what is too large just as the hardware does, and the comparison would agree."""
    name, run = graph.nodes[-1].outputs[0], golden.run
    kind = graph.tensors[name].type

    def outside(*args: object) -> dict[str, Array]:
        found = run(*args)  # type: ignore[arg-type]
        found[name] = found[name].copy()
        found[name].flat[-1] = kind.highest + 1 if beyond > 0 else kind.lowest - 1
        return found

    monkeypatch.setattr("sw.verify.golden.run", outside)
    with pytest.raises(WarploomError, match=rf"{re.escape(repr(name))} leaves {kind.lowest}\.\.{kind.highest}"):
        verify(graph, images(graph), None, None)
