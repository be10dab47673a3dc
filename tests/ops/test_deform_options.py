"""The deformable operator with every option: fast path = definition = onnx.reference's DeformConv or a loop; gradients; edges."""
from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from models.ops.deform import Deform, Taps, deform_conv, deform_conv_exact, settle

#: Full, grouped, depthwise with two outputs a channel; channels and outputs: 4 and 8.
GROUPS = (1, 2, 4)
#: onnx.reference keeps positions in float32.
ONNX_ERROR = 2e-5


def case(taps: Taps, size: tuple[int, int], *, groups: int = 4, parts: int = 1, mask: bool = True, seed: int = 0) -> dict[str, Any]:
    """Random inputs of deform_conv; float64, offsets of up to 5 pixels."""
    rng = torch.Generator().manual_seed(seed)
    out = taps.out_size(*size)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64) * scale

    parts = 1 if taps.square else parts
    offset = draw(2, 1 if taps.square else parts * 2 * taps.kernel**2, *out, scale=2.0)
    found = {"x": draw(2, 4, *size), "offset": offset, "weight": draw(8, 4 // groups, taps.kernel, taps.kernel), "bias": draw(8)}
    return found | {"mask": torch.sigmoid(draw(2, parts * taps.kernel**2, *out)) if mask else None, "groups": groups, "taps": taps}


def by_onnx(given: dict[str, Any]) -> Tensor:
    """The same by onnx.reference, which knows neither square offsets, bounds nor rounding: they are settled here."""
    taps: Taps = given["taps"]
    k, offset = taps.kernel, settle(given["offset"], taps)
    if taps.square:
        half = k // 2
        pattern = [v for i in range(-half, half + 1) for j in range(-half, half + 1) for v in (i, j)]
        offset = offset * torch.tensor(pattern, dtype=offset.dtype).view(1, -1, 1, 1)
    names = ["x", "weight", "offset", "bias", *(["mask"] if given["mask"] is not None else [])]
    infos = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in (*names, "y")]
    node = helper.make_node(
        "DeformConv", names, ["y"], group=given["groups"], kernel_shape=[k, k], pads=[taps.pad] * 4, strides=[taps.stride] * 2,
        dilations=[taps.dilation] * 2, offset_group=offset.shape[1] // (2 * k * k),
    )  # fmt: skip
    model = helper.make_model(helper.make_graph([node], "g", infos[:-1], infos[-1:]), opset_imports=[helper.make_opsetid("", 19)])
    feeds = {name: np.ascontiguousarray((given | {"offset": offset})[name].numpy()) for name in names}
    return torch.from_numpy(next(iter(ReferenceEvaluator(model).run(None, feeds))))


def by_loop(given: dict[str, Any]) -> Tensor:
    """The same one product at a time, for one group of offsets and no mask."""
    taps: Taps = given["taps"]
    x, weight, offset, k = given["x"], given["weight"], settle(given["offset"], taps), taps.kernel
    share = x.shape[1] // given["groups"]
    y: Tensor = given["bias"].view(1, -1, 1, 1).repeat(len(x), 1, *offset.shape[2:])
    for n, o, r, c, i, j in itertools.product(range(len(x)), range(8), *map(range, offset.shape[2:]), range(k), range(k)):
        t = 2 * (i * k + j)
        row = r * taps.stride - taps.pad + i * taps.dilation + float(offset[n, t, r, c])
        column = c * taps.stride - taps.pad + j * taps.dilation + float(offset[n, t + 1, r, c])
        for a, b in itertools.product((int(np.floor(row)), int(np.floor(row)) + 1), (int(np.floor(column)), int(np.floor(column)) + 1)):
            if 0 <= a < x.shape[2] and 0 <= b < x.shape[3]:
                first = o // (8 // given["groups"]) * share
                near = (1 - abs(row - a)) * (1 - abs(column - b))
                y[n, o, r, c] += near * (x[n, first : first + share, a, b] * weight[o, :, i, j]).sum()
    return y


OPTIONS = [
    (Taps(), (4, 5), 1, 1, True),
    (Taps(), (2, 2), 4, 2, True),
    (Taps(stride=2, dilation=2), (5, 7), 2, 4, False),
    (Taps(kernel=5, bounds=(-1.5, 2.0)), (6, 3), 4, 1, True),
    (Taps(kernel=2, padding=0, frac_bits=1), (3, 4), 1, 2, True),
    (Taps(kernel=1, frac_bits=0), (3, 3), 1, 1, False),
    (Taps(square=True), (4, 6), 4, 1, True),
    (Taps(square=True, kernel=5, frac_bits=3, bounds=(-8, 7)), (5, 4), 2, 1, False),
    (Taps(square=True, stride=2, dilation=3, padding=1, frac_bits=0), (9, 8), 1, 1, True),
]


@pytest.mark.parametrize(("taps", "size", "groups", "parts", "mask"), OPTIONS, ids=range(len(OPTIONS)))
def test_fast_path_definition_and_onnx_reference_agree(taps: Taps, size: tuple[int, int], groups: int, parts: int, mask: bool) -> None:
    given = case(taps, size, groups=groups, parts=parts, mask=mask)
    expected = by_onnx(given)
    torch.testing.assert_close(deform_conv_exact(**given), expected, rtol=0, atol=ONNX_ERROR)
    torch.testing.assert_close(deform_conv(**given), deform_conv_exact(**given), rtol=0, atol=1e-9)


def test_random_options_agree_with_onnx_reference() -> None:
    rng = np.random.default_rng(7)
    for seed in range(8):
        kernel = int(rng.choice([1, 3, 5]))
        taps = Taps(
            kernel=kernel, stride=int(rng.integers(1, 3)), dilation=int(rng.integers(1, 3)), square=bool(rng.integers(2)),
            frac_bits=[None, 0, 1, 4][rng.integers(4)],
        )  # fmt: skip
        given = case(taps, tuple(rng.integers(2, 6, 2)), groups=int(rng.choice(GROUPS)), mask=bool(rng.integers(2)), seed=seed)
        torch.testing.assert_close(deform_conv(**given), by_onnx(given), rtol=0, atol=ONNX_ERROR, msg=str(taps))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1)])
