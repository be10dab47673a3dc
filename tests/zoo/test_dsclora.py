"""DSCLoRA on SPAN: published sizes, and that merging kernels and updates changes nothing but the cost."""
from __future__ import annotations

from typing import TypeVar, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.dsclora import SPAB, SPAN, SYSTEM, Conv3XC, ConvLoRA, DistillationLoss, adapt_, affinity, deploy_

Model = TypeVar("Model", bound=nn.Module)
MERGED = [
    ("span_48_x2", 410_700), ("span_48_x4", 426_288), ("span_52_x2", 481_324), ("span_52_x4", 498_208), ("span_28_x4", 150_688),
    ("dscf_x4", 130_828),
]  # fmt: skip


def shaken(model: Model) -> Model:
    """Every parameter away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def small(reparam: bool = True) -> SPAN:
    torch.manual_seed(0)
    return SPAN(6, 2, reparam=reparam)


def adapted() -> SPAN:
    model = adapt_(small(False))
    for layer in (m for m in model.modules() if isinstance(m, ConvLoRA)):
        layer.lora_B.data.normal_(0, 0.2)
    return model


@pytest.mark.parametrize(("variant", "count"), MERGED)
def test_published_parameters(variant: str, count: int) -> None:
    with torch.device("meta"):
        model = deploy_(SYSTEM.variants[variant]())
        assert parameters(model) == count
        assert not any(isinstance(m, Conv3XC) for m in model.modules())
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert len(convs) == 22
        scale = int(variant[-1])
        assert model(torch.empty(2, 3, 12, 10)).shape == (2, 3, 12 * scale, 10 * scale)


def test_cost_of_dscf() -> None:
    with torch.device("meta"):
        model = SYSTEM.variants["dscf_x4"]()
        assert macs(model, torch.empty(1, 3, 256, 256)) == pytest.approx(8.535e9, abs=5e5)


@pytest.mark.parametrize(("width", "count"), [(26, 664_762), (48, 2_236_728)])
def test_total_in_training_counts_the_merged_kernels_too(width: int, count: int) -> None:
    with torch.device("meta"):
        model = SPAN(width, 4)
        apart = [m for m in model.modules() if isinstance(m, Conv3XC)]
        assert len(apart) == 20 and parameters(model) + sum(parameters(m.merged()) for m in apart) == count


def test_trainable_parameters_of_dsclora() -> None:
    with torch.device("meta"):
        model = SYSTEM.variants["dsclora_x4"]()
        learning = [p for p in model.parameters() if p.requires_grad]
        assert sum(p.numel() for p in learning) == 25_920 and parameters(model) == 130_828 + 25_920
        assert len(learning) == 2 * 20


@pytest.mark.parametrize("sizes", [(3, 4), (5, 5)])
def test_merged_kernel_is_the_three_stages(sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, x = Conv3XC(*sizes).double(), torch.randn(2, sizes[0], 5, 4, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(layer.eval()(x), y, rtol=1e-10, atol=1e-12)  # every pixel, so the border too
    torch.testing.assert_close(layer.merged()(x), y, rtol=1e-10, atol=1e-12)
    single = layer.float()
    torch.testing.assert_close(single.merged()(x.float()), y.float(), rtol=1e-5, atol=1e-5)


def test_network_merged_is_unmerged() -> None:
    model = small().double()
    image = torch.rand(2, 3, 8, 7, dtype=torch.float64)
    y = model.train()(image)
    torch.testing.assert_close(model.eval()(image), y, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(deploy_(model)(image), y, rtol=1e-10, atol=1e-9)


def test_block_as_in_the_equation() -> None:
    block, x = SPAB(4, reparam=False), torch.randn(1, 4, 5, 5)
    first = block.c1_r(x)
    o3 = block.c3_r(F.silu(block.c2_r(F.silu(first))))
    out, o1 = block(x)
    torch.testing.assert_close(out, (o3 + x) * (1 / (1 + (-o3).exp()) - 0.5))
    torch.testing.assert_close(o1, first * first.sigmoid())
    block.early = True
    assert torch.equal(block(x)[1], first)


def test_network_as_in_the_equation() -> None:
    model, image = small(False), torch.rand(1, 3, 6, 6)
    y = start = model.conv_1((image - torch.tensor([0.4488, 0.4371, 0.4040]).view(3, 1, 1)) * 255)
    outs, hidden = [], []
    for i in range(1, 7):
        y, h = getattr(model, f"block_{i}")(y)
        outs.append(y)
        hidden.append(h)
    joined = torch.cat((start, model.conv_2(outs[5]), outs[0], hidden[5]), 1)
    wanted = F.pixel_shuffle(model.upsampler[0](model.conv_cat(joined)), 2)
    found, features = model(image, features=True)
    torch.testing.assert_close(found, wanted)
    assert len(features) == 7 and all(torch.equal(a, b) for a, b in zip(features, outs, strict=False))


@pytest.mark.parametrize("r", [1, 2])
def test_update_has_the_rank_and_the_order_of_the_equation(r: int) -> None:
    torch.manual_seed(0)
    layer = ConvLoRA(nn.Conv2d(5, 4, 3, padding=1), r, alpha=3).double()
    layer.lora_B.data.normal_()
    whole = (layer.lora_B @ layer.lora_A).detach()
    assert whole.shape == (12, 15) and torch.linalg.matrix_rank(whole) == 3 * r
    update = layer.update().detach()
    torch.testing.assert_close(update, whole.reshape(4, 5, 3, 3) * 3 / r)
    flat = whole.flatten() * 3 / r
    assert update[2, 3, 1, 0] == flat[2 * 45 + 3 * 9 + 3]


def test_update_goes_in_and_out() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(5, 4, 3, padding=1), torch.randn(2, 5, 6, 6)
    plain, kept = conv(x), conv.weight.detach().clone()
    layer = ConvLoRA(conv, 2, alpha=4)
    assert torch.equal(layer(x), plain)  # B = 0
    layer.lora_B.data.normal_()
    y = layer(x)
    assert (y - plain).abs().max() > 0.1 and torch.equal(conv.weight, kept)
    torch.testing.assert_close(layer.eval()(x), y, rtol=1e-5, atol=1e-5)
    assert layer.merged and not torch.equal(conv.weight, kept)
    layer.eval()
    torch.testing.assert_close(layer(x), y, rtol=1e-5, atol=1e-5)  # not added twice
    torch.testing.assert_close(layer.train().conv.weight.detach(), kept, rtol=0, atol=1e-6)
    assert not layer.merged
    biased = ConvLoRA(nn.Conv2d(2, 2, 3), 1, train_bias=True)
    assert cast(Tensor, biased.conv.bias).requires_grad and not biased.conv.weight.requires_grad


def last(model: SPAN) -> Tensor:
    layer = model.upsampler[0]
    assert isinstance(layer, ConvLoRA)
    return layer.conv.weight


def test_state_dict_says_whether_it_is_merged() -> None:
    model, image = adapted(), torch.rand(1, 3, 6, 6)
    y = model(image)
    for mode in (True, False):
        state = {k: v.clone() for k, v in model.train(mode).state_dict().items()}
        other = adapt_(small(False))
        other.load_state_dict(state)
        assert not any(m.merged for m in other.modules() if isinstance(m, ConvLoRA))
        torch.testing.assert_close(other(image), y, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(other.eval()(image), y, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(other.train()(image), y, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(last(other), last(model.train()), rtol=0, atol=1e-5)


def test_deployed_network_costs_what_the_plain_one_costs() -> None:
    model, plain, image = adapted().double(), small(False).double(), torch.rand(1, 3, 8, 8, dtype=torch.float64)
    y = model(image)
    deploy_(model)
    assert parameters(model) == parameters(plain) and macs(model, image) == macs(plain, image)
    assert set(model.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(model(image), y, rtol=1e-10, atol=1e-8)
    assert not torch.allclose(plain(image), y)


def test_only_updates_learn() -> None:
    model, teacher, image = adapted().train(), small(False), torch.rand(2, 3, 6, 6)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    DistillationLoss()(model(image, features=True), teacher(image, features=True), torch.rand(2, 3, 12, 12)).backward()
    optimiser.step()
    assert all(p.grad is None for p in teacher.parameters())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if "lora_" in n}


def test_affinity() -> None:
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    a = affinity(x)
    assert a.shape == (2, 12, 12)
    torch.testing.assert_close(a.diagonal(dim1=1, dim2=2), torch.ones(2, 12, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(affinity(x * (torch.rand(2, 1, 3, 4, dtype=torch.float64) + 0.1)), a, rtol=1e-10, atol=1e-12)
    wanted = F.cosine_similarity(x[1, :, 0, 1], x[1, :, 2, 3], dim=0)
    torch.testing.assert_close(a[1, 1, 11], wanted)


def test_loss_terms() -> None:
    y, wanted, target = torch.randn(3, 1, 3, 2, 2)[:, None].unbind(0)
    mine, theirs = torch.randn(1, 4, 3, 3), torch.randn(1, 6, 3, 3)  # widths may differ
    terms = [F.l1_loss(y, target), F.l1_loss(y, wanted), (affinity(mine) - affinity(theirs)).abs().mean()]
    for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 2.0, 3.0)):
        found = DistillationLoss(weights)((y, [mine, mine]), (wanted, [theirs, theirs]), target)
        torch.testing.assert_close(found, sum(w * t for w, t in zip(weights, terms, strict=True)))


@pytest.mark.parametrize("which", ["conv3xc", "lora", "spab", "affinity"])
def test_gradcheck(which: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    if which == "affinity":
        assert torch.autograd.gradcheck(affinity, (x,))
        return
    if which == "lora":
        layer: nn.Module = ConvLoRA(nn.Conv2d(2, 2, 3, padding=1), 1)
    else:
        layer = Conv3XC(2, 2).eval() if which == "conv3xc" else SPAB(2, reparam=False)
    layer = shaken(layer).double()
    names = [n for n, p in layer.named_parameters() if p.requires_grad]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        found = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        return cast(Tensor, found[0] if which == "spab" else found)

    assert torch.autograd.gradcheck(run, (x, *(p for p in layer.parameters() if p.requires_grad)), fast_mode=True)


def test_modes_batch_and_state() -> None:
    model, image = small().eval(), torch.rand(3, 3, 9, 6)
    y = model(image)
    torch.testing.assert_close(model(image[1:2]), y[1:2], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(model(image.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-3)
    other = shaken(small()).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(image), y) and "block_3.c2_r.conv.1.weight" in model.state_dict()
    model.train()(image).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(image).isfinite().all() and adapted()(image).isfinite().all()


def test_compiles_without_breaks() -> None:
    x = torch.randn(1, 4, 6, 6)
    for layer in (SPAB(4, reparam=False), SPAB(4).eval(), SPAB(4).train()):
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x)[0], layer(x)[0])
    lora = shaken(ConvLoRA(nn.Conv2d(4, 4, 3), 1))
    torch.testing.assert_close(torch.compile(lora, fullgraph=True, backend="eager")(x), lora(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="gain must be"):
        Conv3XC(3, 3, 0)
    with pytest.raises(ValueError, match="r must be"):
        ConvLoRA(nn.Conv2d(3, 3, 3), 0)
    with pytest.raises(ValueError, match="conv must be"):
        ConvLoRA(nn.Conv2d(4, 4, 3, groups=2), 1)
    with pytest.raises(ValueError, match="model must have plain"):
        adapt_(small())
    with pytest.raises(ValueError, match="scale must be"):
        SPAN(8, 0)
    with pytest.raises(ValueError, match="image must be"):
        small()(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="weights must be"):
        DistillationLoss((1.0, 1.0))
    y = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="teacher must have"):
        DistillationLoss()((y, [y]), (y, []), y)
