"""FiTv2: figures of the variants, what a token can see, and the flow."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.zoo.counting import macs, parameters
from models.zoo.fitv2 import SYSTEM
from models.zoo.fitv2.flow import (
    collate,
    flow_loss,
    guided,
    interpolate,
    patchify,
    sample,
    unpatchify,
    velocity_to_noise,
    velocity_to_score,
)
from models.zoo.fitv2.network import Attention, Block, FiT, LabelEmbedder, SwiGLU
from models.zoo.fitv2.rope import FORMS, VisionRotary, frequencies, rotate

FIGURES = {
    "fitv2_xl_2": (671_045_776, 146.8), "fitv2_3b_2": (2_971_928_080, 652.3), "fit_xl_2": (823_599_392, 152.2),
    "fitv2_b_2": (128_149_072, None), "fitv2_hr_xl_2": (671_045_776, 146.8),
}  # fmt: skip


def small(**options: Any) -> FiT:
    """float64, eval, no parameter at its start, so that no gate is closed."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"rank": 6, "patch": 2, "channels": 3, "classes": 4, "drop": 0.5}
    model = FiT(16, 2, 2, **(shape | options)).double().eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def latents() -> list[Tensor]:
    return [torch.randn(3, *size, dtype=torch.float64) for size in ((4, 6), (2, 4), (6, 2))]


def conditions(n: int) -> tuple[Tensor, Tensor]:
    return torch.linspace(0.2, 0.8, n, dtype=torch.float64), torch.arange(n) % 4


@pytest.mark.parametrize("variant", FIGURES)
def test_published_figures(variant: str) -> None:
    count, giga = FIGURES[variant]
    with torch.device("meta"):
        model = SYSTEM.variants[variant]()
    assert parameters(model) == count
    parts = [part for block in model.modules() if isinstance(block, Block) for part in (block.attn, block.mlp)]
    layers = [m for part in parts for m in part.modules() if isinstance(m, nn.Linear)]
    if giga is not None:  # as published: linear layers of attention and SwiGLU, 256 tokens
        assert 256 * sum(m.weight.numel() for m in layers) / 1e9 == pytest.approx(giga, abs=0.051)


def test_closed_form_and_macs() -> None:
    d, depth, heads, r, n = 24, 3, 2, 5, 10
    hidden = 4 * d * 2 // 3
    model = FiT(d, depth, heads, rank=r).eval()
    block = 4 * d * d + 4 * d + 3 * d * hidden + 2 * hidden + d + d * r + r + 6 * r * d + 6 * d
    rest = 16 * d + d + 256 * d + d + d * d + d + 1001 * d + 6 * d * d + 6 * d + 16 * d + 16 + 2 * d * d + 2 * d
    assert parameters(model) == depth * block + rest
    x, grid, ids, _ = collate([[torch.randn(4, 4, 10)]], n, 2)
    work = depth * (n * (4 * d * d + 3 * d * hidden) + 2 * n * n * d + 7 * r * d)
    work += n * 32 * d + 256 * d + d * d + 6 * d * d + 2 * d * d
    with sdpa_kernel(SDPBackend.MATH):  # the counter does not see the fused one
        assert macs(model, x, torch.rand(1), torch.tensor([3]), grid, ids) == work


def test_fresh_output_is_zero() -> None:
    x, grid, ids, size = collate([[torch.randn(4, 4, 6)]], 8, 2)
    for variant in ({"rank": 4}, {"sigma": True, "qk_norm": False}, {"rank": 4, "form": "yarn"}):
        y = FiT(16, 2, 2, **variant)(x, torch.rand(1), torch.tensor([1]), grid, ids, size)
        assert not y.any() and y.shape == (1, 8, 32 if "sigma" in variant else 16)


