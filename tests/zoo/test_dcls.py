"""DCLS: figures of ConvNeXt-dcls, and the equalities that define the kernel's construction."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.dcls import (
    SYSTEM,
    VERSIONS,
    Block,
    ConvNeXtDcls,
    Dcls,
    Version,
    clamp_positions_,
    dcls1d,
    dcls2_1d,
    dcls2d,
    dcls2d_k1d,
    dcls3_1d,
    dcls3d,
    parameter_groups,
    repulsive_loss,
)

FIGURES = [("convnext_t_dcls", 28_587_688, 4.981), ("convnext_s_dcls", 50_118_568, 9.541), ("convnext_b_dcls", 88_451_304, 16.498)]


class Construction(nn.Module):
    """Builds a layer's kernel and nothing else."""

    def __init__(self, layer: Dcls) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> torch.Tensor:
        return self.layer.kernel()


def tiny() -> ConvNeXtDcls:
    torch.manual_seed(0)
    return ConvNeXtDcls((2, 1), (8, 16), elements=5, size=7, classes=3)


@pytest.mark.parametrize(("variant", "count", "giga"), FIGURES)
def test_published_figures(variant: str, count: int, giga: float) -> None:
    with torch.device("meta"):
        model = SYSTEM.variants[variant]()
        image = torch.empty(1, 3, 224, 224)
    assert parameters(model) == count
    # The published figures count, beside the MACs, 5 operations for every element that the blocks' LayerNorms read.
    elements: list[int] = []
    for module in model.modules():
        if isinstance(module, Block):
            module.norm.register_forward_hook(lambda m, x, y: elements.append(y.numel()))
    model(image)
    norms = 5 * sum(elements)
    construction = sum(macs(Construction(m)) for m in model.modules() if isinstance(m, Dcls))  # K is a constant at inference
    assert (macs(model, image) - construction + norms) / 1e9 == pytest.approx(giga, abs=5e-4)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [(9,), (9, 9), (7, 5), (5, 5, 5), (8, 6)])
def test_sum_of_kernel_is_sum_of_weights(version: Version, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = Dcls(2, 4, 3, size, version=version, groups=2).double()
    kernel = layer.kernel()
    assert kernel.shape == (4, 1, *size)
    torch.testing.assert_close(kernel.flatten(2).sum(2), layer.weight.sum(2), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_integer_grid_is_the_dilated_convolution(version: Version) -> None:
    torch.manual_seed(0)
    layer = dcls2d(3, 4, 9, 9, version=version, padding=4).double()
    row, column = torch.meshgrid(torch.arange(-1.0, 2) * 4, torch.arange(-1.0, 2) * 4, indexing="ij")
    layer.P.data[0], layer.P.data[1] = row.flatten().double(), column.flatten().double()
    x = torch.randn(2, 3, 12, 11, dtype=torch.float64)
    dilated = F.conv2d(x, layer.weight.view(4, 3, 3, 3), layer.bias, padding=4, dilation=4)
    torch.testing.assert_close(layer(x), dilated, rtol=1e-6, atol=1e-6 if version == "v1" else 1e-12)  # v1 divides by 1 + 1e-7


def test_dense_elements_are_the_ordinary_convolution() -> None:
    layer = dcls2d(2, 2, 15, (3, 5), version="v0")
    row, column = torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-2.0, 3), indexing="ij")
    layer.P.data[0], layer.P.data[1] = row.flatten(), column.flatten()
    assert torch.equal(layer.kernel(), layer.weight.view(2, 2, 3, 5))


@pytest.mark.parametrize(("version", "taps"), [("v0", 4), ("v1", 4)])
def test_taps_of_one_element(version: Version, taps: int) -> None:
    layer = dcls2d(8, 8, 1, 9, version=version)
    assert (layer.kernel() != 0).flatten(2).sum(2).max() == taps


