"""Bi-directional hybrid framework: published sizes, and who may look at which frame."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.hybrid_vad import SYSTEM, Bridge, ConvFFN, ConvTSA, HybridVAD, auc, gaussian, scores, ssim, ssim_l1


def small(**options: Any) -> HybridVAD:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"widths": (4, 4, 8), "layers": (1, 1), "heads": 2}
    return HybridVAD(**(sizes | options))


def settled(**options: Any) -> HybridVAD:
    """With running statistics that have seen a batch, in eval mode and double precision."""
    model = small(running_stats=True, **options).double().train()
    model(clips(4))
    return model.eval()


def clips(n: int = 2, side: int = 12) -> Tensor:
    return torch.randn(n, 9, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).tanh()


def test_published_parameters_and_cost() -> None:
    with torch.device("meta"):
        gray, colour = SYSTEM.variants["hybrid_vad"](), SYSTEM.variants["hybrid_vad_rgb"]()
        assert isinstance(gray, HybridVAD) and parameters(gray) == 8_468_673 and parameters(colour) == 8_469_251
        assert parameters(gray.context_layers[0]) == 443_200 and parameters(gray.backward_layers[4]) == 591_040
        assert parameters(gray.forward_bridge.alpha) == 76_992 == parameters(gray.backward_bridge.beta)
        assert macs(gray, torch.empty(1, 9, 1, 256, 256)) / 1e9 == pytest.approx(202.48, abs=5e-3)
        assert colour(torch.empty(2, 9, 3, 64, 32)).shape == (2, 3, 3, 64, 32)
        longer = HybridVAD(side=2, targets=4, layers=(1, 1))
        assert longer(torch.empty(1, 8, 1, 16, 16)).shape == (1, 4, 1, 16, 16)


def test_attention_is_frames_by_frames() -> None:
    layer = ConvTSA(8, 2)
    with torch.device("meta"):
        for t, side in ((3, 4), (6, 4), (6, 8)):
            x = torch.empty(1, t, 8, side, side)
            pixels = side * side
            assert macs(layer.to("meta"), x, x) == 4 * t * pixels * 8 * 8 * 9 + 2 * t * t * 8 * pixels  # quadratic in t only


def test_attention_as_in_the_equation() -> None:
    torch.manual_seed(0)
    layer, x, frames = ConvTSA(4, 2).double(), torch.randn(1, 2, 4, 3, 3).double(), torch.randn(1, 3, 4, 3, 3).double()
    wanted = torch.zeros(2, 4, 3, 3, dtype=torch.float64)
    for h in (slice(0, 2), slice(2, 4)):
        q, k, v = layer.q(x[0])[:, h], layer.k(frames[0])[:, h], layer.v(frames[0])[:, h]
        a = torch.einsum("schw,tchw->st", q, k) / math.sqrt(2 * 9)
        wanted[:, h] = torch.einsum("st,tchw->schw", a.softmax(1), v)
    torch.testing.assert_close(layer(x, frames)[0], layer.out(wanted), rtol=1e-10, atol=1e-12)
    mask = torch.tensor([[True, False, False], [False, True, True]])
    alone = layer.out(layer.v(frames[0, :1]))
    torch.testing.assert_close(layer(x, frames, mask)[0, :1], alone, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer(x, frames, mask[None]), layer(x, frames, mask))


def test_order_of_context_frames() -> None:
    model = small(layers=(2, 1)).double()
    maps, order = torch.randn(2, 6, 8, 5, 4).double(), [3, 0, 5, 1, 4, 2]
    torch.testing.assert_close(model.encode(maps[:, order]), model.encode(maps)[:, order], rtol=1e-9, atol=1e-10)


def test_targets_depend_on_earlier_queries_only() -> None:
    model, clip = settled(forward_weight=1.0), clips()
    y = model(clip)
    for frame, first in ((3, 1), (4, 2), (5, 3)):  # frame 3 is the query of the second target, 5 of none
        moved = clip.clone()
        moved[:, frame] = -moved[:, frame]
        changed = [not torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(model(moved).unbind(1), y.unbind(1), strict=True)]
        assert changed == [i >= first for i in range(3)]
    model = settled(forward_weight=0.0)
    y, moved = model(clip), clip.clone()
    moved[:, 4] = -moved[:, 4]  # backwards it is the query of the first target
    assert torch.allclose(model(moved)[:, 1:], y[:, 1:], rtol=0, atol=1e-12) and not torch.allclose(model(moved)[:, 0], y[:, 0])


def test_weight_one_leaves_the_backward_path_out() -> None:
    model, clip = small(forward_weight=1.0).double(), clips()
    model(clip).sum().backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None}
    assert unused == {n for n, _ in model.named_parameters() if n.startswith("backward_")}
    both = small().double()
    both.load_state_dict(model.state_dict())
    assert not torch.allclose(both(clip), model(clip))
    both.forward_weight = 1.0
    assert torch.equal(both(clip), model(clip))


def test_directions_mirror_each_other() -> None:
    model, clip = small().double(), clips()
    for name in ("layers", "bridge"):
        getattr(model, f"backward_{name}").load_state_dict(getattr(model, f"forward_{name}").state_dict())
    y = model(clip)
    model.forward_weight = 1 - model.forward_weight
    torch.testing.assert_close(model(clip.flip(1)).flip(1), y, rtol=1e-9, atol=1e-10)


def test_bridge_without_interaction_is_a_plain_cell() -> None:
    torch.manual_seed(0)
    bridge, low, maps = Bridge(8).double(), torch.randn(2, 3, 8, 5, 5).double(), torch.randn(2, 3, 8, 5, 5).double()
    y = bridge(low, maps)
    bridge.beta.conv.weight.data[:, 8:16] = 0  # the columns of h^e
    plain, state = [], None
    for x in maps.unbind(1):
        state = bridge.beta(torch.cat((x, torch.zeros_like(x)), 1), state)
        plain.append(state[0])
    torch.testing.assert_close(bridge(low, maps), torch.stack(plain, 1))
    assert not torch.allclose(y, torch.stack(plain, 1))
    bridge.beta.load_state_dict(bridge.alpha.state_dict())
    bridge.beta.conv.weight.data[:, 8:16] = 0
    state = None
    for x, h in zip(low.unbind(1), bridge(low, low).unbind(1), strict=True):
        state = bridge.alpha(torch.cat((x, torch.zeros_like(x)), 1), state)
        torch.testing.assert_close(state[0], h)
    i, f, g, o = bridge.alpha.norm(bridge.alpha.conv(torch.cat((low[:, 0], 0 * low[:, 0], 0 * low[:, 0]), 1))).chunk(4, 1)
    torch.testing.assert_close(bridge.alpha(torch.cat((low[:, 0], 0 * low[:, 0]), 1))[0], o.sigmoid() * (i.sigmoid() * g.tanh()).tanh())
    assert f.shape == i.shape


def test_context_mask() -> None:
    model, clip = settled(), clips()
    clip[0, 0, 0, 0, 0] = 1.0
    clip[1, 8, 0, 0, 0] = 1.0
    mask = model.context_mask(clip)
    assert mask.shape == (2, 6) and (~mask).nonzero().tolist() == [[0, 0], [1, 5]]
    y = model(clip, mask)
    moved = clip.clone()
    moved[0, 0, 0, 2:] = -moved[0, 0, 0, 2:]  # of a masked frame
    torch.testing.assert_close(model(moved, mask), y, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(model(moved), model(clip))


def test_ssim_and_loss() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 14).double()
    window = gaussian()
    assert float(window.sum()) == pytest.approx(1, abs=1e-6) and float(window[5, 5] / window[5, 8]) == pytest.approx(math.exp(2), rel=1e-5)
    assert float(ssim(x, x)) == pytest.approx(1, abs=1e-12) and float(ssim_l1(x, x)) == pytest.approx(0, abs=1e-12)
    a, b = torch.full((1, 1, 12, 12), 0.2).double(), torch.full((1, 1, 12, 12), 0.6).double()
    likeness = (2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4)
    assert float(ssim(a, b)) == pytest.approx(likeness, rel=1e-5)
    assert float(ssim_l1(a, b)) == pytest.approx((1 - likeness) / 2 + 0.2, rel=1e-5)
    patch = x[:1, :1, :11, :11]
    mean = (patch * window).sum()
    var, other = (patch**2 * window).sum() - mean**2, patch.flip(2)
    mean_o = (other * window).sum()
    shared = (patch * other * window).sum() - mean * mean_o
    var_o = (other**2 * window).sum() - mean_o**2
    wanted = (2 * mean * mean_o + 1e-4) / (mean**2 + mean_o**2 + 1e-4) * (2 * shared + 9e-4) / (var + var_o + 9e-4)
    torch.testing.assert_close(ssim(patch, other), wanted, rtol=1e-6, atol=1e-8)
    model, clip = small().double(), clips()
    y = model(clip)
    wanted = ssim_l1(y.flatten(0, 1) / 2 + 0.5, clip[:, 3:6].flatten(0, 1) / 2 + 0.5)
    torch.testing.assert_close(model.loss(clip), wanted)
    torch.testing.assert_close(model.errors(clip), ((y - clip[:, 3:6]) ** 2).mean((2, 3, 4)).detach() / 4)


def test_scores_and_area() -> None:
    found = scores(torch.tensor([0.01, 0.1, 0.001]))
    torch.testing.assert_close(found, torch.tensor([0.5, 1.0, 0.0]))
    assert not scores(torch.zeros(3)).isnan().any()
    assert auc(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])) == 1 and auc(torch.tensor([1.0]), torch.tensor([1.0])) == 0.5
    assert auc(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])) == 0.75


@pytest.mark.parametrize("which", ["attention", "bridge", "ssim"])
def test_gradcheck(which: str) -> None:
    torch.manual_seed(0)
    if which == "ssim":
        a, b = (torch.rand(1, 1, 11, 12).double().requires_grad_() for _ in range(2))
        assert torch.autograd.gradcheck(ssim, (a, b), fast_mode=True)
        return
    x, y = (torch.randn(1, 2, 2, 3, 3).double().requires_grad_() for _ in range(2))
    layer: ConvTSA | Bridge = ConvTSA(2, 1) if which == "attention" else Bridge(2)
    assert torch.autograd.gradcheck(layer.double(), (x, y), fast_mode=True)


def test_batch_statistics_as_published_and_running_ones() -> None:
    clip = clips(3)
    model = small().double().eval()
    assert not torch.allclose(model(clip[1:2]), model(clip)[1:2]) and not any("running" in k for k in model.state_dict())
    torch.testing.assert_close(model.train()(clip), model.eval()(clip))
    model = settled()
    y = model(clip)
    torch.testing.assert_close(model(clip[1:2]), y[1:2], rtol=1e-9, atol=1e-10)
    other = settled()
    for p in other.parameters():
        p.data.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(clip), y)
    single, moved = model.float(), clip.float().flatten(0, 1).contiguous(memory_format=torch.channels_last).view(clip.shape)
    torch.testing.assert_close(single(moved), y.float(), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert single(clip.float(), single.context_mask(clip)).isfinite().all()
    single.train().loss(clip.float()).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in single.parameters())
    ffn = ConvFFN(4)
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(ffn(x), ffn[2](F.leaky_relu(ffn[0](x), 0.2)))


def test_compiles_without_breaks() -> None:
    x = torch.randn(1, 3, 4, 4, 4)
    for layer in (ConvTSA(4, 2), Bridge(4)):
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x, x), layer(x, x))


def test_errors_name_the_argument() -> None:
    for name, value in (("side", 0), ("targets", 0), ("widths", (4, 4)), ("forward_weight", 1.5), ("heads", 3)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            small(**{name: value})
    with pytest.raises(ValueError, match=r"clip must be \(B, 9"):
        small()(torch.zeros(1, 8, 1, 8, 8))
    with pytest.raises(ValueError, match="clip must have sides"):
        small()(torch.zeros(1, 9, 1, 8, 10))
    with pytest.raises(ValueError, match="x must have sides"):
        ssim(torch.zeros(1, 1, 10, 12), torch.zeros(1, 1, 10, 12))
