"""Every pass leaves golden's answer unchanged and every tensor of the file recoverable."""
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sw import golden
from sw.errors import CompileError
from sw.frontends import qonnx
from sw.graph import Graph, verify
from sw.ops import Concat, Conv, Deform, Shuffle, Upsample
from sw.passes import PASSES, fold_upsample_into_deform, run_all, split_outputs
from sw.testing import QonnxWriter, micro_network


def check(before: Graph, after: Graph) -> None:
    verify(after)
    (name,) = before.inputs
    images = np.random.default_rng(0).integers(0, 256, (2, *before.tensors[name].type.shape))
    a, b = golden.run(before, images), golden.run(after, images)
    for t in before.outputs:
        np.testing.assert_array_equal(a[t], b[t], err_msg=t)
    assert set(before.origins) <= set(after.origins) | set(after.removed)
    for file_name, origin in after.origins.items():
        np.testing.assert_array_equal(origin.recover(b[origin.tensor]), a[before.origins[file_name].tensor], err_msg=file_name)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", list(PASSES))
def test_each_pass_is_exact(tmp_path: Path, name: str, seed: int) -> None:
    graph = qonnx.load(micro_network(tmp_path / "m.onnx", seed=seed))
    check(graph, PASSES[name](graph))


def test_all_passes_are_exact_and_do_their_work(tmp_path: Path) -> None:
    graph = qonnx.load(micro_network(tmp_path / "m.onnx"))
    after, _ = run_all(graph, prove=1)
    check(graph, after)
    assert after.multiplications() < graph.multiplications()
    assert not any(isinstance(n.op, Shuffle) for n in after.nodes)
    assert any(isinstance(n.op, Concat) and n.op.interleave for n in after.nodes)
    for node in after.nodes:
        if isinstance(node.op, Upsample):
            channels = after.tensors[node.outputs[0]].type.channels
            assert {n.op.name for n in after.consumers(node.outputs[0])} == ({"deform"} if channels == 1 else {"depthwise"})
    assert [n.op.upsample for n in after.nodes if isinstance(n.op, Deform)] == [1, 2]


def test_a_layer_with_very_many_outputs_is_computed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_outputs, "MOST", 5)
    monkeypatch.setattr(split_outputs, "WHOLE", 2)
    w = QonnxWriter(4, 4)
    x = w.conv(w.image, "x", 13)
    graph = qonnx.load(w.save(tmp_path / "wide.onnx", [w.conv(x, "y", 4)]))
    after = split_outputs.run(graph)
    check(graph, after)
    assert [len(n.op.bias) for n in after.nodes if isinstance(n.op, Conv)] == [6, 6, 1, 4]
    assert [t for t, why in after.removed.items() if "computed in 3 parts" in why] == [t for t in graph.origins if t not in after.origins]
    assert after.multiplications() == graph.multiplications()


def upsampled(path: Path, times: int) -> Graph:
    """A deformable layer on a map upsampled ``times`` times, which a depthwise layer reads too."""
    w = QonnxWriter(4, 4)
    x = w.conv(w.image, "x", 3)
    for k in range(times):
        x = w.upsample(x, f"up{k}")
    deformed = w.deform(x, w.offsets(x, "offset"), "deformed")
    return qonnx.load(w.save(path, [w.conv(deformed, "y", 2), w.conv(x, "z", 3, kernel=3, depthwise=True)]))


def test_other_readers_keep_the_upsampling(tmp_path: Path) -> None:
    graph = upsampled(tmp_path / "m.onnx", 1)
    after = fold_upsample_into_deform.run(graph)
    check(graph, after)
    (node,) = (n for n in after.nodes if isinstance(n.op, Deform))
    assert isinstance(node.op, Deform) and node.op.upsample == 2 and "up0" in after.tensors and node.inputs[0] != "up0"


def test_upsampling_twice_folds_twice(tmp_path: Path) -> None:
    graph = upsampled(tmp_path / "m.onnx", 2)
    after = fold_upsample_into_deform.run(graph)
    check(graph, after)
    (node,) = (n for n in after.nodes if isinstance(n.op, Deform))
    assert isinstance(node.op, Deform) and node.op.upsample == 4


def test_a_shuffle_whose_concat_has_another_reader_stays(tmp_path: Path) -> None:
    w = QonnxWriter(8, 8)
    a, b = w.conv(w.image, "a", 4), w.conv(w.image, "b", 4)
    w.scales[b] = w.scales[a]
    joined = w.concat([a, b], "joined")
    outputs = [w.conv(w.shuffle(joined, "s", 8, 8), "c", 2), w.conv(joined, "d", 2)]
    graph = qonnx.load(w.save(tmp_path / "m.onnx", outputs))
    after, _ = run_all(graph, prove=1)
    check(graph, after)
    assert any(isinstance(n.op, Shuffle) for n in after.nodes)


def test_dead_branches_are_removed_and_listed(tmp_path: Path) -> None:
    w = QonnxWriter(8, 8)
    x = w.conv(w.image, "x", 4)
    w.conv(x, "unused", 4)
    graph = qonnx.load(w.save(tmp_path / "m.onnx", [w.conv(x, "y", 2)]))
    after, _ = run_all(graph, prove=1)
    assert after.removed["unused"].startswith("remove_dead") and len(after.nodes) == len(graph.nodes) - 2
    check(graph, after)


def test_a_pass_that_changes_an_answer_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof bites: a pass that drops a bias is found out on random images; without a proof nothing tells."""
    graph = qonnx.load(micro_network(tmp_path / "micro.onnx"))

    def broken(before: Graph) -> Graph:
        nodes = list(before.nodes)
        k, node = next((k, n) for k, n in enumerate(nodes) if isinstance(n.op, Conv))
        assert isinstance(node.op, Conv)
        nodes[k] = replace(node, op=replace(node.op, bias=np.zeros_like(node.op.bias)))
        return before.rebuilt(nodes)

    monkeypatch.setitem(PASSES, "broken", broken)
    with pytest.raises(CompileError, match=r"the pass broken changes .*hm.*: a bug of the compiler"):
        run_all(graph, prove=1)
    _, done = run_all(graph)
    assert [p.name for p in done] == list(PASSES)


def test_what_a_pass_saves_is_told(tmp_path: Path) -> None:
    _, done = run_all(qonnx.load(micro_network(tmp_path / "micro.onnx")), prove=1)
    saved = {p.name: p.multiplications[0] - p.multiplications[1] for p in done}
    assert saved["move_upsample"] > 0 and saved["fuse_shuffle"] == 0
    assert all(a.nodes[1] == b.nodes[0] for a, b in pairwise(done))
