"""DiMR: figures of the variants, and what time does in the norms."""
from __future__ import annotations

import math
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.demos import dimr as demonstration
from models.zoo.dimr import (
    MLP,
    SYSTEM,
    Branch,
    BranchSpec,
    ConvNeXtBlock,
    DiMR,
    TDLayerNorm,
    TDRMSNorm,
    TimeDependent,
    TransformerBlock,
    Upsample,
    coarse,
    loss,
)

Model = TypeVar("Model", bound=nn.Module)
LOW = BranchSpec(kind="transformer", dim=8, depth=3, side=4, patch=2, heads=2)
HIGH = BranchSpec(kind="conv", dim=6, depth=2, side=8)
FIGURES = [("dimr_xl_2r", 505_046_408, 160.2, 155.23), ("dimr_g_2r", 1_056_352_904, 331.1, 322.42)]


def shaken(model: Model) -> Model:
    """Every parameter away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model


def small(**options: Any) -> DiMR:
    torch.manual_seed(0)
    return DiMR((LOW, HIGH), size=8, classes=5, **options)


def inputs(n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 4, 8, 8, generator=generator), torch.tensor([1, 400, 1000, 7])[:n], torch.tensor([0, 5, 3, 1])[:n]


@pytest.mark.parametrize(("variant", "count", "giga", "without"), FIGURES)
def test_published_figures(variant: str, count: int, giga: float, without: float) -> None:
    with torch.device("meta"):
        model = SYSTEM.variants[variant]()
        assert isinstance(model, DiMR) and parameters(model) == count
        x = torch.empty(1, 4, 32, 32), torch.empty(1), torch.empty(1, dtype=torch.long)
        outputs = model(*x)
        assert [tuple(y.shape) for y in outputs] == [(1, 4, 16, 16), (1, 4, 32, 32)]
        counted = macs(model, *x)
    assert counted / 1e9 == pytest.approx(giga, abs=0.051)
    blocks = [m for m in model.modules() if isinstance(m, TransformerBlock)]
    products = len(blocks) * 2 * 257**2 * blocks[0].attention.proj.in_features
    assert (counted - products) / 1e9 == pytest.approx(without, abs=0.0051)


def test_pieces_of_xl() -> None:
    with torch.device("meta"):
        model = SYSTEM.variants["dimr_xl_2r"]()
    low, high = model.branches  # type: ignore[misc]
    assert isinstance(low, Branch) and isinstance(high, Branch)
    assert (parameters(low), parameters(high)) == (396_252_484, 108_793_924)
    assert (len(low.blocks), len(high.blocks)) == (39, 21)
    assert (parameters(low.blocks[0]), parameters(high.blocks[0])) == (9_229_440, 1_410_720)
    assert (parameters(low.skips[0]), parameters(high.skips[0])) == (1_844_160, 461_280)
    assert high.upsample is not None and parameters(high.upsample) == 74_040_960
    times = [m for m in model.modules() if isinstance(m, TimeDependent)]
    assert len(times) == 107 and sum(parameters(t) for t in times) == 662_400
    d = 960  # a block's two norms against adaLN-Zero
    block = sum(parameters(m) for m in low.blocks[0].modules() if isinstance(m, TimeDependent))
    assert block == 8 * d == 7_680 and 6 * d * d + 6 * d > 700 * block


def test_time_dependent_vector() -> None:
    theta = shaken(TimeDependent(5, 1.0)).double()
    tau = torch.tensor([-1.0, 0.2, 1.0], dtype=torch.float64)
    s = 1 / (1 + torch.exp(-((theta.w + 1) * tau[1] + theta.b)))
    torch.testing.assert_close(theta(tau)[1], s * theta.p0 + (1 - s) * theta.p1, rtol=1e-12, atol=1e-14)
    assert theta(tau).shape == (3, 5) and torch.equal(theta(tau[2]), theta(tau)[2])
    assert torch.equal(theta(torch.tensor(1e4)), theta.p0) and torch.equal(theta(torch.tensor(-1e4)), theta.p1)
    nn.init.constant_(theta.w, -1)
    nn.init.zeros_(theta.b)
    middle = ((theta.p0 + theta.p1) / 2).expand(3, 5)
    torch.testing.assert_close(theta(tau), middle, rtol=1e-12, atol=1e-14)


def test_fresh_norms_do_not_depend_on_time() -> None:
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    root = x / x.square().mean(-1, keepdim=True).sqrt()
    for tau in (torch.tensor(0.3).double(), torch.tensor([-1.0, 0, 1]).double()):
        torch.testing.assert_close(TDRMSNorm(6).double()(x, tau), root, rtol=1e-7, atol=1e-9)  # 1e-8 in its denominator
        torch.testing.assert_close(TDLayerNorm(6).double()(x, tau), F.layer_norm(x, (6,)), rtol=1e-10, atol=1e-12)


def test_norms_and_mlp_as_in_the_equations() -> None:
    x, tau = torch.randn(2, 3, 3, 4, dtype=torch.float64), torch.tensor([-0.5, 0.8], dtype=torch.float64)
    norm = shaken(TDLayerNorm(4)).double()
    wanted = [F.layer_norm(x[i], (4,)) * norm.scale(tau[i]) + norm.shift(tau[i]) for i in range(2)]
    torch.testing.assert_close(norm(x, tau), torch.stack(wanted), rtol=1e-10, atol=1e-12)
    mlp = shaken(MLP(4)).double()
    y = torch.stack([x[i] / (x[i].norm(dim=-1, keepdim=True) / 2 + 1e-8) * mlp.norm.scale(tau[i]) for i in range(2)])
    torch.testing.assert_close(mlp(x, tau), mlp.w2(F.gelu(mlp.w0(y)) * mlp.w1(y)), rtol=1e-10, atol=1e-12)


def test_residual_of_the_convolution_alone() -> None:
    block, x, tau = shaken(ConvNeXtBlock(4)).double(), torch.randn(1, 9, 9, 4, dtype=torch.float64), torch.tensor(0.1).double()
    y = x + block.dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(block(x, tau), y + block.mlp(y, tau), rtol=1e-12, atol=1e-12)


def test_sub_pixels_are_row_column_major() -> None:
    up, tau = shaken(Upsample(5, 3, 2)).double(), torch.tensor(0.1).double()
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    flat = up.linear(up.norm1(x, tau))
    wanted = torch.zeros(1, 4, 8, 3, dtype=torch.float64)
    for i in range(2):
        for j in range(2):
            for c in range(3):
                wanted[0, i::2, j::2, c] = flat[0, :, :, (i * 2 + j) * 3 + c].detach()
    torch.testing.assert_close(up(x, tau), up.norm2(wanted, tau), rtol=1e-12, atol=1e-12)


def test_long_skips_by_hand() -> None:
    branch = shaken(Branch(BranchSpec(kind="conv", dim=4, depth=4, side=8), None, 4, 8, 5)).double()
    x, tau, label = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor(0.1).double(), torch.tensor([0, 1])
    y0 = branch.patch(x).permute(0, 2, 3, 1) + branch.position.weight.view(8, 8, 4)
    b, s = branch.blocks, branch.skips
    y1 = b[0](y0, tau)
    y2 = b[1](y1, tau)
    y3 = b[2](y2, tau)
    y4 = b[3](s[0](torch.cat((y3, y2), -1)), tau)
    y5 = b[4](s[1](torch.cat((y4, y1), -1)), tau)
    noise, maps = branch(x, None, tau, label)
    torch.testing.assert_close(maps, torch.cat((y0, y1, y2, y3, y4, y5), -1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(noise, branch.out(branch.norm(y5, tau).permute(0, 3, 1, 2)))
    assert maps.shape[-1] == branch.spec.width == 24


def test_one_time_is_that_time_for_each() -> None:
    model, (x, _, label) = shaken(small()), inputs()
    for a, b in zip(model(x, torch.tensor(400), label), model(x, torch.full((3,), 400), label), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_time_class_and_lower_branch_matter() -> None:
    model, (x, step, label) = shaken(small()), inputs()
    first = model(x, step, label)
    for changed in (model(x, step + 50, label), model(x, step, (label + 1) % 6)):
        assert all(not torch.allclose(a, b) for a, b in zip(first, changed, strict=True))


def test_block_grad_detaches() -> None:
    for blocked in (False, True):
        model = shaken(small(block_grad=blocked))
        model(*inputs())[1].sum().backward()
        low = [p.grad for p in model.branches[0].parameters()]
        assert all(g is None for g in low) == blocked


def test_three_resolutions_and_shrunk_latents() -> None:
    specs = (BranchSpec(kind="transformer", dim=4, depth=1, side=2, patch=2), HIGH, BranchSpec(kind="conv", dim=4, depth=1, side=16))
    outputs = DiMR(specs, size=16)(torch.randn(1, 4, 16, 16), torch.tensor(5), torch.tensor([1000]))
    assert [y.shape[-1] for y in outputs] == [2, 8, 16]
    branch = Branch(HIGH, None, 4, 16, 5)
    x = torch.randn(1, 4, 16, 16)
    alone = Branch(HIGH, None, 4, 8, 5)
    alone.load_state_dict(branch.state_dict())
    args = (None, torch.tensor(0.0), torch.tensor([0]))
    assert torch.equal(branch(x, *args)[0], alone(F.avg_pool2d(x, 2), *args)[0])


def test_coarse_noise_and_loss() -> None:
    noise = torch.randn(4, 4, 32, 32)
    low = coarse(noise, 16)
    assert low.var().item() == pytest.approx(1, abs=0.08)
    torch.testing.assert_close(low[0, 0, 1, 2], noise[0, 0, 2:4, 4:6].sum() / 2)
    zeros = [torch.zeros(4, 4, 16, 16), torch.zeros(4, 4, 32, 32)]
    torch.testing.assert_close(loss(zeros, noise), low.square().mean() / 4 + noise.square().mean())
    assert loss([low, noise], noise) == 0


@pytest.mark.parametrize("kind", ["time", "block"])
def test_gradcheck(kind: str) -> None:
    tau = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    if kind == "time":
        assert torch.autograd.gradcheck(shaken(TimeDependent(3, 1.0)).double(), (tau,))
        return
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(shaken(ConvNeXtBlock(3)).double(), (x, tau), fast_mode=True)


def test_modes_batch_and_state() -> None:
    model, (x, step, label) = shaken(small()), inputs()
    outputs = model.train()(x, step, label)
    assert all(torch.equal(a, b) for a, b in zip(outputs, model.eval()(x, step, label), strict=True))
    for a, b in zip(model(x[1:2], step[1:2], label[1:2]), outputs, strict=True):
        torch.testing.assert_close(a, b[1:2], rtol=1e-4, atol=1e-4)
    for a, b in zip(model(x.contiguous(memory_format=torch.channels_last), step, label), outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    other = small()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x, step, label)[1], outputs[1])
    loss(outputs, x).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(y.isfinite().all() for y in model(x, step, label))
    fresh = small()
    weight = torch.cat([m.weight.flatten() for m in fresh.modules() if isinstance(m, nn.Linear | nn.Embedding)])
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("which", ["norm", "conv", "transformer"])
def test_compiles_without_breaks(which: str) -> None:
    tau = torch.tensor([0.1, -0.4])
    layer = {"norm": TDLayerNorm(8), "conv": ConvNeXtBlock(8), "transformer": TransformerBlock(8, 2)}[which]
    x = torch.randn(2, 4, 4, 8) if which != "transformer" else torch.randn(2, 5, 8)
    torch.testing.assert_close(torch.compile(shaken(layer), fullgraph=True, backend="eager")(x, tau), layer(x, tau))


def test_networks_of_the_demonstration() -> None:
    td, ada, static = (parameters(demonstration.network(which)) for which in ("td", "ada", "static"))
    d, vectors = demonstration.DIM, demonstration.BLOCKS + 2
    assert td - static == 3 * d * vectors and ada - static == demonstration.BLOCKS * (3 * d * d + 3 * d + 9 * d + d * d + d)
    assert math.isclose((ada - static) / (td - static), 22, abs_tol=1)


def test_errors_name_the_argument() -> None:
    x, step, label = inputs()
    with pytest.raises(ValueError, match="specs must end"):
        DiMR((LOW,), size=8)
    with pytest.raises(ValueError, match="spec must have"):
        DiMR((BranchSpec(kind="conv", dim=4, depth=1, side=3), HIGH), size=8)
    with pytest.raises(ValueError, match="spec must be"):
        DiMR((BranchSpec(kind="mlp", dim=4, depth=1, side=8),), size=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x must be"):
        small()(x[:, :3], step, label)
    with pytest.raises(ValueError, match="step must be"):
        small()(x, step[:2], label)
    with pytest.raises(ValueError, match="weights must be"):
        loss([x], x)
