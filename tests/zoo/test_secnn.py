"""Self-expanding CNN: published sizes, what growth keeps, and the bounds of its score."""
from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.secnn import (
    SYSTEM,
    Expander,
    Growth,
    IdentityLayer,
    SelfExpandingCNN,
    apply_,
    carry_state,
    expansion_score,
    gradients,
)

PUBLISHED = (27_852, 51_880, 22_636, 37_320, 28_588, 74_564, 73_720, 57_808, 66_440, 40_960)


def small(channels: tuple[int, ...] = (3, 4, 5), layers: tuple[int, ...] = (1, 0, 2)) -> SelfExpandingCNN:
    """Trained a little on noise, so that its norms have statistics; float64, eval."""
    torch.manual_seed(0)
    model = SelfExpandingCNN(channels, layers, classes=4, inputs=2, side=16, drop=0.0, drop_head=0.0).double()
    for _ in range(30):
        model(torch.randn(16, 2, 16, 16, dtype=torch.float64))
    return model.eval()


def data(n: int = 12) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, 2, 16, 16, dtype=torch.float64), torch.arange(n) % 4


def closed_form(channels: tuple[int, ...], layers: tuple[int, ...]) -> int:
    (a, b, c), ident = channels, [9 * k * k + 2 * k for k in channels]
    grown = sum(n * i for n, i in zip(layers, ident, strict=True))
    return 30 * a + 9 * a * b + 3 * b + 9 * b * c + 3 * c + 10 * (a + c) + 3520 + grown


def test_published_stages_and_closed_form() -> None:
    assert [parameters(SYSTEM.variants[v]()) for v in ("secnn", "secnn_1_layer", "secnn_2_layers")] == [9_024, 11_360, 13_696]
    model = SelfExpandingCNN()
    model.add_identity_(1)
    assert parameters(model) == 11_360
    model.add_channels_(0, 2)
    model.add_channels_(1, 4)
    model.add_identity_(2)
    assert model.shape == ((18, 20, 16), (0, 1, 1))
    assert parameters(model) == closed_form(*model.shape)
    for channels, layers in (((16, 24, 40), (3, 0, 10)), ((30, 16, 18), (0, 10, 1))):
        assert parameters(SelfExpandingCNN(channels, layers)) == closed_form(channels, layers)


def test_published_counts_are_reachable() -> None:
    widths, depths = range(16, 41, 2), torch.arange(11)
    missing = set(PUBLISHED)
    for channels in itertools.product(widths, repeat=3):
        a, b, c = (n * (9 * k * k + 2 * k) for n, k in zip((depths,) * 3, channels, strict=True))
        grown = (a[:, None, None] + b[None, :, None] + c).flatten() + closed_form(channels, (0, 0, 0))
        missing -= set(grown[torch.isin(grown, torch.tensor(PUBLISHED))].tolist())
    assert not missing


def test_macs() -> None:
    model = SelfExpandingCNN((4, 6), (1, 0), classes=5, inputs=3, side=16)
    work = 256 * 9 * (3 * 4 + 4 * 4) + 64 * 9 * 4 * 6 + 16 * 10 * 5 + 80 * 20 + 20 * 5
    assert macs(model.eval(), torch.zeros(1, 3, 16, 16)) == work


@pytest.mark.parametrize("block", [0, 1, 2])
def test_added_channels_keep_the_function(block: int) -> None:
    model, (x, _) = small(), data()
    y = model(x)
    model.add_channels_(block, 2, noise=0.0)
    torch.testing.assert_close(model(x), y, rtol=1e-12, atol=1e-12)
    other = small()
    other.add_channels_(block, 2)
    moved = (other(x) - y).abs().max()
    if small().shape[1][block]:
        assert moved <= 1e-12  # the zeros of the identity layers close the new channels; more of them may be summed in another order
    else:
        assert 0 < moved < 1e-2
    assert other.shape[0][block] == (3, 4, 5)[block] + 2
    for module in other.modules():  # the layers' own records follow
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels)
    fresh = SelfExpandingCNN(*other.shape, classes=4, inputs=2, side=16).double().eval()
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(fresh(x), other(x))


