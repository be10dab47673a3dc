"""FDConv: figures of ResNet-50, and the equalities that define disjoint frequencies and bands."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.fdconv import (
    FDConv,
    FDResNet,
    FourierDisjointWeight,
    FrequencyBandModulation,
    GlobalModulation,
    LocalModulation,
    StarReLU,
    key_map,
)


def layer(kernel: int = 3, **options: Any) -> FDConv:
    """An FDConv whose logits are far from zero."""
    torch.manual_seed(0)
    made = FDConv(18, 20, kernel, groups=4, **options)
    for p in (*made.modulation.parameters(), *made.local.parameters(), *(made.fbm.parameters() if made.fbm else ())):
        p.data += 0.3 * torch.randn_like(p)
    return made.double().eval()


def fresh(kernel: int = 3, **options: Any) -> FDConv:
    """All logits exactly zero."""
    made = FDConv(18, 20, kernel, groups=4, **options).double().eval()
    gates = list(made.fbm.gates) if made.fbm else []
    for head in (made.modulation.channel, made.modulation.filter, made.modulation.spatial, made.modulation.kernel, made.local.conv, *gates):
        if head is not None:
            nn.init.zeros_(head.weight)  # type: ignore[arg-type]
    return made


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_published_figures() -> None:
    with torch.device("meta"):
        plain, both, only3 = (parameters(FDResNet(sizes=s)) for s in ((), (1, 3), (3,)))
        model = FDResNet()
        assert model.train()(torch.empty(2, 3, 64, 64)).shape == (2, 2048, 2, 2)
    assert (plain, both, only3 - plain) == (23_508_032, 27_155_152, 588_656)
    parts = {GlobalModulation: 3_173_408, LocalModulation: 311_296, FrequencyBandModulation: 102_000, FourierDisjointWeight: 20_737_024}
    for part, count in parts.items():
        assert sum(parameters(m) for m in model.modules() if isinstance(m, part)) == count
    assert sum(isinstance(m, FDConv) for m in model.modules()) == 48


def test_macs() -> None:
    """The plain backbone's well-known 4.09 G; the dynamic convolution pays for its heads and gates, not for its number of groups."""
    with torch.device("meta"):
        assert macs(FDResNet(sizes=()), torch.empty(1, 3, 224, 224)) == 4_087_136_256
    heads, local, gates = 18 * 16 + 16 * (18 + 20 + 9), 18 * 3 * 180, 3 * 18 * 9 * 48
    for groups in (4, 8):
        found = macs(FDConv(18, 20, 3, groups=groups).eval(), torch.zeros(1, 18, 6, 8))
        assert found == 20 * 18 * 9 * 48 + heads + 16 * groups + local + gates


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
def test_zero_logits_are_the_plain_convolution(kernel: int, stride: int) -> None:
    made, weight, x = fresh(kernel, stride=stride, bias=True), image(20, 18, kernel, kernel), image(2, 18, 9, 8)
    nn.init.normal_(made.bias)  # type: ignore[arg-type]
    made.fdw.set_weight(weight)
    torch.testing.assert_close(made(x), F.conv2d(x, weight, made.bias, stride, kernel // 2), rtol=1e-6, atol=1e-6)


def test_groups_are_disjoint_exhaustive_and_sorted() -> None:
    fdw = FourierDisjointWeight(18, 20, 3, 4)
    count = 60 * 28
    assert fdw.group.shape == (60, 28) and torch.equal(fdw.group.flatten().bincount(), torch.full((4,), count // 4))
    distance = torch.hypot(torch.fft.fftfreq(60)[:, None], torch.fft.rfftfreq(54)[None])
    for g in range(3):
        assert distance[fdw.group == g].max() <= distance[fdw.group == g + 1].min()
    assert parameters(FourierDisjointWeight(18, 20, 3, 1)) == parameters(FourierDisjointWeight(18, 20, 3, 8)) == 2 * count


def test_attention_of_a_group_changes_its_band_only() -> None:
    fdw = FourierDisjointWeight(18, 20, 3, 4).double()
    attention = torch.full((2, 4), 0.25, dtype=torch.float64)
    attention[1, 2] += 0.5
    one, other = fdw(attention).transpose(2, 3).reshape(2, 60, 54)
    changed = torch.fft.rfft2(other - one).abs() > 1e-10
    group = fdw.group == 2
    mirrored = group | group.roll(-1, 0).flip(0)  # columns 0 and 27 hold each frequency and its negative
    allowed = group.clone()
    allowed[:, [0, 27]] = mirrored[:, [0, 27]]
    assert changed.any() and not (changed & ~allowed).any()
    assert torch.equal(changed[:, 1:27], group[:, 1:27])


@pytest.mark.parametrize("size", [(16, 16), (9, 14), (5, 7)])
def test_bands_sum_to_the_input(size: tuple[int, int]) -> None:
    fbm, x = FrequencyBandModulation(6).double(), image(2, 6, *size)
    for gate in fbm.gates:
        nn.init.zeros_(gate.weight)  # type: ignore[arg-type]
    torch.testing.assert_close(fbm(x), x, rtol=1e-10, atol=1e-12)


def test_a_closed_gate_removes_its_band() -> None:
    fbm = FrequencyBandModulation(1).double()
    for gate, bias in zip(fbm.gates, (-1e9, 0.0, 0.0), strict=True):
        nn.init.zeros_(gate.weight)  # type: ignore[arg-type]
        gate.bias.data.fill_(bias)  # type: ignore[operator]
    across = torch.arange(16, dtype=torch.float64) * 2 * torch.pi
    for cycles, kept in ((1, 1.0), (3, 1.0), (4, 0.0), (6, 0.0)):
        wave = torch.cos(across * cycles / 16).expand(1, 1, 16, 16)
        torch.testing.assert_close(fbm(wave), kept * wave, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", [1, 3])
def test_both_forms_and_the_equation_agree(kernel: int) -> None:
    made, x = layer(kernel), image(2, 18, 6, 5)
    made.direct = True
    y = made(x)
    made.direct = False
    torch.testing.assert_close(made(x), y, rtol=1e-9, atol=1e-10)
    weight, channel, filters = made.kernels(x)
    bands = made.fbm(x) if made.fbm is not None else x
    for b in range(2):
        own = weight[b] * channel[b].view(1, -1, 1, 1) * filters[b].view(-1, 1, 1, 1)
        torch.testing.assert_close(F.conv2d(bands[b : b + 1], own, padding=kernel // 2), y[b : b + 1], rtol=1e-9, atol=1e-10)
    assert not torch.allclose(weight[0], weight[1], rtol=1e-3)


def test_frozen_is_one_static_convolution() -> None:
    made, x = layer(bands=False, bias=True), image(1, 18, 6, 5)
    torch.testing.assert_close(made.frozen(x)(x), made(x), rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match="bands must be"):
        layer().frozen(x)


def test_star_relu() -> None:
    star = StarReLU()
    star.scale.data.fill_(2.0)
    star.bias.data.fill_(1.0)
    assert star(torch.tensor([-3.0, 3.0])).tolist() == [1.0, 19.0]


@pytest.mark.parametrize("kernel", [1, 3])
def test_gradcheck(kernel: int) -> None:
    made, x = layer(kernel), image(2, 18, 3, 3).requires_grad_()
    dft = made.fdw.dft.detach().clone().requires_grad_()

    def run(x: Tensor, dft: Tensor) -> Tensor:
        return torch.func.functional_call(made, {"fdw.dft": dft}, (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, dft), fast_mode=True)


def test_network_modes_batch_and_state() -> None:
    torch.manual_seed(0)
    model, x = FDResNet((1, 1), groups=4, dim=20), torch.randn(3, 3, 32, 32)
    model.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    y = model(x)
    torch.testing.assert_close(model(x[1:2]), y[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-5)
    other = FDResNet((1, 1), groups=4, dim=20).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()


def test_published_names() -> None:
    """Unique, complete, and no name of ours is left."""
    assert set(key_map(FDConv(18, 20, groups=4, bias=True))) == {
        "dft_weight", "bias", "KSM_Global.fc.weight", "KSM_Global.relu.scale", "KSM_Global.relu.bias",
        *(f"KSM_Global.bn.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        *(f"KSM_Global.{head}_fc.{k}" for head in ("channel", "filter", "spatial", "kernel") for k in ("weight", "bias")),
        "KSM_Local.norm.weight", "KSM_Local.norm.bias", "KSM_Local.conv.weight",
        *(f"FBM.freq_weight_conv_list.{i}.{k}" for i in range(3) for k in ("weight", "bias")),
    }  # fmt: skip
    with torch.device("meta"):
        model = FDResNet()
    names = key_map(model)
    assert set(names.values()) == set(model.state_dict()) and len(names) == len(model.state_dict())
    assert {
        "conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer1.0.conv1.dft_weight", "layer2.3.bn2.weight",
        "layer3.5.conv2.FBM.freq_weight_conv_list.2.bias", "layer4.2.conv3.KSM_Global.kernel_fc.bias", "layer4.0.downsample.1.bias",
    } <= set(names)  # fmt: skip


@pytest.mark.parametrize("kernel", [1, 3])
def test_compiles_without_breaks(kernel: int) -> None:
    made, x = layer(kernel), image(2, 18, 6, 6)
    torch.testing.assert_close(torch.compile(made, fullgraph=True, backend="eager")(x), made(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="kernel must be"):
        FDConv(20, 20, 5)
    with pytest.raises(ValueError, match="inputs and outputs"):
        FDConv(16, 20)
    with pytest.raises(ValueError, match="groups must divide"):
        FDConv(18, 20, groups=11)
    with pytest.raises(ValueError, match="sizes must be"):
        FDResNet(sizes=(5,))