@pytest.mark.parametrize("groups", GROUPS)
def test_maps_of_one_row_or_column(size: tuple[int, int], groups: int) -> None:
    given = case(Taps(frac_bits=2), size, groups=groups, mask=False)
    torch.testing.assert_close(deform_conv_exact(**given), by_loop(given), rtol=0, atol=1e-10)
    torch.testing.assert_close(deform_conv(**given), by_loop(given), rtol=0, atol=1e-10)


@pytest.mark.parametrize("square", [False, True])
def test_edges_of_range_and_map(square: bool) -> None:
    """Beyond the bounds nothing changes; exactly one pixel outside counts nothing, a quarter less counts a quarter."""
    taps = Taps(square=square, bounds=(-8, 7))
    given = case(taps, (5, 5), mask=False)
    for end, beyond in ((-8.0, -11.5), (7.0, 9.25)):
        given["offset"] = torch.full_like(given["offset"], beyond)
        at_end = given | {"offset": torch.full_like(given["offset"], end)}
        assert torch.equal(deform_conv_exact(**given), deform_conv_exact(**at_end))
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    one: dict[str, Any] = {"x": torch.ones(1, 1, 3, 3, dtype=torch.float64), "weight": weight, "taps": Taps(kernel=1)}
    for moved, expected in ((-1.0, 0.0), (-0.75, 0.25), (2.0, 1.0), (2.75, 0.25), (3.0, 0.0)):
        offset = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
        offset[0, 0, 0, 1] = moved
        for run in (deform_conv, deform_conv_exact):
            assert run(offset=offset, **one)[0, 0, 0, 1].item() == pytest.approx(expected, abs=1e-12), moved


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("taps", [Taps(stride=2), Taps(square=True, kernel=5, dilation=2), Taps(bounds=(-9, 9))], ids=str)
def test_gradients(taps: Taps, groups: int) -> None:
    given = case(taps, (4, 5), groups=groups)
    del given["taps"], given["groups"]
    # Away from the kinks at whole pixels; square offsets are multiplied by up to 2.
    given["offset"] = given["offset"].floor() + 0.2 + 0.2 * torch.rand(given["offset"].shape, dtype=torch.float64)
    names, values = list(given), [value.requires_grad_() for value in given.values()]
    for run in (deform_conv, deform_conv_exact):

        def call(*tensors: Tensor, run: Any = run) -> Tensor:
            found: Tensor = run(**dict(zip(names, tensors, strict=True)), groups=groups, taps=taps)
            return found

        assert torch.autograd.gradcheck(call, values, fast_mode=True)


def test_rounding_passes_the_gradient_and_bounds_stop_it() -> None:
    offset = torch.tensor([[-9.0, 0.3, 8.5]], requires_grad=True)
    settled = settle(offset, Taps(bounds=(-8, 7), frac_bits=1))
    assert settled.tolist() == [[-8.0, 0.5, 7.0]]
    settled.sum().backward()  # type: ignore[no-untyped-call]
    assert offset.grad is not None and offset.grad.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("square", [False, True])
def test_compiles_as_one_graph(square: bool) -> None:
    module = Deform(4, 8, Taps(square=square, frac_bits=2, bounds=(-8, 7)), groups=4, bias=True)
    given = case(module.taps, (5, 6))
    inputs = [given[name].float() for name in ("x", "offset", "mask")]
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), module(*inputs), rtol=0, atol=0)
    compiled(*inputs).sum().backward()
    assert module.weight.grad is not None and module.weight.grad.abs().sum() > 0


def test_autocast_keeps_positions_exact() -> None:
    """Half precision has no quarters of pixel 300: positions must stay float32."""
    module = Deform(1, 1, Taps(kernel=1))
    with torch.no_grad():
        module.weight.fill_(1)
    x = torch.arange(512.0).view(1, 1, 1, 512) % 2
    offset = torch.zeros(1, 2, 1, 512)
    offset[:, 1] = 0.25
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x.bfloat16(), offset.bfloat16())
    assert y[0, 0, 0, 300:304].float().tolist() == pytest.approx([0.25, 0.75, 0.25, 0.75], abs=1e-3)
    y.float().sum().backward()
    assert module.weight.grad is not None and torch.isfinite(module.weight.grad).all()


def test_what_does_not_fit_is_refused() -> None:
    given = case(Taps(), (4, 4), mask=True)
    with pytest.raises(ValueError, match="offset must have G"):
        deform_conv(**given | {"offset": given["offset"][:, :17]})
    with pytest.raises(ValueError, match="weight must be"):
        deform_conv(**given | {"groups": 2})
    with pytest.raises(ValueError, match=r"mask must be \(N, 9"):
        deform_conv_exact(**given | {"mask": given["mask"][:, :8]})
    with pytest.raises(ValueError, match="N, OH, OW"):
        deform_conv(**given | {"taps": Taps(stride=2)})
    for wrong in ({"kernel": 4}, {"square": True, "kernel": 2, "padding": 0}, {"bounds": (1, 1)}, {"frac_bits": 9}, {"stride": 0}):
        with pytest.raises(ValueError, match="must be"):
            Taps(**wrong)
