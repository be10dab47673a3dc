"""AttNet: figures of the variants, and what attentive convolution is and is not."""
from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.attnet import GLU, SITS, SYSTEM, ATConv, AttNet, RMSNorm2d, SiT, SiTBlock, TokenATConv
from models.zoo.counting import macs, parameters
from models.zoo.layers import Attention

Model = TypeVar("Model", bound=nn.Module)
FIGURES = [
    ("xxs", 2_853_556, 0.531), ("xs", 5_554_902, 1.004), ("s", 7_681_316, 1.327), ("t1", 13_714_900, 2.422), ("t2", 27_010_782, 5.090),
    ("t3", 49_175_682, 9.382), ("t4", 87_320_214, 16.726),
]  # fmt: skip
SIT_FIGURES = [
    ("sit_s_2", 32.865, 6.06), ("sit_b_2", 130.316, 23.01), ("sit_l_2", 457.841, 80.70), ("sit_xl_2", 674.835, 118.6),
    ("sit_atconv_s_2", 31.097, 5.01), ("sit_atconv_b_2", 123.239, 20.01), ("sit_atconv_l_2", 432.677, 71.09),
    ("sit_atconv_xl_2", 637.678, 104.96), ("sit_hybrid_xl_2", 656.257, None),
]  # fmt: skip


