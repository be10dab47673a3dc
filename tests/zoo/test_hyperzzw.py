"""HyperZ·Z·W: sizes of the authors' blocks, and what each operator depends on."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.demos import hyperzzw as demonstration
from models.zoo.hyperzzw import (
    RGU,
    SYSTEM,
    GroupStd,
    HyperChannel,
    HyperInteraction,
    SFNEBlock,
    SlowNet,
    Terminator,
    ZZWLocal,
    batch_std,
    instance_std,
    zzw_2e,
    zzw_g,
)

BLOCKS = [53_377, 57_824, 105_188, 253_580, 863_996]


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def block(**options: Any) -> SFNEBlock:
    torch.manual_seed(0)
    return SFNEBlock(2, 6, 9, **({"hidden": 6, "hidden_l": 4} | options)).double()


def small(**options: Any) -> Terminator:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"layers": (2, 1, 1), "earlier": (0, 0, 1), "drops": (0.0, 0.0, 0.0), "hidden": 6, "hidden_l": 4}
    return Terminator((6, 2, 2), **({"inputs": 2, "size": 9, "classes": 3} | shape | options)).double()


def test_sizes_of_the_blocks() -> None:
    with torch.device("meta"):
        model = Terminator()
    assert [parameters(b) for b in model.blocks] == BLOCKS
    assert parameters(model) == sum(BLOCKS) + 288 * 10 + 10 == 1_336_855
    with torch.device("meta"):
        assert parameters(SYSTEM.variants["terminator_cifar100"]()) == sum(BLOCKS) + 289 * 100


def test_macs_of_the_products() -> None:
    x = torch.empty(1, 4, 8, 8, device="meta")
    w = torch.empty(4, 8, 8, device="meta")

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return zzw_g(w, x, x)

    assert macs(Product(), x) == 4 * 8**3
    assert macs(RGU(4, 8).to("meta"), x) == 4 * 16 * 64


def test_zzw_2e_is_quadratic() -> None:
    w, z = double(4, 5), double(3, 4, 5)
    torch.testing.assert_close(zzw_2e(w, 3 * z), 9 * zzw_2e(w, z), rtol=1e-12, atol=0)
    assert torch.equal(zzw_2e(torch.ones_like(w), z), z * z)


def test_zzw_g_entry_by_entry() -> None:
    w, x, z = double(2, 4, 4), double(3, 2, 4, 4), double(3, 2, 4, 4)
    wanted = torch.einsum("ncik,cik,nckj->ncij", x, w, z)
    torch.testing.assert_close(zzw_g(w, x, z), wanted, rtol=1e-12, atol=1e-13)


def test_slow_network_as_in_the_equations() -> None:
    torch.manual_seed(0)
    net = SlowNet(3, 2, 4, 2).double()
    nn.init.normal_(net.bias)
    line = torch.linspace(-1, 1, 3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            c = torch.stack((line[i], line[j]))
            h = net.filters[0](c).sin()
            for level in (0, 1):
                h = net.filters[level + 1](c).sin() * net.linears[level](h) + net.bias[3 * i + j]
            torch.testing.assert_close(net()[:, i, j], net.out(h), rtol=1e-10, atol=1e-12)
    assert SlowNet(7, 1, 4, 1, axes=1)().shape == (1, 7)


def test_start_of_the_slow_network() -> None:
    torch.manual_seed(0)
    net, twice = SlowNet(16, 3, 64, 2), SlowNet(16, 3, 64, 2, omega=2.0)
    for level in range(3):  # mean of |uniform ±1/sqrt 2| times 2 pi Gamma(6 / (l + 1))
        mean = 2 * torch.pi * 6 / (level + 1) * 0.5 * 2**-0.5
        assert float(net.filters[level].weight.detach().abs().mean()) == pytest.approx(mean, rel=0.3)  # type: ignore[operator]
        assert float(twice.filters[level].weight.detach().abs().mean()) == pytest.approx(2 * mean, rel=0.3)  # type: ignore[operator]
    assert net.out.weight.abs().max() <= (3 / 64) ** 0.5 / 16 + 1e-7
    assert (net.linears[0].bias == 1).all() and not net.out.bias.any()  # type: ignore[union-attr]


def test_parameters_grow_with_the_kernel_by_bias_maps_only() -> None:
    for axes in (1, 2):
        counts = [parameters(SlowNet(k, 4, 8, 2, axes=axes)) - k**axes for k in (3, 9, 32)]
        assert len(set(counts)) == 1
    one, other = SFNEBlock(2, 6, 9), SFNEBlock(2, 6, 16)
    assert parameters(other) - parameters(one) == 4 * (16**2 - 9**2)  # W, HI and two RGUs


def test_s_renormalization() -> None:
    """At the start of the last level the kernel's gradient passes only through 0.1 h / |h|; alpha and beta are not stored."""
    torch.manual_seed(0)
    net, x = SlowNet(3, 2, 4, 1, context=5).double(), double(2, 5, 9, 9)
    pooled = F.adaptive_avg_pool2d(x, 3)
    g = F.gelu(net.fc(net.reduce(pooled.movedim(1, 3)).mean(0))).view(9, 4)  # averaged after the first layer: the same
    h = net.filters[1](net.coordinates).sin() * net.linears[0](net.filters[0](net.coordinates).sin()) + net.bias
    plain = net.out((h + 0.1 * h / h.norm(dim=0)) * net.gates[0](g))
    torch.testing.assert_close(net(x), plain.T.reshape(2, 3, 3), rtol=1e-10, atol=1e-12)
    (ours,) = torch.autograd.grad(net(x).square().sum(), net.bias)
    kept = net.out((h.detach() + 0.1 * h / h.norm(dim=0)) * net.gates[0](g))
    (wanted,) = torch.autograd.grad(kept.square().sum(), net.bias)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)
    assert set(net.state_dict()) == {n for n, _ in net.named_parameters()}