def test_an_identity_layer_keeps_what_is_positive() -> None:
    """Exactly up to the norm's eps; a negative value passes the ReLU's slope a second time."""
    layer = IdentityLayer(4, noise=0.0).double().eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.where(x > 0, x, 0.2 * x), rtol=1e-5, atol=1e-9)
    model, (x, _) = small(), data()
    y = model(x)
    model.add_identity_(1)
    ours = (model(x) - y).abs().max()
    box = small()
    box.add_identity_(1)
    weight = box.blocks[1].identities[0].conv.weight  # type: ignore[index, union-attr]
    weight.data.copy_(torch.eye(4)[:, :, None, None].expand(4, 4, 3, 3))
    assert 0 < ours < 0.3 * (box(x) - y).abs().max()  # the authors' program


def test_code_score_is_at_most_one_and_blind_to_the_loss_scale() -> None:
    g = gradients(small(), *data(), batches=6)
    code = expansion_score(g, "code")
    assert 0 < code <= 1
    for form in ("code", "diagonal"):
        plain = expansion_score(g, form, eps=0.0)
        assert expansion_score(7 * g, form, eps=0.0) == pytest.approx(plain, rel=1e-10)
    assert expansion_score(g, "code", eps=0.0) == pytest.approx(1, rel=1e-10)
    assert expansion_score(1e-6 * g, "code") < 1e-3  # why tau = 2 can fire only while gradients are small
    assert expansion_score(g, added=0, strength=1.0) == expansion_score(g)
    assert expansion_score(g, added=100, strength=1e-4) == pytest.approx(expansion_score(g) / torch.e, rel=1e-12)


def test_full_score_is_a_projection() -> None:
    g = torch.randn(5, 3, dtype=torch.float64)
    fisher = g.T @ g / 5
    mean = g.mean(0)
    assert expansion_score(g, "full") == pytest.approx(float(mean @ torch.linalg.solve(fisher, mean)), rel=1e-10)
    assert expansion_score(torch.cat((g, g.sum(1, keepdim=True)), 1), "full") == pytest.approx(expansion_score(g, "full"), rel=1e-8)
    assert expansion_score(torch.randn(4, 9, dtype=torch.float64), "full") == pytest.approx(1, rel=1e-10)
    x, y = data(12)
    model = small((2, 2, 2), (0, 0, 0))
    for p in model.parameters():  # few free parameters, so that the span is not the whole space
        p.requires_grad_(False)
    names = ("merge.weight",)
    before = _score_of(model, x, y, names)
    model.add_channels_(0, 1, noise=0.0)
    model.merge.weight.data[:, 2] = 0.0
    after = _score_of(model, x, y, names)
    assert 0 <= before <= after + 1e-10 <= 1 + 1e-9


def _score_of(model: nn.Module, x: Tensor, y: Tensor, names: tuple[str, ...]) -> float:
    chosen = [model.get_parameter(n).requires_grad_() for n in names]
    rows = [torch.autograd.grad(F.cross_entropy(model(x[k : k + 1]), y[k : k + 1]), chosen)[0].flatten() for k in range(len(x))]
    return expansion_score(torch.stack(rows), "full")


def test_gradients_are_those_of_the_parts_in_eval_mode() -> None:
    model, (x, y) = small().train(), data()
    rows = gradients(model, x, y, 3)
    assert rows.shape == (3, parameters(model)) and model.training
    model.eval()
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    whole = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(rows.mean(0), whole, rtol=1e-9, atol=1e-11)


