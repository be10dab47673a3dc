"""The front door: exact against an independent evaluator, and clear refusals."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from sw import golden
from sw.errors import CompileError
from sw.frontends import qonnx
from sw.graph import verify
from sw.ops import OPS, Concat, Deform, Requant
from sw.testing import QonnxWriter, micro_network

#: Operators that CoDeNet does not have; each is lowered in its own test.
ELSEWHERE = {"add", "multiply", "average_pool", "global_average_pool", "table", "image", "decode"}


class Quant(OpRun):
    """QONNX's Quant from its specification, in double precision."""

    op_domain = "qonnx.custom_op.general"

    def _run(self, x: Any, scale: Any, zero: Any, bits: Any, signed: int, narrow: int, rounding_mode: str) -> tuple[Any]:
        low = -(2.0 ** (bits - 1)) + narrow if signed else 0.0
        high = 2.0 ** (bits - 1) - 1 if signed else 2.0**bits - 1 - narrow
        ways: dict[str, Callable[[Any], Any]] = {"ROUND": np.rint, "FLOOR": np.floor, "HALF_UP": lambda v: np.floor(v + 0.5)}
        rounded = ways[rounding_mode](x / scale + zero)
        return ((np.clip(rounded, low, high) - zero) * scale,)


def reference(path: Path, images: np.ndarray, wanted: list[str]) -> dict[str, np.ndarray]:
    """The file's tensors in float64 by onnx.reference, (1, H, W, C); the image is raw / 256."""
    model = onnx.load(path)
    for k, tensor in enumerate(model.graph.initializer):
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and not tensor.name.endswith("scales"):
            model.graph.initializer[k].CopyFrom(numpy_helper.from_array(array.astype(np.float64), tensor.name))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(t, TensorProto.DOUBLE, None) for t in wanted)
    evaluator = ReferenceEvaluator(model, new_ops=[Quant])
    values = evaluator.run(None, {"image": images.transpose(0, 3, 1, 2) / 256.0})
    return {t: np.moveaxis(np.asarray(v), 1, 3) for t, v in zip(wanted, values, strict=True)}


@pytest.mark.parametrize("frac_bits", [0, 2])
def test_every_tensor_equals_an_independent_evaluation(tmp_path: Path, frac_bits: int) -> None:
    path = micro_network(tmp_path / "micro.onnx", frac_bits=frac_bits)
    graph = qonnx.load(path)
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3))
    values = golden.run(graph, images)
    names = list(graph.origins)
    want = reference(path, images, names)
    for name in names:
        tensor = graph.tensors[graph.origins[name].tensor]
        np.testing.assert_array_equal(values[tensor.name] * tensor.scale_array(), want[name], err_msg=name)
    assert {n.op.name for n in graph.nodes} == set(OPS) - ELSEWHERE
    assert all(len(np.unique(values[o])) >= 4 for o in ("offset1", "offset2"))  # else the deformable layers prove nothing


@pytest.mark.parametrize(("rounding", "signed"), [("ROUND", True), ("ROUND", False), ("FLOOR", True), ("HALF_UP", False)])
def test_rounding_modes_of_foreign_files_are_exact_on_ties(tmp_path: Path, rounding: str, signed: bool) -> None:
    w = QonnxWriter(4, 4)
    weight = w.quant(w.constant("w", np.full((2, 3, 1, 1), 0.5)), "wq", 0.5, bits=4, signed=True)  # a scale of 2^-1: ties abound
    raw = w.node("Conv", [w.image, weight], "acc", kernel_shape=[1, 1])
    path = w.save(tmp_path / "m.onnx", [w.quant(raw, "out", 2.0**-7, bits=8, signed=signed, rounding=rounding)])
    graph = qonnx.load(path)
    images = np.random.default_rng(0).integers(0, 86, (1, 4, 4, 3))
    want = reference(path, images, ["out"])["out"]
    got = golden.run(graph, images)["out"] * 2.0**-7
    np.testing.assert_array_equal(got, want)
    assert ((golden.run(graph, images)["acc"] % 4) == 2).any()


def test_the_dilation_itself_may_be_quantized(tmp_path: Path) -> None:
    """Quant (of s), Sub 1, Mul gives the same convolution as Quant (of s - 1), Mul, where s fits its bits."""
    values = {}
    for form in ("o", "s"):
        w = QonnxWriter(12, 12)
        x = w.conv(w.image, "c", 4)
        o = w.conv(x, "off", 1, relu=False, clip=(-3.0, 3.0), out_bits=6, out_scale=0.25, gain=2.0)
        if form == "s":
            o = w.node("Sub", [o, w.constant("one", 1.0)], "o")
            w.channels[o] = 1
        path = w.save(tmp_path / f"{form}.onnx", [w.deform(x, o, "d")])
        graph = qonnx.load(path)
        images = np.random.default_rng(1).integers(0, 256, (1, 12, 12, 3))
        values[form] = golden.run(graph, images)
        want = reference(path, images, ["d"])["d"]
        np.testing.assert_array_equal(values[form]["d"] * float(graph.tensors["d"].scale[0]), want)
    assert not np.array_equal(values["o"]["d"], values["s"]["d"])  # the same codes mean different dilations