def shaken(model: Model) -> Model:
    """Every parameter and running statistic away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.normal_()
        elif name.endswith("running_var"):
            b.uniform_(0.5, 2)
    return model


def small(**options: Any) -> AttNet:
    torch.manual_seed(0)
    return AttNet((1, 1, 2, 1), (8, 12, 16, 20), classes=3, **options)


@pytest.mark.parametrize(("variant", "count", "giga"), FIGURES)
def test_published_figures(variant: str, count: int, giga: float) -> None:
    with torch.device("meta"):
        model = SYSTEM.variants[f"attnet_{variant}"]()
        assert parameters(model) == count
        # The figures of T2 and T4 fit only if the mean of a kernel counts its k² elements; our reading, at most 0.0002 G.
        means = sum(9 * m.alpha.numel() for m in model.modules() if isinstance(m, ATConv))
        assert (macs(model.eval(), torch.empty(1, 3, 224, 224)) + means) / 1e9 == pytest.approx(giga, abs=5.001e-4)


@pytest.mark.parametrize(("variant", "millions", "giga"), SIT_FIGURES)
def test_published_figures_of_sit(variant: str, millions: float, giga: float | None) -> None:
    with torch.device("meta"):
        model = SYSTEM.variants[variant]()
        assert parameters(model) / 1e6 == pytest.approx(millions, abs=5.1e-4)
        if giga is not None:
            inputs = torch.empty(1, 4, 32, 32), torch.empty(1), torch.empty(1, dtype=torch.long)
            assert macs(model, *inputs) / 1e9 == pytest.approx(giga, abs=0.051 if giga == 118.6 else 0.0051)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_closed_forms(k: int) -> None:
    c, side = 8, 12
    layer = ATConv(c, k)
    assert parameters(layer) == 3 * (c * c + c) + k**4 + k**2 + c
    assert macs(layer, torch.zeros(1, c, side, side)) == side**2 * c * (3 * c + k**2) + c * k**4


def by_unfold(layer: ATConv, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and kernels from the equations, bin by bin."""
    k, (b, c, height, width) = layer.kernel, x.shape
    t = layer.wk(x).flatten(2)
    n, bins = height * width, k * k
    pooled = torch.stack([t[..., j * n // bins : -(-(j + 1) * n // bins)].mean(-1) for j in range(bins)], -1)
    k0 = layer.wg(F.gelu(pooled))
    kernels = k0 - torch.sigmoid(layer.alpha).view(1, c, 1) * k0.mean(-1, keepdim=True)
    patches = F.unfold(layer.wv(x), k, padding=k // 2).reshape(b, c, bins, n)
    return layer.wo(torch.einsum("bckn,bck->bcn", patches, kernels).reshape(x.shape)), kernels


@pytest.mark.parametrize(("size", "k"), [((9, 9), 3), ((7, 5), 3), ((2, 3), 3), ((6, 8), 5)])
def test_batch_as_groups_is_unfold(size: tuple[int, int], k: int) -> None:
    layer, x = shaken(ATConv(6, k)), torch.randn(3, 6, *size)
    wanted, kernels = by_unfold(layer, x)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
    found = layer.kernels(layer.wk(x).flatten(2))
    assert found.shape == (3, 6, k, k)
    torch.testing.assert_close(found.flatten(2), kernels, rtol=1e-5, atol=1e-5)


def test_pooling_is_one_dimensional() -> None:
    """A bin of a 6 × 6 map is four pixels of a row's course, not a 2 × 2 square."""
    layer = ATConv(1)
    t = torch.arange(36.0).view(1, 1, 36)
    with torch.no_grad():
        layer.wg.weight.copy_(torch.eye(9))
        layer.wg.bias.zero_()
        layer.alpha.fill_(-1e4)
    torch.testing.assert_close(layer.kernels(t).flatten(), F.gelu(t.view(9, 4).mean(1)))


def test_alpha_at_its_limits() -> None:
    layer, x = shaken(ATConv(4)).double(), torch.randn(2, 4, 9, 9, dtype=torch.float64)
    t = layer.wk(x).flatten(2)
    k0 = layer.wg(F.gelu(F.adaptive_avg_pool1d(t, 9)))
    layer.alpha.data.fill_(-1e4)
    assert torch.equal(layer.kernels(t).flatten(2), k0)
    layer.alpha.data.fill_(1e4)
    assert layer.kernels(t).sum((2, 3)).abs().max() < 1e-12
    flat = torch.randn(2, 4, 1, 1, dtype=torch.float64).expand(2, 4, 9, 9)  # no DC gain: inside, only Wo's bias is left
    inner = layer(flat)[..., 1:-1, 1:-1]
    assert layer.wo.bias is not None
    torch.testing.assert_close(inner, layer.wo.bias.view(1, 4, 1, 1).expand_as(inner), rtol=1e-10, atol=1e-12)
    layer.alpha.data.zero_()
    torch.testing.assert_close(layer.kernels(t).flatten(2).mean(2), k0.mean(2) / 2)


def test_constant_map_has_equal_bins() -> None:
    layer = ATConv(4)
    t = layer.wk(torch.randn(2, 4, 1, 1).expand(2, 4, 7, 5)).flatten(2)
    bins = F.adaptive_avg_pool1d(t, 9)
    torch.testing.assert_close(bins, bins[..., :1].expand_as(bins), rtol=1e-5, atol=1e-6)


def test_samples_do_not_see_each_other() -> None:
    layer, x = shaken(ATConv(6)), torch.randn(4, 6, 8, 8)
    other = x.clone()
    other[1:] = torch.randn(3, 6, 8, 8)
    torch.testing.assert_close(layer(x)[0], layer(other)[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(layer(x)[1], layer(other)[1])


def test_tokens_are_pixels_in_rows() -> None:
    tokens, maps = shaken(TokenATConv(4)).double(), ATConv(4).double()
    state = {key: v.view(4, 4, 1, 1) if key in ("wk.weight", "wv.weight", "wo.weight") else v for key, v in tokens.state_dict().items()}
    maps.load_state_dict(state)
    maps.approximate = "tanh"
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(tokens(x.flatten(2).transpose(1, 2)), maps(x).flatten(2).transpose(1, 2), rtol=1e-10, atol=1e-12)


def test_glu_and_rms_as_in_the_equations() -> None:
    assert GLU(240, 4).fc2.in_channels == int(2 * 960 / 3) == 640 and GLU(80, 8).fc2.in_channels == 426
    layer, x = shaken(GLU(6, 4, rms=True)).double(), torch.randn(2, 6, 5, 5, dtype=torch.float64)
    y = layer.fc1(x)
    u = F.gelu(layer.dw(y[:, :16])) * y[:, 16:]
    norm = layer.norm
    assert isinstance(norm, RMSNorm2d)
    u = u / (u.pow(2).mean(1, keepdim=True) + 1e-6).sqrt() * norm.weight.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), layer.fc2(u), rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    layer = shaken(ATConv(2)).double()
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in layer.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


@pytest.mark.parametrize("options", [{}, {"layer_scale": True, "rms": True}])
def test_network_modes_batch_and_state(options: dict[str, bool]) -> None:
    model, x = shaken(small(**options)).eval(), torch.randn(3, 3, 64, 50)
    y = model(x)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-4)
    other = small(**options).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)
    model.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()
    dropped = shaken(small(drop=0.5, **options)).train()
    assert not torch.equal(dropped(x), dropped(x)) and torch.equal(dropped.eval()(x), dropped(x))
    assert len(model.no_weight_decay()) == 5
    assert not any(p.any() for n, p in small(**options).named_parameters() if n.endswith(("alpha", "bias")))


@pytest.mark.parametrize("mixer", ["attention", "atconv", "hybrid"])
def test_sit_runs(mixer: Any) -> None:
    torch.manual_seed(0)
    model = SiT(3, 8, 2, mixer=mixer, side=12, classes=5)
    x, time, label = torch.randn(3, 4, 12, 12), torch.rand(3), torch.tensor([0, 4, 5])
    assert not model(x, time, label).any()  # the last layer starts at zero
    shaken(model)
    y = model(x, time, label)
    assert y.shape == x.shape
    torch.testing.assert_close(model(x[1:2], time[1:2], label[1:2]), y[1:2], rtol=1e-4, atol=1e-4)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    kinds = [isinstance(b.mixer, TokenATConv) for b in model.blocks]
    assert kinds == {"attention": [False] * 3, "atconv": [True] * 3, "hybrid": [False, True, False]}[mixer]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x, time, label).isfinite().all()


def test_patches_of_sit_lie_where_they_were() -> None:
    """Without blocks, what goes in at one patch comes out at that patch only."""
    torch.manual_seed(0)
    model = shaken(SiT(0, 8, 2, side=8))
    x, time, label = torch.randn(1, 4, 8, 8), torch.rand(1), torch.tensor([1])
    other = x.clone()
    other[..., 2:4, 6:8] += 1
    changed = (model(x, time, label) != model(other, time, label)).any(1)[0].nonzero()
    assert changed.tolist() == [[2, 6], [2, 7], [3, 6], [3, 7]]
    assert parameters(SiTBlock(8, 2, False)) - parameters(SiTBlock(8, 2, True)) == 8 * 8 - 90
    assert set(SITS) == {"s", "b", "l", "xl"}


def test_attention_as_in_the_equation() -> None:
    torch.manual_seed(0)
    layer, x = Attention(6, 2).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    q, k, v = layer.qkv(x).split(6, 2)
    heads = []
    for h in (slice(0, 3), slice(3, 6)):
        heads.append((q[..., h] @ k[..., h].transpose(1, 2) / 3**0.5).softmax(-1) @ v[..., h])
    torch.testing.assert_close(layer(x), layer.proj(torch.cat(heads, -1)), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="heads must be"):
        Attention(6, 4)


def test_compiles_without_breaks() -> None:
    layer, x = shaken(ATConv(8)), torch.randn(2, 8, 9, 7)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="kernel must be"):
        ATConv(8, 4)
    with pytest.raises(ValueError, match="dim must be"):
        ATConv(0)
    with pytest.raises(ValueError, match="expand must"):
        GLU(1, 0.5)
    with pytest.raises(ValueError, match="depths and expand"):
        AttNet((1, 1), (8,))
    with pytest.raises(ValueError, match="mixer must be"):
        SiT(1, 8, 2, mixer="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="side must be"):
        SiT(1, 8, 2, side=7)
    with pytest.raises(ValueError, match="x must have a square"):
        TokenATConv(4)(torch.zeros(1, 5, 4))
    with pytest.raises(ValueError, match="x must be"):
        SiT(1, 8, 2)(torch.zeros(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, dtype=torch.long))