def test_optimiser_state_survives_growth() -> None:
    model, (x, y) = small().train(), data()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    before = dict(model.named_parameters())
    moments = {n: optimiser.state[p]["exp_avg"].clone() for n, p in before.items()}
    inserted = model.add_channels_(0, 2)
    carry_state(optimiser, before, model, inserted)
    now = dict(model.named_parameters())
    assert {id(p) for p in optimiser.param_groups[0]["params"]} == {id(p) for p in now.values()}
    grown = optimiser.state[now["merge.weight"]]["exp_avg"]
    torch.testing.assert_close(grown[:, [0, 1, 2, *range(5, 10)]], moments["merge.weight"], rtol=0, atol=0)
    assert not grown[:, 3:5].any() and len(optimiser.state) == len(now)
    layer = optimiser.state[now["blocks.0.identities.0.conv.weight"]]["exp_avg"]
    assert torch.equal(layer[:3, :3], moments["blocks.0.identities.0.conv.weight"]) and not layer[3:].any() and not layer[:, 3:].any()
    optimiser.zero_grad()
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    before = dict(model.named_parameters())
    carry_state(optimiser, before, model, model.add_identity_(2))
    optimiser.zero_grad()
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    assert all(p in optimiser.state for p in model.parameters())


def test_rule_of_growth() -> None:
    model, (x, y) = small((2, 2), (0, 0)), data()
    rule = Expander(tau=1e-9, batches=4, cooldown=2, amounts=(1, 3))
    assert rule.step(model, x, y) is None and model.shape == ((2, 2), (0, 0))
    taken = rule.step(model, x, y)
    assert taken is not None and rule.history == [taken] and model.shape != ((2, 2), (0, 0))
    assert rule.step(model, x, y) is None  # waits again
    rule.history = [Growth("channels", 0, 1, 1.0)]
    seen = [rule.propose(SelfExpandingCNN((2, 2), (0, 0), classes=4, inputs=2, side=16, most=0).double(), x, y)]
    assert seen[0] is not None and (seen[0].kind, seen[0].channels) == ("channels", 3)
    size = (model.shape, copy.deepcopy(model.state_dict()))
    rule.tau = 1e9
    rule.waiting = 0
    assert rule.step(model, x, y) is None and model.shape == size[0]
    apply_(model, Growth("layer", 1, 0, 1.0))
    assert sum(model.shape[1]) == sum(size[0][1]) + 1


def test_gradcheck() -> None:
    layer = IdentityLayer(2, 0.1).double().eval()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_modes_batch_and_state() -> None:
    model, (x, y) = small(), data(3)
    out = model(x)
    torch.testing.assert_close(model(x[1:2]), out[1:2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), out, rtol=1e-12, atol=1e-12)
    F.cross_entropy(model.train()(x), y).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    dropped = SelfExpandingCNN(classes=4, drop=0.5).train()
    image = torch.randn(2, 3, 32, 32)
    assert not torch.equal(dropped(image), dropped(image)) and torch.equal(dropped.eval()(image), dropped(image))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dropped(image).isfinite().all()


def test_compiles_without_breaks() -> None:
    model, (x, _) = small(), data()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="channels must be"):
        SelfExpandingCNN((16,))
    with pytest.raises(ValueError, match="layers must be"):
        SelfExpandingCNN(layers=(0, 11, 0))
    with pytest.raises(ValueError, match="side must be"):
        SelfExpandingCNN(side=20)
    with pytest.raises(ValueError, match="x must have sides"):
        SelfExpandingCNN()(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="block must be in"):
        small().add_channels_(3, 2)
    with pytest.raises(ValueError, match="block must have fewer"):
        SelfExpandingCNN(layers=(10, 0, 0)).add_identity_(0)
    with pytest.raises(ValueError, match="count must be"):
        small().add_channels_(0, 0)
    with pytest.raises(ValueError, match="batches must divide"):
        gradients(small(), *data(), batches=5)
    with pytest.raises(ValueError, match="form must be"):
        expansion_score(torch.ones(2, 2), "exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tau must be"):
        Expander(tau=0)
