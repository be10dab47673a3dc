"""OverLoCK: figures of the variants, merging, and what the kernels of ContMix are."""
from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from models.zoo.counting import macs, parameters
from models.zoo.demos import overlock as demonstration
from models.zoo.layers import DilatedReparam
from models.zoo.overlock import (
    BRANCHES,
    SYSTEM,
    ContMix,
    ContMixBlock,
    DynamicConvBlock,
    LayerScale,
    OverLoCK,
    RepConvBlock,
    gather_windows,
    merge_,
    position_bias,
    reparam,
    window_starts,
)

Model = TypeVar("Model", bound=nn.Module)
FIGURES = [
    ("overlock_xt", 17_307_272, 16_453_712, 2.70), ("overlock_t", 34_990_472, 33_467_040, 5.65),
    ("overlock_s", 58_309_772, 56_156_452, 9.89), ("overlock_b", 98_012_968, 94_942_528, 17.10),
]  # fmt: skip


def shaken(model: Model) -> Model:
    """Every parameter and running statistic away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.normal_(std=0.1)
        elif name.endswith("running_var"):
            b.uniform_(0.5, 2)
    return model


def small(drop: float = 0.0) -> OverLoCK:
    torch.manual_seed(0)
    return OverLoCK((8, 8, 16, 16), (1, 1, 1, 1), (2, 1), (1, 2), kernels=(7, 7, 13, 7), projection=16, classes=3, drop=drop)


@pytest.mark.parametrize(("variant", "training", "deployed", "giga"), FIGURES)
def test_published_figures(variant: str, training: int, deployed: int, giga: float) -> None:
    scaled: list[int] = []
    with torch.device("meta"):
        model = SYSTEM.variants[variant]()
        assert parameters(model) == training
        merge_(model)
        assert parameters(model) == deployed and not any(isinstance(m, DilatedReparam) for m in model.modules())
        for layer in model.modules():
            if isinstance(layer, LayerScale):
                layer.register_forward_hook(lambda module, inputs, output: scaled.append(output.numel()))
        counted = macs(model, torch.empty(1, 3, 224, 224)) + sum(scaled)
    assert counted / 1e9 == pytest.approx(giga, abs=5.1e-3)


def test_merged_is_unmerged() -> None:
    model = shaken(small()).double().eval()
    x = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    y = model(x)
    torch.testing.assert_close(merge_(model)(x), y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", sorted(BRANCHES))
def test_branches_fit_their_kernel(kernel: int) -> None:
    layer = shaken(reparam(2, kernel)).eval()
    x = torch.randn(1, 2, 20, 19)
    y = layer(x)
    torch.testing.assert_close(merge_(layer)(x), y, rtol=1e-4, atol=1e-5)
    assert all(r * (k - 1) + 1 <= kernel for k, r in BRANCHES[kernel])


def test_windows_stay_inside() -> None:
    assert window_starts(8, 5).tolist() == [0, 0, 0, 1, 2, 3, 3, 3]
    assert window_starts(5, 5).tolist() == [0] * 5


@pytest.mark.parametrize("kernel", [3, 5])
def test_gathering_and_bias_pixel_by_pixel(kernel: int) -> None:
    height, width = 5, 6
    x, w = torch.randn(1, 2, 3, height, width), torch.randn(1, 2, height, width, kernel**2)
    table = torch.randn(2, 2 * kernel - 1, 2 * kernel - 1)
    wanted, bias = torch.zeros_like(x), torch.zeros(2, height, width, kernel**2)
    for i in range(height):
        for j in range(width):
            top, left = (min(max(p - kernel // 2, 0), n - kernel) for p, n in ((i, height), (j, width)))
            for k in range(kernel**2):
                row, column = top + k // kernel, left + k % kernel
                wanted[..., i, j] += x[..., row, column] * w[:, :, i, j, k, None]
                bias[:, i, j, k] = table[:, row - i + kernel - 1, column - j + kernel - 1]
    torch.testing.assert_close(gather_windows(x, w, kernel), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(position_bias(table, height, width, kernel), bias)


def test_kernels_sum_to_one_and_keep_a_constant() -> None:
    layer = shaken(ContMix(16, heads=2)).double().eval()
    q, ctx = torch.randn(2, 2, 16, 8, 9, dtype=torch.float64)
    first, second = layer.kernels(q, ctx)
    assert first.shape == (2, 4, 8, 9, 25) and second.shape == (2, 4, 8, 9, 49)
    for w in (first, second):
        torch.testing.assert_close(w.sum(-1), torch.ones_like(w[..., 0]), rtol=1e-10, atol=0)
        assert (w >= 0).all() and w.std() > 1e-3
    constant = torch.randn(2, 16, 1, 1, dtype=torch.float64).expand(2, 16, 8, 9)
    torch.testing.assert_close(layer.mix(q, ctx, constant), constant, rtol=1e-10, atol=1e-12)


def test_zero_affinity_is_a_mean_over_the_window() -> None:
    layer, x = ContMix(8, heads=1).double().eval(), torch.randn(1, 8, 9, 10, dtype=torch.float64)
    nn.init.zeros_(layer.weight_proj.weight)
    nn.init.zeros_(layer.weight_proj.bias)  # type: ignore[arg-type]
    mixed = layer.mix(x, x, x)
    torch.testing.assert_close(mixed[0, :4, 0, 9], x[0, :4, 0:5, 5:10].mean((1, 2)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mixed[0, 4:, 4, 5], x[0, 4:, 1:8, 2:9].mean((1, 2)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mixed[0, 4:, 0, 0], x[0, 4:, :7, :7].mean((1, 2)), rtol=1e-10, atol=1e-12)


def test_kernels_know_the_whole_map_but_gather_near() -> None:
    layer, x = shaken(ContMix(8, heads=1)).double().eval(), torch.randn(1, 8, 21, 21, dtype=torch.float64)
    ctx, value = x.clone(), x.clone()
    ctx[..., 0, 0] += 5
    assert not torch.allclose(layer.kernels(x, ctx)[1][0, :, 20, 20], layer.kernels(x, x)[1][0, :, 20, 20], rtol=1e-6)
    value[..., 0, 0] += 5
    changed = (layer.mix(x, x, value) != layer.mix(x, x, x)).any(1)[0].nonzero()
    assert changed.max() == 3  # clamped windows of side 7 that hold (0, 0)


def test_small_maps_are_enlarged() -> None:
    layer = shaken(ContMix(8, heads=1)).eval()
    for size in ((1, 1), (3, 7), (6, 5), (7, 7)):
        x = torch.randn(2, 8, *size)
        assert layer(x, x, x).shape == x.shape
    constant = torch.randn(2, 8, 1, 1).expand(2, 8, 3, 5)
    torch.testing.assert_close(layer.mix(torch.randn(2, 8, 3, 5), torch.randn(2, 8, 3, 5), constant), constant, rtol=1e-5, atol=1e-6)


def test_cost_is_linear_in_pixels() -> None:
    with torch.device("meta"):
        layer = ContMix(16, heads=1)
        costs = [macs(layer.eval(), *[torch.empty(1, 16, 14 * n, 14)] * 3) for n in (1, 2, 3)]
    assert costs[2] - costs[1] == costs[1] - costs[0]


@pytest.mark.parametrize("which", ["gather", "bias", "mix", "contmix"])
def test_gradcheck(which: str) -> None:
    torch.manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    if which == "gather":
        assert torch.autograd.gradcheck(lambda x, w: gather_windows(x, w, 3), (leaf(1, 2, 2, 3, 4), leaf(1, 2, 3, 4, 9)))
        return
    if which == "bias":
        assert torch.autograd.gradcheck(lambda t: position_bias(t, 3, 4, 3), (leaf(2, 5, 5),))
        return
    layer = shaken(ContMix(4, heads=1)).double().eval()
    inputs = (leaf(1, 4, 7, 8), leaf(1, 4, 7, 8), leaf(1, 4, 7, 8))
    assert torch.autograd.gradcheck(layer.mix if which == "mix" else layer, inputs, fast_mode=True)


def test_network_modes_batch_and_state() -> None:
    model, x = shaken(small()).eval(), torch.randn(3, 3, 48, 65)
    y = model(x)
    assert isinstance(y, Tensor) and y.shape == (3, 3)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-4)
    other = small().eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), y, rtol=1e-6, atol=1e-6)
    both = model.train()(x)
    assert set(both) == {"main", "aux"} and both["aux"].shape == (3, 3)
    (both["main"].square().sum() + both["aux"].square().sum()).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.eval()(x).isfinite().all()


def test_overview_guides_the_focus() -> None:
    """Context enters every dynamic block: the first takes it as it comes, the others mix its start back in."""
    model, x = shaken(small()).eval(), torch.randn(1, 3, 64, 64)
    maps, overview = model.features(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 16), (8, 8, 8), (16, 4, 4), (20, 2, 2)] and overview.shape == (1, 16, 2, 2)
    blocks = [m for m in model.modules() if isinstance(m, DynamicConvBlock)]
    assert [b.x_scale is None for b in blocks] == [True, False, False]
    block = blocks[1]
    x, ctx, start = torch.randn(1, 16, 14, 14), torch.randn(1, 4, 14, 14), torch.randn(1, 4, 14, 14)
    one, two = block(x, ctx, start), block(x, ctx, start + 1)
    assert one[0].shape == x.shape and one[1].shape == ctx.shape and not torch.allclose(one[0], two[0])
    assert torch.equal(blocks[0](x, ctx, start)[0], blocks[0](x, ctx, start + 1)[0])


def test_blocks_and_stochastic_depth() -> None:
    x = torch.randn(2, 16, 9, 8)
    for block in (ContMixBlock(16), RepConvBlock(16, 7)):
        y = shaken(block).eval()(x)
        assert y.shape == x.shape and torch.equal(block(x.contiguous(memory_format=torch.channels_last)).isfinite(), y.isfinite())
    dropped, image = shaken(small(0.9)), torch.randn(4, 3, 48, 48)
    dropped.train()
    for m in dropped.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    assert not torch.equal(dropped(image)["main"], dropped(image)["main"])
    dropped.eval()
    assert torch.equal(dropped(image), dropped(image))


def test_baseline_of_the_demonstration_is_no_smaller_and_blind() -> None:
    x = torch.zeros(1, 2, demonstration.SIDE, demonstration.SIDE)
    ours, plain = (demonstration.network(side).eval() for side in (True, False))
    assert parameters(plain) >= parameters(ours) and macs(plain, x) >= macs(ours, x)
    moved = x.clone()
    moved[..., : demonstration.PATCH, : demonstration.PATCH] += 1
    far = (..., slice(demonstration.PATCH + 4, None), slice(demonstration.PATCH + 4, None))
    assert torch.equal(plain(moved)[far], plain(x)[far])


def test_compiles_without_breaks() -> None:
    layer, x = shaken(ContMix(8, heads=1)).eval(), torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x, x, x), layer(x, x, x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="heads must be"):
        ContMix(12, heads=2)
    with pytest.raises(ValueError, match="small must be"):
        ContMix(8, heads=1, small=4)
    with pytest.raises(ValueError, match="kernel must be"):
        reparam(8, 9)
    with pytest.raises(ValueError, match="w must be"):
        gather_windows(torch.zeros(1, 1, 1, 4, 4), torch.zeros(1, 1, 4, 4, 25), 5)
    with pytest.raises(ValueError, match="dims, depths and kernels"):
        OverLoCK((8, 8), (1, 1), (1, 1), (1, 1))
