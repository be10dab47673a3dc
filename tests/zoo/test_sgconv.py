"""SGConv: parameters of published settings, and the equalities that define the convolution."""
from __future__ import annotations

import math
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from models.zoo.counting import parameters
from models.zoo.demos import sgconv as demonstration
from models.zoo.sgconv import SYSTEM, SGConv, SGKernel

Model = TypeVar("Model", bound=nn.Module)


def shaken(model: Model) -> Model:
    """Every parameter away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model


def make(length: int = 20, **options: Any) -> SGConv:
    torch.manual_seed(0)
    return shaken(SGConv(3, length, base=4, **options))


@pytest.mark.parametrize(
    ("variant", "count", "scales", "reach"),
    [("sgconv_256_1m_bi", 328_192, 16, 1_048_576), ("sgconv_128_1k", 57_600, 5, 1024), ("sgconv_128_16k_bi", 98_560, 10, 16_384)],
)
def test_published_figures(variant: str, count: int, scales: int, reach: int) -> None:
    with torch.device("meta"):
        layer = SYSTEM.variants[variant]()
        assert isinstance(layer, SGConv) and parameters(layer) == count
        assert len(layer.kernel.weights) == scales and layer.kernel.whole().shape[-1] == reach
    if variant == "sgconv_256_1m_bi":
        assert sum(parameters(w) for w in [layer.kernel]) == 262_144


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("dim", "length", "base", "channels"), [(4, 64, 8, 1), (3, 100, 16, 2), (2, 10, 16, 1)])
def test_closed_form(dim: int, length: int, base: int, channels: int, bidirectional: bool) -> None:
    layer = SGConv(dim, length, base=base, channels=channels, bidirectional=bidirectional)
    s = 1 + max(0, math.ceil(math.log2(length / base)))
    wanted = s * base * dim * channels * (1 + bidirectional) + channels * dim + dim * (dim * channels + 1)
    assert parameters(layer) == wanted
    longer = SGConv(dim, 2 * length, base=base, channels=channels, bidirectional=bidirectional)
    assert length < base or parameters(longer) - wanted == base * dim * channels * (1 + bidirectional)  # logarithmic


def by_sum(layer: SGConv, u: Tensor) -> Tensor:
    """The convolution sample by sample."""
    length, channels = u.shape[-1], len(layer.d)
    k = layer.kernel(length)
    y = layer.d[..., None] * u[:, None]
    for t in range(length):
        for s in range(length):
            if s <= t:
                y[..., t] += k[:channels, :, t - s] * u[:, None, :, s]
            elif layer.bidirectional:
                y[..., t] += k[channels:, :, s - t - 1] * u[:, None, :, s]
    return y


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("length", "channels"), [(32, 1), (11, 1), (40, 1), (13, 2)])  # whole, cut, padded
def test_fft_is_the_direct_sum(length: int, channels: int, bidirectional: bool) -> None:
    layer = make(bidirectional=bidirectional, channels=channels).double()
    assert layer.kernel.whole().shape[-1] == 32
    u = torch.randn(2, 3, length, dtype=torch.float64)
    with torch.no_grad():
        wanted = by_sum(layer, u)
        torch.testing.assert_close(layer.convolve(u), wanted, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer.float().convolve(u.float()), wanted.float(), rtol=1e-5, atol=2e-6)


def test_kernel_as_in_the_equations() -> None:
    kernel = SGKernel(2, 32, base=4, decay=(2.0, 3.0)).double()
    k = kernel.whole()
    assert len(kernel.weights) == 4 and k.shape == (1, 2, 32)
    m = torch.tensor([2.0, 3.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(k[0, :, :4], kernel.weights[0][0] * m**3)
    torch.testing.assert_close(k[0, :, 4:8], kernel.weights[1][0] * m**2)
    w = kernel.weights[2][0]  # doubled: a quarter of the neighbour, clamped at the border
    near = torch.cat((w[:, :1], w[:, :-1]), 1), torch.cat((w[:, 1:], w[:, -1:]), 1)
    doubled = torch.stack((0.75 * w + 0.25 * near[0], 0.75 * w + 0.25 * near[1]), -1).flatten(1)
    torch.testing.assert_close(k[0, :, 8:16], doubled * m)
    assert k[0, :, 16:].shape[-1] == 16
    later = SGKernel(2, 32, base=4, init_scale=1)
    assert len(later.weights) == 3 and later.whole().shape[-1] == 32 and later.factor(0) == 2


@pytest.mark.parametrize("bidirectional", [False, True])
def test_norm_is_one_at_first_and_frozen(bidirectional: bool) -> None:
    torch.manual_seed(0)
    layer = SGConv(3, 32, base=4, bidirectional=bidirectional)
    norms = [layer.kernel(n).norm(dim=-1) for n in (32, 50, 9)]
    for norm in norms[:2]:
        torch.testing.assert_close(norm, torch.ones_like(norm))
    assert (norms[2] < 1).all()
    z = layer.kernel.z.clone()  # type: ignore[operator]
    other = SGConv(3, 32, base=4, bidirectional=bidirectional)
    other.load_state_dict(shaken(layer).state_dict())
    assert torch.equal(other.kernel.z, z) and torch.equal(other.kernel(32), layer.kernel(32))  # type: ignore[arg-type]
    layer.kernel.renormalize()
    torch.testing.assert_close(layer.kernel(32).norm(dim=-1), torch.ones_like(norms[0]))


def test_causal_without_wrapping_around() -> None:
    layer, u = make().double(), torch.randn(1, 3, 32, dtype=torch.float64)
    moved = u.clone()
    moved[..., 10] += 1
    change = (layer(moved) - layer(u)).abs().sum((0, 1))
    assert change[:10].max() < 1e-12 and change[10:].min() > 1e-6
    both = make(bidirectional=True).double()
    change = (both(moved) - both(u)).abs().sum((0, 1))
    assert change.min() > 1e-6
    late = u.clone()
    late[..., -1] += 1
    assert (layer(late) - layer(u))[..., :-1].abs().max() < 1e-12


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("length", [32, 17, 40])
def test_nearest_is_running_sums_and_dilated_taps(length: int, bidirectional: bool) -> None:
    layer, u = make(stretch="nearest", bidirectional=bidirectional), torch.randn(2, 3, length)
    torch.testing.assert_close(layer.multirate(u), layer.convolve(u), rtol=1e-5, atol=1e-5)
    layer.double()
    torch.testing.assert_close(layer.multirate(u.double()), layer.convolve(u.double()), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="stretch must be"):
        make().multirate(u)


@pytest.mark.parametrize("options", [{"combine": "sum"}, {"start": "cos"}, {"learnable_decay": True}, {"glu": True}, {"dropout": 0.5}])
def test_options(options: dict[str, Any]) -> None:
    layer, u = make(**options), torch.randn(2, 3, 20)
    y = layer.train()(u)
    assert y.shape == u.shape and (not torch.equal(y, layer(u))) == ("dropout" in options)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    assert torch.equal(layer.eval()(u), layer(u))
    k = layer.kernel
    if k.decay is not None:
        nn.init.zeros_(k.decay)
        plain = k.whole()
        nn.init.ones_(k.decay)
        torch.testing.assert_close(k.whole()[..., 5], plain[..., 5] / 6)


def test_sum_and_cosine_are_what_the_docstring_says() -> None:
    kernel = SGKernel(1, 16, base=4, combine="sum", start="cos").double()
    assert len(kernel.weights) == 3
    k = kernel.whole()[0, 0]
    assert k.shape == (16,) and kernel.weights[1][0, 0, 1].item() == pytest.approx(-1)
    torch.testing.assert_close(k[8:], nn.functional.interpolate(kernel.weights[2], size=16, mode="linear")[0, 0, 8:])


def test_gradcheck() -> None:
    torch.manual_seed(0)
    layer = SGConv(2, 6, base=2, bidirectional=True).double()
    u = torch.randn(1, 2, 7, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in layer.named_parameters()]

    def run(u: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (u,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (u, *layer.parameters()), fast_mode=True)


def test_batch_autocast_and_groups() -> None:
    layer, u = make(bidirectional=True, channels=2).eval(), torch.randn(3, 3, 25)
    y = layer(u)
    torch.testing.assert_close(layer(u[1:2]), y[1:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(u.transpose(1, 2).contiguous().transpose(1, 2)), y, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(u).isfinite().all()
    torch.testing.assert_close(layer.bfloat16()(u.bfloat16()).float(), y, rtol=0.1, atol=0.1)
    kernel, other = layer.groups(3e-3, 0.1)
    assert kernel["lr"] == 1e-3 and kernel["weight_decay"] == 0 and len(kernel["params"]) == len(layer.kernel.weights)
    assert len(other["params"]) == 3 and make(mix=False).eval()(torch.randn(2, 3, 9)).shape == (2, 1, 3, 9)


def test_compiles_without_breaks() -> None:
    layer, u = make(), torch.randn(2, 3, 20)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(u), layer(u))


def test_networks_of_the_demonstration() -> None:
    ours, local = (parameters(demonstration.Network(which)) for which in ("sgconv", "local"))
    assert ours == local


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="dim, channels and base"):
        SGConv(0, 16)
    with pytest.raises(ValueError, match="max_length must be"):
        SGConv(2, 0)
    with pytest.raises(ValueError, match="init_scale must be"):
        SGConv(2, 64, init_scale=2)
    with pytest.raises(ValueError, match="combine must be"):
        SGConv(2, 64, combine="mean")
    with pytest.raises(ValueError, match="stretch must be"):
        SGConv(2, 64, stretch="cubic")
    with pytest.raises(ValueError, match="start must be"):
        SGConv(2, 64, start="zeros")
    with pytest.raises(ValueError, match="u must be"):
        SGConv(2, 16)(torch.zeros(1, 3, 16))


def test_macs_grow_as_l_log_l() -> None:
    layer = SGConv(2, 16, base=4, mix=False)
    assert layer.macs() == 3 * 2 * 32 * 5 + 4 * 2 * 17 + 2 * 16  # transforms of 32, complex product, D
    mixed = SGConv(2, 16, base=4)
    assert mixed.macs() - layer.macs() == 4 * 16
    lengths = [2**i for i in range(10, 18)]
    each = [layer.macs(n) / (n * (n.bit_length() + 1)) for n in lengths]
    assert max(each) / min(each) < 1.1