def test_rgu_and_interactions_as_in_the_equations() -> None:
    x, y = double(2, 3, 6, 6), double(2, 3, 6, 6)
    rgu = RGU(3, 6).double()
    nn.init.normal_(rgu.bias)
    inner = rgu.W_k(x) * rgu.W_q(rgu.W_v(x))
    inner = (inner - inner.mean((2, 3), keepdim=True)) / (inner.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(rgu(x), rgu.W_y(F.gelu(inner) + rgu.bias), rtol=1e-10, atol=1e-12)
    hci = HyperChannel(3, 4).double()
    mean = x.mean((2, 3))
    torch.testing.assert_close(hci(x), x * (mean**2 * hci.slow()).sigmoid()[..., None, None], rtol=1e-10, atol=1e-12)
    hi = HyperInteraction(3, 6, hidden=4, hidden_c=4).double()
    place, channel = y.mean(1, keepdim=True) ** 2 * hi.slow(), y.mean((2, 3)) ** 2 * hi.channel.slow()
    torch.testing.assert_close(hi(y, x), x * (place * channel[..., None, None]).sigmoid(), rtol=1e-10, atol=1e-12)


def test_zzw_l_as_in_the_equations() -> None:
    torch.manual_seed(0)
    layer, x1, x2 = ZZWLocal(3, 5, hidden=4).double(), double(2, 3, 8, 8), double(2, 3, 8, 8)
    nn.init.normal_(layer.bias)
    y = layer.mixer(F.conv2d(x2, layer.slow(x1)[:, None], padding=2, groups=3))
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x1, x2), F.gelu(y) + layer.bias, rtol=1e-9, atol=1e-10)


def test_branches_of_a_block() -> None:
    made, x = block().eval(), double(3, 2, 9, 9)
    w = made.slow()
    fast, out, out_x, out_h, glu, hyper, *local = made.branches(x)
    mix, hci = instance_std(made.mix(x)), instance_std(made.hci(x))
    torch.testing.assert_close(fast, instance_std(made.rgu_2(x * w) + made.rgu(x)), rtol=1e-10, atol=1e-12)
    for found, z in ((out, fast), (out_x, mix), (out_h, hci)):
        torch.testing.assert_close(found, zzw_g(w, x, z), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(glu, F.silu(out))
    torch.testing.assert_close(hyper, made.hi(out, x))
    for layer, found, (x1, x2), k in zip(made.local, local, ((x, hci), (hci, x), (mix, x), (x, mix)), (3, 9, 5, 7), strict=True):
        torch.testing.assert_close(found, layer(x1, x2))
        assert layer.slow.shape == (2, k, k)


def test_global_kernels_do_not_see_the_input_and_local_ones_see_the_batch() -> None:
    made, x = block().eval(), double(2, 2, 9, 9)
    local = made.local[0].slow
    assert isinstance(local, SlowNet) and not local(x[:1]).equal(local(x))
    twice = torch.cat((x[:1], x[:1]))
    torch.testing.assert_close(local(twice), local(x[:1]), rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="x must be absent"):
        made.slow(x)


def test_a_sample_depends_on_its_batch_as_published() -> None:
    """In eval mode too; a batch of copies is a batch of one."""
    model, x = small().eval(), double(3, 2, 9, 9)
    alone = model(x[:1])
    torch.testing.assert_close(model(x[:1].repeat(3, 1, 1, 1)), alone.repeat(3, 1), rtol=1e-8, atol=1e-10)
    assert (model(x)[:1] - alone).abs().max() > 1e-4
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model(x[order]), model(x)[order], rtol=1e-8, atol=1e-10)