def test_batch_normalization_folds_into_the_layer(tmp_path: Path) -> None:
    w = QonnxWriter(4, 4)
    weight = w.quant(w.constant("w", np.random.default_rng(0).integers(-7, 8, (5, 3, 1, 1)) * 0.25), "wq", 0.25, bits=4, signed=True)
    raw = w.node("Conv", [w.image, weight], "acc", kernel_shape=[1, 1])
    stats = {"g": [1.0, -0.7, 2.0, 0.3, 1.1], "b": [0.1, 0.2, -0.3, 0, 1], "m": [0.5, 0, 0.1, -1, 0], "v": [1, 2, 0.5, 1, 3]}
    norm = w.node("BatchNormalization", [raw, *(w.constant(k, v) for k, v in stats.items())], "norm", epsilon=1e-5)
    w.channels[norm] = 5
    path = w.save(tmp_path / "m.onnx", [w.quant(norm, "out", 2.0**-5, bits=8, signed=True)])
    graph = qonnx.load(path)
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3))
    got, want = golden.run(graph, images)["out"], reference(path, images, ["out"])["out"] * 2**5
    assert np.abs(got - want).max() <= 1 and (got != want).mean() < 0.05  # biases and factors are rounded, and the notes say so
    assert any("multipliers" in n for n in graph.notes) and any("biases" in n for n in graph.notes)
    assert graph.removed["acc"].startswith("fold constants")


def test_unequal_scales_of_a_concat_are_requantized_and_listed(tmp_path: Path) -> None:
    w = QonnxWriter(4, 4)
    a, b = w.conv(w.image, "a", 4, out_scale=2.0**-4), w.conv(w.image, "b", 4, out_scale=2.0**-3)
    path = w.save(tmp_path / "m.onnx", [w.concat([a, b], "out")])
    graph = qonnx.load(path)
    assert any("requantized" in n for n in graph.notes)
    values = golden.run(graph, np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)))
    half = values["a"] / 2
    np.testing.assert_array_equal(values["out"][..., :4], np.clip(np.rint(half), 0, 255))


FLOOR = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def _writer() -> QonnxWriter:
    return QonnxWriter(8, 8)


def _ceil(w: QonnxWriter) -> str:
    return w.node("Ceil", [w.image], "ceil")


def _unquantized_weights(w: QonnxWriter) -> str:
    return w.node("Conv", [w.image, w.constant("w", np.ones((4, 3, 1, 1)))], "c", kernel_shape=[1, 1])


def _grouped(w: QonnxWriter) -> str:
    x = w.conv(w.image, "x", 4)
    weight = w.quant(w.constant("w", np.ones((4, 2, 1, 1))), "wq", 1.0, bits=4, signed=True)
    return w.node("Conv", [x, weight], "c", kernel_shape=[1, 1], group=2)


def _zero_point(w: QonnxWriter) -> str:
    inputs = [w.image, w.constant("s", 1.0), w.constant("z", 3.0), w.constant("b", 8.0)]
    return w.node("Quant", inputs, "q", domain="qonnx.custom_op.general", signed=1, narrow=0, rounding_mode="ROUND")


def _unquantized_input(w: QonnxWriter) -> str:
    weight = w.quant(w.constant("w", np.ones((4, 3, 1, 1))), "wq", 1.0, bits=4, signed=True)
    raw = w.node("Conv", [w.image, weight], "first", kernel_shape=[1, 1])
    weight2 = w.quant(w.constant("w2", np.ones((4, 4, 1, 1))), "w2q", 1.0, bits=4, signed=True)
    return w.node("Conv", [raw, weight2], "c", kernel_shape=[1, 1])


def _fine_offsets(w: QonnxWriter) -> str:
    x = w.conv(w.image, "x", 4)
    offsets = w.conv(x, "o", 18, relu=False, out_scale=2.0**-5)
    weight = w.quant(w.constant("w", np.ones((4, 1, 3, 3))), "wq", 1.0, bits=4, signed=True)
    return w.node("DeformConv", [x, weight, offsets], "c", kernel_shape=[3, 3], pads=[1] * 4, group=4)


def _wrong_pattern(w: QonnxWriter) -> str:
    o = w.conv(w.image, "o", 1, relu=False)
    return w.node("Mul", [o, w.constant("p", np.arange(18.0).reshape(1, 18, 1, 1))], "c")


