"""DyMU: what merging keeps, what calibration reaches, and that virtual tokens attend as real ones."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.demos.dymu import images
from models.zoo.dymu import SYSTEM, DyMUEncoder, VirtualAttention, group_mean, match, merge, rotary, schedule, virtual_logits
from models.zoo.layers import QuickGELU, TokenBlock, VisionTransformer

ENCODERS = [
    ("clip_l14_336", 1024, 24, 14, 4096, 576, True), ("siglip_b16_384", 768, 12, 16, 3072, 576, False),
    ("so400m_14_384", 1152, 27, 14, 4304, 729, False),
]  # fmt: skip


def small(clip: bool = True, r: tuple[int, ...] = (4, 4)) -> DyMUEncoder:
    torch.manual_seed(0)
    return DyMUEncoder(16, 4, 16, len(r), 2, r=r, clip=clip)


def picture(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("name", "width", "depth", "patch", "hidden", "tokens", "clip"), ENCODERS)
def test_named_encoders(name: str, width: int, depth: int, patch: int, hidden: int, tokens: int, clip: bool) -> None:
    layer = 4 * (width**2 + width) + 2 * width * hidden + hidden + width + 4 * width
    count = 3 * patch**2 * width + (width if not clip else 3 * width) + (tokens + clip) * width + depth * layer + 2 * width
    outputs = (192,) if tokens == 729 else (480, 384, 192, 72)
    for out in outputs:
        with torch.device("meta"):
            model = SYSTEM.variants[f"dymu_{name}_out{out}"]()
        assert isinstance(model, DyMUEncoder)
        assert parameters(model) == count and model.patches == tokens and tokens - sum(model.r) == out
        if name != "so400m_14_384":
            assert len(set(model.r)) == 1  # 4, 8, 16, 21 in 24 blocks; 8, 16, 32, 42 in 12
        else:
            assert sum(model.r) == 537 and set(model.r) == {19, 20}
    if clip:
        assert count == 303_507_456  # published: 303.5 M


def test_schedules() -> None:
    assert schedule(96, 12) == (8,) * 12 and schedule(504, 12) == (42,) * 12 and schedule(504, 24) == (21,) * 24
    falling = schedule(120, 6, "linear")
    assert falling == (40, 32, 24, 16, 8, 0) and schedule(120, 6, "reverse") == falling[::-1]
    assert sum(schedule(537, 27, "linear")) == 537 and schedule(5, 1, "linear") == (5,)


@pytest.mark.parametrize("clip", [True, False])
def test_threshold_of_one_changes_nothing(clip: bool) -> None:
    """Also where all patches are the same, whose cosine rounds above 1."""
    model = small(clip).eval()
    plain = VisionTransformer(16, 4, 16, 2, 2, clip=clip).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k not in ("thresholds", "batches")})
    for x in (picture(), torch.ones(2, 3, 16, 16)):
        out = model(x)
        assert (out.size == 1).all() and out.counts().tolist() == [16] * len(x)
        torch.testing.assert_close(out.unmerged(), plain(x)[:, int(clip) :], rtol=1e-5, atol=1e-6)


def test_similarity_never_exceeds_one() -> None:
    torch.manual_seed(0)
    over = 0
    for _ in range(200):
        token = torch.randn(1, 64)
        score, _ = match(token.expand(6, -1))
        unit = F.normalize(token, dim=-1)
        over += float((unit @ unit.mT).max()) > 1
        assert score.max() <= 1 and not (score > 1.0).any()
    assert over > 10  # without the clamp a threshold of 1 would merge


@pytest.mark.parametrize("protect", [False, True])
def test_merge_by_hand(protect: bool) -> None:
    tokens = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    size, index = torch.tensor([1.0, 3.0, 1.0, 1.0, 2.0]), torch.tensor([0, 1, 1, 2, 3, 4, 1])
    score, target = torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0, 1, 0])
    y, w, i = merge(tokens, size, index, score, target, score > 0.6, protect)
    left = [1.0, 16.0] if protect else [16.0, 1.0]  # by falling score, or in order
    assert y.flatten().tolist() == [*left, 2.0, 6.0]
    assert w.sum() == size.sum() and w.tolist()[2:] == [3.0, 2.0]
    assert y[i].flatten().tolist() == [1.0, 2.0, 2.0, 6.0, 6.0, 16.0, 2.0]
    y, w, i = merge(tokens, size, index, score, target, score > 0.3, protect)
    assert y.flatten().tolist() == pytest.approx([1.0, (2 * 3 + 16 * 2) / 5, 6.0])
    y, _, _ = merge(tokens, size, index, score, target, score > 0, protect)
    assert len(y) == 3 and y[0] == 1  # at most half: the lowest score stays


def test_matching() -> None:
    metric = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0], [2.0, 0.1]])
    score, target = match(metric)
    assert target.tolist() == [1, 1]
    wanted = F.cosine_similarity(metric[::2], metric[[3]])
    torch.testing.assert_close(score, wanted)
    assert match(metric, True)[0][0] == -torch.inf
    assert match(metric[:1])[0].tolist() == [-torch.inf]


@pytest.mark.parametrize("clip", [True, False])
def test_conservation(clip: bool) -> None:
    model, x = small(clip).eval(), picture()
    model.calibrate(x)
    for out in (model(x), model.fixed(x)):
        matrix = out.matrix()
        assert (matrix.sum(1) == 1).all()
        torch.testing.assert_close(matrix.sum(2).float(), out.size, rtol=0, atol=0)
        assert (out.size.sum(1) == 16).all() and out.counts().min() < 16
        assert out.unmerged().shape == (3, 16, 16)
    assert model.fixed(x).counts().tolist() == [8, 8, 8]


def test_calibration() -> None:
    """The threshold is the first similarity that is rejected in a batch, at least 0; batches are averaged; one batch reaches r."""
    model, x = small(False, (4,)).eval(), picture(8)
    metric = model.blocks[0].attend(model.norm_pre(model.embed(x)))[1]  # type: ignore[operator]
    scores = torch.cat([match(m)[0] for m in metric]).sort(descending=True).values
    first = model.calibrate(x)
    assert float(first.counts().float().mean()) == 12
    thresholds = model.get_buffer("thresholds")
    assert thresholds[0] == scores[32].clamp(min=0)
    torch.testing.assert_close(model(x).counts().float().mean(), torch.tensor(12.0))
    model.calibrate(torch.ones(1, 3, 16, 16))
    other = small(False, (4,)).eval()
    other.calibrate(torch.ones(1, 3, 16, 16))
    torch.testing.assert_close(thresholds, (scores[32].clamp(min=0) + other.get_buffer("thresholds")) / 2)
    none = small(False, (0, 8)).eval()
    none.calibrate(x)
    assert none.get_buffer("thresholds")[0] == 1  # r = 0: never
    far = small(False, (8,)).eval()
    far.calibrate(picture(1))
    assert far.get_buffer("thresholds")[0] == 0  # nothing rejected


def test_tokens_grow_with_complexity() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = DyMUEncoder(48, 4, 32, 3, 2, r=schedule(96, 3)).eval()
    mixed = {kinds: images(kinds, 4, generator) for kinds in (2, 8, 32, 144)}
    model.calibrate(torch.cat(list(mixed.values())))
    with torch.no_grad():
        counts = [float(model(x).counts().float().mean()) for x in mixed.values()]
    assert counts == sorted(counts) and counts[-1] > 2 * counts[0]
    assert sum(counts) / 4 == pytest.approx(48, abs=4)


def test_encoder_modes_batch_and_state() -> None:
    model, x = small(), picture()
    model.calibrate(x)
    out = model(x)
    for i in range(3):  # padding and neighbours change nothing
        alone = model(x[i : i + 1])
        n = int(alone.counts()[0])
        assert n == int(out.counts()[i]) and torch.equal(alone.index[0], out.index[i])
        torch.testing.assert_close(alone.tokens[0], out.tokens[i, :n], rtol=1e-5, atol=1e-6)
        assert (out.tokens[i, n:] == 0).all()
    other = small()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x).tokens, out.tokens)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)).tokens, out.tokens, rtol=1e-5, atol=1e-6)
    out.tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).tokens.isfinite().all()


def test_proportional_attention_is_attention_to_copies() -> None:
    block = TokenBlock(8, 2).double()
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    size = torch.tensor([[1.0, 3.0, 2.0, 0.0]], dtype=torch.float64)
    copies = x[:, [0, 1, 1, 1, 2, 2]]
    torch.testing.assert_close(block(x, size)[:, :3], block(copies)[:, [0, 1, 4]], rtol=1e-10, atol=1e-12)
    assert QuickGELU()(torch.tensor(1.0)) == pytest.approx(1 / (1 + 2.718281828**-1.702))


def groups() -> tuple[Tensor, Tensor]:
    """Which of 5 stored tokens stands at each of 9 positions, two images; text at the end."""
    index = torch.tensor([[0, 1, 0, 2, 2, 1, 0, 3, 4], [2, 2, 1, 0, 0, 0, 1, 3, 4]])
    return index, F.one_hot(index, 5).double()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_virtual_logits_are_those_of_copies(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    index, _ = groups()
    q, k = torch.randn(2, 2, 3, 5, 8, dtype=dtype)
    theta, positions = 10000 ** (-torch.arange(4, dtype=dtype) / 4), torch.arange(9) + 5
    rows = index[:, None, :, None].expand(-1, 3, -1, 8)
    wanted = rotary(q.gather(2, rows), positions, theta) @ rotary(k.gather(2, rows), positions, theta).mT
    torch.testing.assert_close(virtual_logits(q, k, index, positions, theta), wanted, rtol=tolerance, atol=tolerance)


def test_virtual_attention_is_attention_over_copies_and_group_means() -> None:
    torch.manual_seed(0)
    index, _ = groups()
    layer, x = VirtualAttention(16, 2).double(), torch.randn(2, 5, 16, dtype=torch.float64)
    copies = x.gather(1, index[..., None].expand(-1, -1, 16))
    q, k, v = layer.qkv(copies).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    theta = layer.get_buffer("theta").double()
    q, k = (rotary(t, torch.arange(9), theta) for t in (q, k))
    full = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    wanted = layer.proj(torch.stack([torch.stack([full[b, index[b] == u].mean(0) for u in range(5)]) for b in range(2)]))
    torch.testing.assert_close(layer(x, index), wanted, rtol=1e-10, atol=1e-12)
    plain = torch.arange(5).expand(2, -1)
    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    q, k = (rotary(t, torch.arange(5), theta) for t in (q, k))
    wanted = layer.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, plain), wanted, rtol=1e-10, atol=1e-12)


def test_merging_equal_rows_again_is_exact() -> None:
    _, where = groups()
    stored = torch.randint(-8, 8, (2, 5, 3)).double()
    assert torch.equal(group_mean(where @ stored, where), stored)
    assert torch.equal(group_mean(torch.ones(1, 2, 3), F.one_hot(torch.tensor([[0, 2]]), 3).float())[0, :, 0], torch.tensor([1.0, 0, 1]))


def test_gradcheck() -> None:
    torch.manual_seed(0)
    layer = VirtualAttention(4, 1).double()
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 1, 0, 2]])
    assert torch.autograd.gradcheck(lambda t: layer(t, index), (x,))
    tokens = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    score, target = torch.tensor([0.9, 0.1, 0.8]), torch.tensor([0, 1, 0])
    size = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: merge(t, size, torch.arange(5), score, target, score > 0.5)[0], (tokens,))


def test_merging_saves_macs() -> None:
    model, x = DyMUEncoder(64, 4, 16, 2, 2, r=(100, 50)), torch.zeros(1, 3, 64, 64)
    full = macs(model, x)
    model.get_buffer("thresholds").fill_(-1.0)
    assert macs(model, x) < 0.8 * full


def test_compiles_without_breaks() -> None:
    index, _ = groups()
    layer, x = VirtualAttention(16, 2), torch.randn(2, 5, 16)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x, index), layer(x, index))
    compiled = torch.compile(match, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x[0]), match(x[0]))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="r must be"):
        DyMUEncoder(16, 4, 16, 2, 2, r=(1,))
    with pytest.raises(ValueError, match="kind must be"):
        schedule(4, 2, "other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="total and depth"):
        schedule(-1, 2)
    with pytest.raises(ValueError, match="heads must be"):
        VirtualAttention(6, 2)
    with pytest.raises(ValueError, match="x must be"):
        small()(torch.zeros(1, 3, 20, 16))
    with pytest.raises(ValueError, match="patch must be"):
        VisionTransformer(8, 16, 16, 1, 1)
    with pytest.raises(ValueError, match="outputs must be"):
        VisionTransformer(16, 4, 16, 1, 1, clip=False, outputs=3)