def test_groups_are_standardized_in_turn() -> None:
    x = 3 + 2 * double(4, 6, 5, 5)
    y = GroupStd(6, 3)(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert y[:, 2:4].mean((2, 3)).abs().max() < 1e-12 < y[:, :2].mean((2, 3)).abs().max()
    torch.testing.assert_close(y[:, 4:], batch_std(x[:, 4:]))
    model = block()
    features: list[Tensor] = []
    model.norm.register_forward_hook(lambda m, i, o: features.append(o))
    model(double(2, 2, 9, 9))
    assert features[0].mean((0, 2, 3)).abs().max() < 1e-10


def test_wiring_of_earlier_features_and_slow_loss() -> None:
    model, x = small().eval(), double(2, 2, 9, 9)
    first, second, third = model.blocks
    a = first(x)
    b = second(a)
    torch.testing.assert_close(model(x), model.head(third(b, [a]).mean((2, 3))), rtol=1e-10, atol=1e-12)
    full, (w0, w1, w2) = model.slow_loss(), (block.slow() for block in (first, second, third))  # type: ignore[operator]
    wanted = F.mse_loss(torch.cat([w0] * 6), w1) + F.mse_loss(torch.cat([w0] * 12), w2) + F.mse_loss(torch.cat([w1] * 2), w2)
    torch.testing.assert_close(full, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("which", ["local", "block", "slow"])
def test_gradcheck(which: str) -> None:
    torch.manual_seed(0)
    if which == "slow":
        net = SlowNet(3, 2, 3, 2).double()
        names = [n for n, _ in net.named_parameters()]

        def run(*values: Tensor) -> Tensor:
            return torch.func.functional_call(net, dict(zip(names, values, strict=True)), ())  # type: ignore[no-any-return]

        assert torch.autograd.gradcheck(run, tuple(net.parameters()), fast_mode=True)
        return
    x = double(2, 2, 9, 9).requires_grad_()
    if which == "local":
        layer = ZZWLocal(2, 3, hidden=3).double()  # the gradient of its kernel is stopped by design, see s-renormalization
        assert torch.autograd.gradcheck(lambda z: layer(x.detach(), z), (x,), fast_mode=True)
        return
    made = block()
    kernels = [own.slow(x.detach()).detach() for own in made.local]  # type: ignore[operator]
    for own, kernel in zip(made.local, kernels, strict=True):
        own.slow = Fixed(kernel)
    assert torch.autograd.gradcheck(made, (x,), fast_mode=True)


class Fixed(nn.Module):
    """A local kernel that does not depend on its input."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel


def test_network_modes_and_state() -> None:
    model, x = small().float(), torch.randn(3, 2, 9, 9)
    y = model(x)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-3, atol=1e-3)
    other = small().float()
    nn.init.zeros_(other.head.weight)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), y, rtol=1e-5, atol=1e-5)
    (y.square().mean() + model.slow_loss()).backward()
    missing = {n for n, p in model.named_parameters() if p.grad is None}
    assert not missing and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()
    dropped = small(drops=(0.5, 0.5, 0.5))
    z = x.double()
    assert not torch.equal(dropped(z), dropped(z)) and torch.equal(dropped.eval()(z), dropped(z))


def test_baseline_of_the_demonstration_is_no_smaller() -> None:
    assert parameters(demonstration.network(False)) >= parameters(demonstration.network(True))


def test_compiles_without_breaks() -> None:
    made, x = block(), double(2, 2, 9, 9)
    torch.testing.assert_close(torch.compile(made, fullgraph=True, backend="eager")(x), made(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="layers must be"):
        SlowNet(3, 2, 4, 0)
    with pytest.raises(ValueError, match="k must be odd"):
        ZZWLocal(3, 4)
    with pytest.raises(ValueError, match="groups must be"):
        SFNEBlock(2, 2, 9)
    with pytest.raises(ValueError, match="x must have sides"):
        block()(double(1, 2, 8, 8))
    with pytest.raises(ValueError, match="x must be given"):
        SlowNet(3, 2, 4, 1, context=2)()
    with pytest.raises(ValueError, match="earlier must be 0"):
        block()(double(1, 2, 9, 9), [double(1, 2, 9, 9)])
    with pytest.raises(ValueError, match="earlier must be at most"):
        Terminator((4,), layers=(2,), earlier=(1,), drops=(0.0,))
    with pytest.raises(ValueError, match="layers, earlier and drops"):
        Terminator((4,))
