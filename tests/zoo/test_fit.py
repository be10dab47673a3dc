"""FIT: what sees what, sizes by the closed forms, and the variants for sequences and for diffusion."""
from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo import fit
from models.zoo.counting import parameters
from models.zoo.demos import fit as demonstration
from models.zoo.fit import FIT, FITAR, MHA, Cross, FITDenoiser, Layer

SIZES: dict[str, Any] = {"groups": 3, "tokens": 4, "latents": 2, "dim": 8, "latent_dim": 16, "heads": 2, "latent_heads": 4}


def plain(layers: str = "(1)1(1)", **options: Any) -> FIT:
    torch.manual_seed(0)
    return FIT(layers, inputs=5, **(SIZES | options)).double().eval()


def sequence(layers: str = "(1)1(1)1(1)", **options: Any) -> FITAR:
    torch.manual_seed(0)
    model = FITAR(layers, vocabulary=11, **(SIZES | options)).double().eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model


def denoiser() -> FITDenoiser:
    torch.manual_seed(0)
    return FITDenoiser("(1)1(1)", inputs=5, **SIZES).double().eval()


def data(n: int = 2, groups: int = 3) -> Tensor:
    return torch.randn(n, groups, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_layer_strings() -> None:
    assert fit.parse("(2)4(3)0(1)") == [(2, 4), (3, 0), (1, 0)] and fit.parse("(6)") == [(6, 0)] and fit.parse("(1)2") == [(1, 2)]
    for wrong in ("", "2(3)", "(2)4()", "(2)-1(2)", "(2)4(2)x"):
        with pytest.raises(ValueError, match="layers must"):
            fit.parse(wrong)


@pytest.mark.parametrize(("dim", "ratio"), [(8, 4), (512, 4), (12, 2)])
def test_parameters_of_a_layer(dim: int, ratio: int) -> None:
    with torch.device("meta"):
        assert parameters(Layer(dim, 4, ratio)) == fit.layer_parameters(dim, ratio)


def test_parameters_of_a_network() -> None:
    with torch.device("meta"):
        model = FIT("(2)4(2)3(2)", inputs=768, groups=64, tokens=64, latents=16, dim=512, latent_dim=768, heads=8, latent_heads=12)
    cross = [2 * (a + b) + (a + 1) * 512 + 2 * (b + 1) * 512 + (512 + 1) * a for a, b in ((768, 512), (512, 768))]
    wanted = 6 * fit.layer_parameters(512) + 7 * fit.layer_parameters(768) + 2 * sum(cross)
    wanted += 768 * 512 + 512 + 1024 + 64 * 512 + 64 * 16 * 768 + 2 * (512 + 768)
    assert parameters(model) == wanted
    assert [cast(Cross, b.x2l).mha.heads if b.x2l is not None else 0 for b in cast(Any, model.blocks)] == [8, 8, 0]


@pytest.mark.parametrize("layers", ["(2)", "(1)2(1)", "(1)1(2)0(1)2(1)", "(1)2"])
def test_elements_of_attention(layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        seen.append(q.shape[0] * q.shape[2] * k.shape[2])
        return original(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    plain(layers)(data(1))
    assert sum(seen) == fit.attention_elements(layers, 3, 4, 2)


def test_elements_grow_as_length_to_four_thirds() -> None:
    sizes = [fit.attention_elements("(2)4(2)", 4**k, 2**k, 1) for k in (6, 7, 8, 9)]  # L = 8^k, n = L^(1/3)
    ratios = [b / a for a, b in pairwise(sizes)]
    assert all(15.9 < r <= 16 for r in ratios)  # 8^(4/3) is 16, the terms of L m less


def test_cross_attention_as_in_the_equation() -> None:
    torch.manual_seed(0)
    layer, q, tokens = MHA(6, 4, 2).double(), torch.randn(1, 3, 6).double(), torch.randn(1, 5, 4).double()
    heads = []
    for h in (slice(0, 2), slice(2, 4)):
        a = (layer.q(q)[0, :, h] @ layer.k(tokens)[0, :, h].T / 2**0.5).softmax(1)
        heads.append(a @ layer.v(tokens)[0, :, h])
    torch.testing.assert_close(layer(q, tokens)[0], layer.out(torch.cat(heads, 1)), rtol=1e-10, atol=1e-12)
    tower = Layer(6, 2).double()
    middle = q + tower.mha(tower.norm1(q), tower.norm1(q))
    torch.testing.assert_close(tower(q), middle + tower.mlp[2](F.gelu(tower.mlp[0](tower.norm2(middle)))))
    cross = Cross(6, 4, 2).double()
    torch.testing.assert_close(cross(q, tokens), q + cross.mha(cross.norm_q(q), cross.norm_t(tokens)))


def test_shapes_and_positions() -> None:
    x, latents = plain()(data())
    assert x.shape == (2, 3, 4, 8) and latents.shape == (2, 3, 2, 16)
    torch.testing.assert_close(x.mean(-1), torch.zeros(2, 3, 4, dtype=torch.float64), rtol=0, atol=1e-8)
    line = fit.sincos_grid(4, 8, False)
    assert line[0].tolist() == [0] * 4 + [1] * 4 and float(line[3, 0]) == pytest.approx(float(torch.tensor(1000.0).sin()), abs=1e-4)
    plane = fit.sincos_grid(9, 8, True).view(3, 3, 8)
    assert torch.equal(plane[1, 0, :4], plane[1, 2, :4]) and torch.equal(plane[0, 1, 4:], plane[2, 1, 4:])
    assert not torch.equal(plane[0, 0, :4], plane[1, 0, :4])
    for position in ("sincos", "sincos2d"):
        assert "pos" not in dict(plain(position=position).named_parameters())


def test_one_group_is_a_perceiver() -> None:
    model, x = plain("(0)2(0)", groups=1), data(groups=1)
    found, latents = model(x)
    block: Any = model.blocks[0]
    y = (model.stem_norm(model.stem(x)) + model.pos)[:, 0]
    z = block.x2l(model.latents.expand(2, -1, -1), y)
    for layer in block.over:
        z = layer(z)
    torch.testing.assert_close(latents[:, 0], model.norm_l(z), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[:, 0], model.norm_x(block.l2x(y, z)), rtol=1e-10, atol=1e-12)


def test_groups_are_independent_without_latents_only() -> None:
    x = data()
    moved = x.clone()
    moved[:, 1] += 1
    for layers, alone in (("(2)", True), ("(1)1(1)", False)):
        model = plain(layers)
        a, b = model(x)[0], model(moved)[0]
        assert torch.equal(a[:, [0, 2]], b[:, [0, 2]]) == alone and not torch.allclose(a[:, 1], b[:, 1])


def test_order_of_groups() -> None:
    model, x, order = plain(), data(), [2, 0, 1]
    assert not torch.allclose(model(x)[0][:, order], model(x[:, order])[0])
    model.latents.data[:] = model.latents.data[:1].clone()  # no position in the latents
    for a, b in zip(model(x), model(x[:, order]), strict=True):
        torch.testing.assert_close(a[:, order], b, rtol=1e-10, atol=1e-12)


def test_causal_latents() -> None:
    model, x = plain(mask="causal"), data()
    a = model(x)
    for g in range(3):
        moved = x.clone()
        moved[:, g] += torch.randn(2, 4, 5).double()
        for before, after in zip(a, model(moved), strict=True):
            assert torch.allclose(before[:, :g], after[:, :g], rtol=1e-12, atol=1e-12)
            assert all(not torch.allclose(before[:, i], after[:, i]) for i in range(g, 3))


def test_fitar_sees_the_past_only_and_all_of_it() -> None:
    model = sequence()
    x = torch.randint(11, (1, 3, 4))
    logits = model(x).flatten(1, 2)
    assert logits.shape == (1, 12, 11)
    for j in range(12):
        moved = x.flatten().clone()
        moved[j] = (moved[j] + 3) % 11
        changed = (model(moved.view(1, 3, 4)).flatten(1, 2) - logits).abs().amax(-1)[0] > 1e-12
        assert not changed[: j + 1].any() and changed[j + 1 :].all()
    alone = sequence("(3)")
    moved = x.clone()
    moved[:, 0, 1] = (moved[:, 0, 1] + 3) % 11
    assert torch.allclose(alone(moved)[:, 1:], alone(x)[:, 1:], rtol=0, atol=1e-12)


def test_fitar_head_is_tied_and_loss() -> None:
    model, x = sequence(), torch.randint(11, (2, 3, 4))
    assert [n for n, p in model.named_parameters() if 11 in p.shape] == ["embedding.weight"]
    logp = model(x).log_softmax(-1)
    torch.testing.assert_close(model.loss(x), -logp.gather(-1, x[..., None]).mean())
    fresh = FITAR("(1)1(1)", vocabulary=256, **SIZES)
    with torch.no_grad():
        loss = float(fresh.loss(torch.randint(256, (4, 3, 4))))
    assert loss == pytest.approx(torch.tensor(256.0).log().item(), rel=0.02)


def test_patches() -> None:
    image = torch.arange(4 * 6 * 3).view(1, 4, 6, 3)
    cut = fit.patches(image, 2)
    assert cut.shape == (1, 6, 12)
    assert torch.equal(cut[0, 4].view(2, 2, 3), image[0, 2:4, 2:4])


def test_denoiser() -> None:
    model, x, times = denoiser(), data(), torch.tensor([0.1, 0.9], dtype=torch.float64)
    condition = torch.randn(2, 3, 16, dtype=torch.float64)
    y, latents = model(x, times)
    assert y.shape == x.shape and latents.shape == (2, 3, 2, 16)
    assert torch.equal(model(x, times, previous=latents)[0], y)  # a norm that starts at 0
    model.previous[-1].weight.data.fill_(0.5)  # type: ignore[operator]
    assert not torch.allclose(model(x, times, previous=latents)[0], y)
    assert not torch.allclose(model(x, times.flip(0))[0], y) and not torch.allclose(model(x, times, condition)[0], y)
    torch.testing.assert_close(model(x, times, condition)[0], model(x, times, condition[:, [2, 0, 1]])[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["mha", "block"])
def test_gradcheck(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "mha":
        q, t = torch.randn(1, 2, 4).double().requires_grad_(), torch.randn(1, 3, 2).double().requires_grad_()
        assert torch.autograd.gradcheck(MHA(4, 2, 2).double(), (q, t))
        return
    block = fit.FITBlock(4, 4, 1, 1, 2, 2, 1, False).double()
    x, z = (torch.randn(1, 2, n, 4).double().requires_grad_() for n in (3, 2))
    assert torch.autograd.gradcheck(lambda a, b: block(a, b, shift=True), (x, z), fast_mode=True)


def test_modes_batch_and_state() -> None:
    cases: tuple[tuple[FIT, tuple[Tensor, ...]], ...] = (
        (plain(), (data(3),)), (sequence(), (torch.randint(11, (3, 3, 4)),)), (denoiser(), (data(3), torch.rand(3).double())),
    )  # fmt: skip
    for model, args in cases:
        y, one = (m if isinstance(m, Tensor) else m[0] for m in (model(*args), model(*(a[1:2] for a in args))))
        torch.testing.assert_close(one, y[1:2], rtol=1e-10, atol=1e-12)
        other = type(model)("(1)1(1)1(1)" if isinstance(model, FITAR) else "(1)1(1)", **SIZES, **_own(model)).double()
        other.load_state_dict(model.state_dict())
        again = other(*args)
        assert torch.equal(again if isinstance(again, Tensor) else again[0], y)
        half = model.float().train()
        args = tuple(a.float() if a.is_floating_point() else a for a in args)
        out = half(*args, previous=torch.randn(3, 3, 2, 16)) if isinstance(half, FITDenoiser) else half(*args)
        torch.stack([o.square().sum() for o in ([out] if isinstance(out, Tensor) else out)]).sum().backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in half.parameters())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = half(*args)
            assert (found if isinstance(found, Tensor) else found[0]).isfinite().all()


def _own(model: nn.Module) -> dict[str, Any]:
    return {"vocabulary": 11} if isinstance(model, FITAR) else {"inputs": 5}


def test_compiles_without_breaks() -> None:
    model, x = sequence("(1)1(0)"), torch.randint(11, (2, 3, 4))
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_baseline_of_the_demonstration_is_no_smaller() -> None:
    assert parameters(demonstration.network(False)) >= parameters(demonstration.network(True))


def test_errors_name_the_argument() -> None:
    for name in ("groups", "tokens", "latents"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            plain(**cast(dict[str, Any], {name: 0}))
    with pytest.raises(ValueError, match="mask must be"):
        plain(mask="both")
    with pytest.raises(ValueError, match="position must be"):
        plain(position="none")
    with pytest.raises(ValueError, match="heads must be"):
        plain(heads=3)
    with pytest.raises(ValueError, match="tokens must be a square"):
        plain(position="sincos2d", tokens=5)
    with pytest.raises(ValueError, match="x must be"):
        plain()(data(groups=2))
    with pytest.raises(ValueError, match="x must be"):
        sequence()(torch.zeros(2, 12, dtype=torch.long))
    with pytest.raises(ValueError, match="times must be"):
        denoiser()(data(), torch.zeros(3).double())
    with pytest.raises(ValueError, match="latent_dim must be"):
        FITDenoiser("(1)", inputs=5, **(SIZES | {"latent_dim": 12}))
    with pytest.raises(ValueError, match="side must divide"):
        fit.patches(torch.zeros(1, 4, 5, 3), 2)
    with pytest.raises(ValueError, match="dim must be"):
        fit.sincos(torch.zeros(3), 5)