def test_padding_is_without_influence() -> None:
    model, (t, y) = small(), conditions(3)
    x, grid, ids, _ = collate([[latent] for latent in latents()], 9, 2)
    found = model(x, t, y, grid, ids)
    other = torch.where((ids == 0).unsqueeze(-1), torch.randn_like(x), x)
    assert torch.equal(model(other, t, y, grid, ids), found)
    assert not found[ids == 0].any() and found[ids != 0].all()
    alone = [collate([[latent]], latent[0].numel() // 4, 2) for latent in latents()]
    for b, (one, place, own, _) in enumerate(alone):
        wanted = model(x[b : b + 1, : one.shape[1]], t[b : b + 1], y[b : b + 1], place, own)
        torch.testing.assert_close(found[b : b + 1, : one.shape[1]], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["normal", "ntk-aware"])
def test_packed_is_separate(form: str) -> None:
    model, (t, y), images = small(form=form, decouple=True), conditions(3), latents()
    apart = collate([[latent] for latent in images], 6, 2)
    x, grid, ids, size = collate([images], 13, 2)
    counts = (apart[2] != 0).sum(1)
    own = torch.repeat_interleave(torch.arange(3), counts)
    own = F.pad(own, (0, 13 - len(own)))[None]
    packed = model(x, t[own], y[own], grid, ids, size)
    wanted = model(*apart[:1], t, y, *apart[1:])
    torch.testing.assert_close(packed[0, : int(counts.sum())], wanted[apart[2] != 0], rtol=1e-10, atol=1e-12)


def test_tokens_may_come_in_any_order() -> None:
    model, (t, y) = small(), conditions(3)
    x, grid, ids, _ = collate([[latent] for latent in latents()], 8, 2)
    order = torch.randperm(8)
    moved = model(x[:, order], t, y, grid[..., order], ids[:, order])
    torch.testing.assert_close(moved, model(x, t, y, grid, ids)[:, order], rtol=1e-10, atol=1e-12)
    assert (model(x, t, y, grid.flip(1), ids) - model(x, t, y, grid, ids)).abs().max() > 1e-4  # rows are not columns


def test_logits_depend_on_distances_only() -> None:
    rope = VisionRotary(16).double()
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).expand(2, 1, 1, 2, 16)

    def logit(row: tuple[int, int], column: tuple[int, int]) -> Tensor:
        cos, sin = (t.double() for t in rope(torch.tensor([[column, row]])))
        return rotate(q, cos, sin)[0, 0, 0] @ rotate(k, cos, sin)[0, 0, 1]

    torch.testing.assert_close(logit((1, 4), (2, 0)), logit((6, 9), (7, 5)), rtol=1e-4, atol=1e-4)  # angles are float32
    assert abs(logit((1, 4), (2, 0)) - logit((1, 4), (0, 2))) > 1e-3
    cos, sin = rope(torch.tensor([[[5], [0]]]))  # column 5, row 0: the first half stands
    assert (cos[0, 0, :8] == 1).all() and not sin[0, 0, :8].any()
    torch.testing.assert_close(sin[0, 0, 8:10], torch.tensor([5.0, 5.0]).sin())
    turned = rotate(torch.eye(16)[None, None, 8:9], cos, sin)
    assert float(turned[0, 0, 0, 9]) == pytest.approx(math.sin(5))


def test_qk_norm_bounds_the_logits() -> None:
    layer, x = Attention(16, 2), 100 * torch.randn(2, 5, 16)
    norms: list[Tensor] = []
    original = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        norms.extend((q, k))
        return original(q, k, v, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        layer(x, torch.ones(2, 5, dtype=torch.long), *VisionRotary(8)(torch.randint(0, 9, (2, 2, 5))))
    for t in norms:
        torch.testing.assert_close(t.square().sum(-1), torch.full((2, 2, 5), 8.0), rtol=1e-4, atol=0)
    assert (norms[0] @ norms[1].transpose(2, 3) * 8**-0.5).abs().max() <= 8**0.5 + 1e-4


def test_frequencies() -> None:
    base = 1e4 ** -(torch.arange(0, 8, 2) / 8)
    for form in FORMS:  # no change up to the training length
        for length in (4.0, 16.0):
            torch.testing.assert_close(frequencies(8, torch.tensor(length), form), base, rtol=1e-5, atol=0)
    long = torch.tensor([32.0, 64.0])
    torch.testing.assert_close(frequencies(8, long, "linear"), base / torch.tensor([[2.0], [4.0]]), rtol=1e-5, atol=0)
    ntk = frequencies(8, long, "ntk-aware")
    assert (ntk[:, 0] == 1).all()  # the fastest stays, the slowest is divided by s
    torch.testing.assert_close(ntk[:, -1], base[-1] / torch.tensor([2.0, 4.0]), rtol=1e-5, atol=0)
    for form in ("ntk-by-parts", "yarn"):
        found = frequencies(36, long, form)
        assert (found <= frequencies(36, long) + 1e-7).all() and (found >= frequencies(36, long, "linear") - 1e-7).all()
        assert not torch.allclose(found, frequencies(36, long, "linear")) and not torch.allclose(found, frequencies(36, long))


def test_factors_and_decoupling() -> None:
    grid, size = torch.tensor([[[0], [0]]]), torch.tensor([[32, 8]])
    for form, factor in (("yarn", 0.1 * math.log(2) + 1), ("ntk-aware-pro1", (math.log(64) / math.log(16)) ** 0.5),
                         ("ntk-aware-pro2", (math.log(512) / math.log(256)) ** 0.5), ("ntk-aware", 1.0)):  # fmt: skip
        assert float(VisionRotary(8, form)(grid, size)[0].max()) == pytest.approx(factor)  # type: ignore[arg-type]
    assert float(VisionRotary(8, "ntk-aware-pro1")(grid, torch.tensor([[8, 8]]))[0].max()) == 1
    place = torch.tensor([[[3], [3]]])  # as far in rows as in columns
    (cos, _), (apart, _) = (VisionRotary(16, "linear", decouple=d)(place, size) for d in (False, True))
    assert torch.equal(cos[..., :8], cos[..., 8:]) and torch.equal(apart[..., :8], cos[..., :8])
    torch.testing.assert_close(apart[..., 8:], VisionRotary(16)(place)[0][..., 8:])  # 8 columns are within the training length


def test_block_as_in_the_equations() -> None:
    model, x = small(), torch.randn(1, 3, 16, dtype=torch.float64)
    block, shared = model.blocks[0], torch.randn(1, 1, 96, dtype=torch.float64)
    c = torch.randn(1, 1, 16, dtype=torch.float64)
    ids = torch.ones(1, 3, dtype=torch.long)
    cos, sin = model.rope(torch.tensor([[[0, 1, 2], [0, 0, 0]]]))
    down, up = block.adaLN_modulation[1], block.adaLN_modulation[2]  # type: ignore[index]
    s1, c1, g1, s2, c2, g2 = (up(down(F.silu(c))) + shared).split(16, -1)  # type: ignore[operator]
    wanted = x + g1 * block.attn(F.layer_norm(x, (16,), eps=1e-6) * (1 + c1) + s1, ids, cos, sin)  # type: ignore[operator]
    z = F.layer_norm(wanted, (16,), eps=1e-6) * (1 + c2) + s2
    mlp = block.mlp
    assert isinstance(mlp, SwiGLU)
    wanted = wanted + g2 * mlp.fc2(F.silu(mlp.fc1_g(z)) * mlp.fc1_x(z))
    torch.testing.assert_close(block(x, c, shared, ids, cos, sin), wanted, rtol=1e-10, atol=1e-12)


def test_class_dropout_is_of_whole_images() -> None:
    torch.manual_seed(0)
    embed = LabelEmbedder(3, 1, 0.5).train()
    embed.embedding_table.weight.data.copy_(torch.arange(4.0)[:, None])
    ids = torch.tensor([[1, 1, 2, 2, 0]]).expand(400, 5)
    found = embed(torch.tensor([[1, 1, 2, 2, 0]]).expand(400, 5), ids)[..., 0]
    assert (found[:, 0] == found[:, 1]).all() and (found[:, 2] == found[:, 3]).all()
    dropped = found == 3
    assert 0.4 < float(dropped[:, 0].float().mean()) < 0.6 and (dropped[:, 0] != dropped[:, 2]).any()
    assert (embed.eval()(torch.tensor([0, 1, 2]), ids)[:, 0] == torch.arange(3)).all()


def test_tokens_and_back() -> None:
    latent = torch.randn(3, 4, 6)
    tokens = patchify(latent, 2)
    assert tokens.shape == (6, 12) and torch.equal(unpatchify(tokens, 2, 3, 2), latent)
    assert torch.equal(tokens[4].view(3, 2, 2), latent[:, 2:4, 2:4])
    x, grid, ids, size = collate([[latent, latent[:, :2]]], 10, 2)
    assert ids.tolist() == [[1] * 6 + [2] * 3 + [0]] and torch.equal(x[0, :6], tokens)
    assert grid[0, :, 4].tolist() == [1, 1] and grid[0, 0, 6:9].tolist() == [0, 1, 2] and not grid[0, 1, 6:9].any()
    assert size[0, 0].tolist() == [2, 3] and size[0, 8].tolist() == [1, 3]


def test_velocity_score_and_noise_are_consistent() -> None:
    data, noise, t = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64), torch.tensor(0.3)
    x, u = interpolate(data, noise, t)
    torch.testing.assert_close(velocity_to_noise(x, u, t), noise, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(x + (1 - t) * u, data, rtol=1e-6, atol=1e-7)
    # Gaussian data N(0, 4): score and velocity are known
    s, t = torch.linspace(-2, 2, 5, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    variance = 4 * t**2 + (1 - t) ** 2
    velocity = s * (4 * t - (1 - t)) / variance
    torch.testing.assert_close(velocity_to_score(s, velocity, t), -s / variance, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("method", "tolerance"), [("euler", 0.05), ("heun", 2e-3), ("sde", 0.15)])
def test_samplers_on_a_known_flow(method: str, tolerance: float) -> None:
    """Data N(1, 4): the flow carries noise z to 1 + 2 z; the stochastic sampler keeps mean and deviation."""
    torch.manual_seed(0)

    def velocity(x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        t = t.view(-1, 1, 1)
        return 1 + (x - t) * (4 * t - (1 - t)) / (4 * t**2 + (1 - t) ** 2)

    z = torch.randn(1, 4000, 1)
    nothing = torch.zeros(1)
    found = sample(velocity, z, nothing, nothing, nothing, steps=60, method=method)  # type: ignore[arg-type]
    if method != "sde":
        torch.testing.assert_close(found, 1 + 2 * z, rtol=tolerance, atol=2 * tolerance)
    assert float(found.mean()) == pytest.approx(1, abs=0.15) and float(found.std()) == pytest.approx(2, abs=0.15)


def test_loss_and_guidance() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor, *rest: Any) -> Tensor:
            return torch.zeros_like(x)

    x, grid, ids, _ = collate([[torch.ones(4, 4, 4)]], 100, 2)
    torch.manual_seed(0)
    loss = flow_loss(Constant(), x.expand(300, -1, -1), torch.zeros(300), grid.expand(300, -1, -1), ids.expand(300, -1))
    assert float(loss) == pytest.approx(2, rel=0.1)  # (1 - noise)² on 4 valid tokens; padding does not count
    model, (t, y) = small(channels=4), conditions(1)
    x, grid, ids, _ = collate([[torch.randn(4, 4, 4, dtype=torch.float64)]], 4, 2)
    one, three = (guided(model, s)(x, t, y, grid, ids) for s in (1.0, 3.0))
    plain, none = (model(x, t, label, grid, ids) for label in (y, torch.full_like(y, 4)))
    torch.testing.assert_close(one, plain)
    torch.testing.assert_close(three[..., :12], (none + 3 * (plain - none))[..., :12])
    assert torch.equal(three[..., 12:], plain[..., 12:])


def test_freezing_for_high_resolution() -> None:
    model = small()
    model.freeze_for_high_resolution()
    free = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {"x_embedder.proj.weight", "final_layer.linear.weight", "blocks.0.attn.qkv.bias"} <= free
    assert "blocks.0.attn.qkv.weight" not in free and "y_embedder.embedding_table.weight" not in free


@pytest.mark.parametrize("options", [{}, {"rank": 0, "qk_norm": False}])
def test_gradcheck(options: dict[str, Any]) -> None:
    model, (t, y) = small(**options), conditions(2)
    x, grid, ids, _ = collate([[latent] for latent in latents()[:2]], 7, 2)
    names = [n for n, _ in model.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x, t, y, grid, ids))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *model.parameters()), fast_mode=True)