def test_profiles_match_the_equations_tap_by_tap() -> None:
    """The Gaussian and triangle written as loops over taps, against the separable contraction, for a non-square window."""
    torch.manual_seed(1)
    for version, floor in (("gauss", 0.27), ("max", 1.0)):
        layer = dcls2d(1, 1, 2, (7, 5), version=version).double()
        nn.init.normal_(layer.SIG)  # type: ignore[arg-type]
        p, w, sig = layer.P[:, 0, 0], layer.weight[0, 0], layer.SIG[:, 0, 0].abs() + floor  # type: ignore[index]
        wanted = torch.zeros(7, 5, dtype=torch.float64)
        for m in range(2):
            d = torch.stack(torch.meshgrid(torch.arange(7) - 3 - p[0, m], torch.arange(5) - 2 - p[1, m], indexing="ij"))
            s = sig[:, m].view(2, 1, 1)
            shape = torch.exp(-0.5 * (d / s).square().sum(0)) if version == "gauss" else F.relu(s - d.abs()).prod(0)
            wanted += w[m] * shape / (shape.sum() + 1e-7)
        torch.testing.assert_close(layer.kernel()[0, 0], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("version", VERSIONS)
def test_one_tap_further_moves_the_kernel_one_tap(version: Version) -> None:
    torch.manual_seed(0)
    layer = dcls2d(1, 1, 3, (15, 13), version=version).double()
    layer.P.data.uniform_(-1, 1)
    before = layer.kernel()
    layer.P.data[0] += 1
    torch.testing.assert_close(layer.kernel()[..., 1:, :], before[..., :-1, :], rtol=1e-10, atol=1e-10)


def test_slope_of_a_position_is_bilinear() -> None:
    layer = dcls1d(1, 1, 1, 7, version="v0").double()
    layer.weight.data.fill_(2.0)
    layer.P.data.fill_(0.3)
    probe = torch.arange(7, dtype=torch.float64) ** 2
    (layer.kernel() * probe).sum().backward()  # type: ignore[no-untyped-call]
    assert layer.P.grad is not None and float(layer.P.grad) == pytest.approx(2.0 * (4**2 - 3**2), rel=1e-12)


@pytest.mark.parametrize("version", VERSIONS)
def test_gradcheck(version: Version) -> None:
    torch.manual_seed(3)
    layer = dcls2d(2, 2, 2, 5, version=version, padding=2).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in layer.named_parameters()]

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


def test_every_form_has_the_shape_of_its_convolution() -> None:
    assert dcls1d(2, 4, 3, 9, padding=4)(torch.randn(2, 2, 10)).shape == (2, 4, 10)
    assert dcls3d(2, 4, 3, 5, padding=2)(torch.randn(1, 2, 6, 5, 4)).shape == (1, 4, 6, 5, 4)
    assert dcls2d(4, 4, 3, 5, stride=2, padding=2, groups=4)(torch.randn(2, 4, 9, 8)).shape == (2, 4, 5, 4)
    line = dcls2d_k1d(2, 2, 3, 9, padding=(0, 4))
    assert line(torch.randn(1, 2, 5, 12)).shape == (1, 2, 5, 12) and line.kernel().shape == (2, 2, 1, 9)


def test_positions_on_one_axis_leave_a_dense_grid_on_the_others() -> None:
    torch.manual_seed(0)
    layer = dcls2_1d(1, 1, 2, (9, 3), axis=0, version="v0")
    assert layer.weight.shape == (1, 1, 6) and layer.P.shape == (1, 1, 1, 6)
    for column in range(3):
        wanted = layer.weight[0, 0, 2 * column : 2 * column + 2].sum().item()
        assert layer.kernel()[0, 0, :, column].sum().item() == pytest.approx(wanted, abs=1e-6)
    assert dcls3_1d(1, 1, 2, (9, 3, 3), axis=0).weight.shape == (1, 1, 18)


def test_state_is_as_large_for_any_window() -> None:
    assert parameters(dcls2d(4, 4, 5, 7)) == parameters(dcls2d(4, 4, 5, 31))


def test_clamp_round_and_recipe() -> None:
    model = tiny()
    groups = parameter_groups(model, 1e-3, 0.05)
    assert [len(groups[1]["params"]), groups[1]["lr"], groups[1]["weight_decay"]] == [2, 5e-3, 0.0]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    layer = next(m for m in model.modules() if isinstance(m, Dcls))
    layer.P.data.fill_(99.0)
    clamp_positions_(model)
    assert layer.P.min().item() == 3.0
    layer.P.data.uniform_(-3, 3)
    layer.round_positions_()
    assert (layer.kernel() != 0).flatten(2).sum(2).max() <= 5
    apart = torch.tensor([0.0, 0.5, 9.0]).view(1, 1, 1, 3)
    assert float(repulsive_loss(apart)) == pytest.approx(0.5 / 3, rel=1e-5)


def test_network_modes_batch_and_state() -> None:
    model, x = tiny().eval(), torch.randn(3, 3, 32, 64)
    y = model(x)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-5, atol=1e-5)
    other = ConvNeXtDcls((2, 1), (8, 16), elements=5, size=7, classes=3).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)
    model.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()


@pytest.mark.parametrize("version", VERSIONS)
def test_compiles_without_breaks(version: Version) -> None:
    layer, x = dcls2d(4, 4, 3, 5, version=version, padding=2), torch.randn(2, 4, 8, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("version", {"version": "v9"}),
        ("groups", {"groups": 3}),
        ("elements", {"elements": 0}),
        ("size", {"size": (0, 5)}),
        ("axes", {"axes": (2,)}),
    ],
)
def test_errors_name_the_argument(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=name):
        Dcls(**{"inputs": 4, "outputs": 4, "elements": 3, "size": (5, 5)} | options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiples of 32"):
        tiny()(torch.zeros(1, 3, 33, 32))