def _bilinear_resize(w: QonnxWriter) -> str:
    return w.node("Resize", [w.image, "", w.constant("s", [1, 1, 2, 2])], "c", mode="linear")


def _stray_transpose(w: QonnxWriter) -> str:
    return w.node("Transpose", [w.image], "c", perm=[0, 2, 3, 1])


def _unknown_domain(w: QonnxWriter) -> str:
    return w.node("Magic", [w.image], "c", domain="com.example")


def _signed_half_up(w: QonnxWriter) -> str:
    weight = w.quant(w.constant("w", np.ones((4, 3, 1, 1))), "wq", 1.0, bits=4, signed=True)
    raw = w.node("Conv", [w.image, weight], "acc", kernel_shape=[1, 1])
    return w.quant(raw, "c", 1.0, bits=8, signed=True, rounding="HALF_UP")


def _giant(w: QonnxWriter) -> str:
    return w.node("Resize", [w.image, "", w.constant("s", [1, 1, 9999, 9999])], "c", mode="nearest", **FLOOR)


def _bad_pads(w: QonnxWriter) -> str:
    weight = w.quant(w.constant("w", np.ones((4, 3, 3, 3))), "wq", 1.0, bits=4, signed=True)
    return w.node("Conv", [w.image, weight], "c", kernel_shape=[3, 3], pads=[9] * 4)


REFUSED: list[tuple[Callable[[QonnxWriter], str], str]] = [
    (_ceil, "Ceil.*no unit.*Accepted: .*Relu"),
    (_unquantized_weights, "weights are not quantized.*Accepted: a constant through a Quant"),
    (_grouped, "2 groups on 4 channels.*Accepted"),
    (_zero_point, "zero point is not 0.*Accepted"),
    (_unquantized_input, "not quantized.*Accepted: a Quant node between"),
    (_fine_offsets, "offsets in steps of.*Accepted: steps of 2"),
    (_wrong_pattern, "not the tap pattern.*Accepted"),
    (_bilinear_resize, "does not repeat every pixel.*Accepted: mode nearest"),
    (_stray_transpose, "perm.*Accepted.*channel shuffle"),
    (_unknown_domain, "domain 'com.example' is unknown.*Accepted"),
    (_signed_half_up, "HALF_UP.*Accepted: ROUND, FLOOR"),
    (_bad_pads, "pad must be between"),
    (_giant, "is huge.*Accepted: maps of at most"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[f.__name__.strip("_") for f, _ in REFUSED])
def test_what_cannot_be_lowered_is_refused_by_name(tmp_path: Path, make: Callable[[QonnxWriter], str], message: str) -> None:
    w = _writer()
    path = w.save(tmp_path / "m.onnx", [make(w)])
    with pytest.raises(CompileError, match=rf"(?s){message}") as error:
        qonnx.load(path)
    assert "node '" in str(error.value)


def test_output_without_a_quant_is_refused(tmp_path: Path) -> None:
    w = _writer()
    weight = w.quant(w.constant("w", np.ones((4, 3, 1, 1))), "wq", 1.0, bits=4, signed=True)
    path = w.save(tmp_path / "m.onnx", [w.node("Conv", [w.image, weight], "c", kernel_shape=[1, 1])])
    with pytest.raises(CompileError, match="output 'c' is not quantized"):
        qonnx.load(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    whole = micro_network(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CompileError, match=r"cut\.onnx"):
        qonnx.load(tmp_path / "cut.onnx")


def test_files_that_are_no_onnx_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    for name in ("empty.onnx", "noise.onnx", "absent.onnx"):
        with pytest.raises(CompileError, match=name):
            qonnx.load(tmp_path / name)


def _edited(path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    edit(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_huge_and_dynamic_shapes_are_refused(tmp_path: Path) -> None:
    def external(m: onnx.ModelProto) -> None:
        m.graph.initializer[0].data_location = TensorProto.EXTERNAL
        m.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")

    def huge(m: onnx.ModelProto) -> None:
        m.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]

    def dynamic(m: onnx.ModelProto) -> None:
        m.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"

    def infinite(m: onnx.ModelProto) -> None:
        first = m.graph.initializer[0]
        first.CopyFrom(numpy_helper.from_array(np.array(np.inf, np.float32), first.name))

    for edit, message in ((external, "another file"), (huge, "elements"), (dynamic, "static shape"), (infinite, "infinities")):
        with pytest.raises(CompileError, match=message):
            qonnx.load(_edited(micro_network(tmp_path / "m.onnx"), edit))


def test_graph_of_the_micro_network_verifies(tmp_path: Path) -> None:
    graph = qonnx.load(micro_network(tmp_path / "m.onnx"))
    verify(graph)
    assert not graph.notes
    assert {type(n.op) for n in graph.nodes} >= {Deform, Requant, Concat}
    assert set(graph.origins).isdisjoint(graph.removed)