def test_modes_batch_and_state() -> None:
    model, (t, y) = small(), conditions(3)
    x, grid, ids, _ = collate([[latent] for latent in latents()], 7, 2)
    found = model(x, t, y, grid, ids)
    torch.testing.assert_close(model(x[1:2], t[1:2], y[1:2], grid[1:2], ids[1:2]), found[1:2], rtol=1e-10, atol=1e-12)
    other = FiT(16, 2, 2, rank=6, patch=2, channels=3, classes=4).double().eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x, t, y, grid, ids), found)
    assert set(model.state_dict()) == {n for n, _ in model.named_parameters()}
    flow_loss(model.train(), x, y, grid, ids).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.float()(x.float(), t.float(), y, grid, ids).isfinite().all()
    half = model.bfloat16()(x.bfloat16(), t.bfloat16(), y, grid, ids)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def test_compiles_without_breaks() -> None:
    model, (t, y) = small(form="ntk-aware"), conditions(3)
    x, grid, ids, size = collate([[latent] for latent in latents()], 7, 2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, y, grid, ids, size), model(x, t, y, grid, ids, size))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="head must be"):
        VisionRotary(6)
    with pytest.raises(ValueError, match="form must be"):
        VisionRotary(8, "pi")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size must be given"):
        VisionRotary(8, "yarn")(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="heads must be"):
        Attention(16, 3)
    with pytest.raises(ValueError, match="latent must have"):
        patchify(torch.zeros(1, 3, 4), 2)
    with pytest.raises(ValueError, match="length must be"):
        collate([[torch.zeros(1, 4, 4)]], 3, 2)
    with pytest.raises(ValueError, match="grid and ids"):
        small()(torch.zeros(1, 3, 12), torch.zeros(1), torch.zeros(1), torch.zeros(1, 2, 4), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="method must be"):
        sample(lambda x: x, torch.zeros(1), *[torch.zeros(1)] * 3, method="dopri5")  # type: ignore[arg-type]
