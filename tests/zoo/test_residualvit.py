"""ResidualViT: what frames cost, which tokens stay, and what the residual token sees."""
from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.layers import VisionTransformer
from models.zoo.residualvit import (
    SYSTEM,
    Reduction,
    ResidualTokenizer,
    ResidualViT,
    average_cost,
    distillation_loss,
    kept,
    merge_tokens,
    patch_energy,
)

# GMAC of a full and of a reduced frame, tokens kept, parameters of A, savings at N = 2 and 3
FIGURES = [
    ("b32", 4.41, 0.88, 7, 393_984, 53, 60), ("b16", 17.56, 2.77, 29, 393_984, 56, 63), ("l14", 81.0, 12.3, 38, 787_456, 57, 64),
]  # fmt: skip


def small(reduction: Reduction = "uniform", **options: Any) -> ResidualViT:
    torch.manual_seed(0)
    return ResidualViT(VisionTransformer(16, 4, 16, 2, 2, outputs=6), reduction=reduction, **options)


class Student(nn.Module):
    """E_S as a module, for counting."""

    def __init__(self, model: ResidualViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        return self.model.student(x, feature)


@pytest.mark.parametrize(("name", "full", "reduced", "keep", "count", "two", "three"), FIGURES)
def test_published_figures(name: str, full: float, reduced: float, keep: int, count: int, two: int, three: int) -> None:
    with torch.device("meta"):
        model = SYSTEM.variants[f"residualvit_{name}"]()
        assert isinstance(model, ResidualViT) and model.vit.proj is not None
        x = torch.empty(1, 3, 224, 224)
        c_v, c_s = macs(model.vit, x) / 1e9, macs(Student(model), x, torch.empty(1, model.vit.proj.out_features)) / 1e9
    assert model.keep == keep and parameters(model.tokenizer) == count
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    assert c_v == pytest.approx(full, rel=1e-3) and c_s == pytest.approx(reduced, rel=5e-3)
    for interval, saved in ((2, two), (3, three)):
        assert round(100 * (1 - average_cost(c_v, c_s, interval) / c_v)) == saved


def test_average_saving_is_the_published_one() -> None:
    savings = [1 - average_cost(full, reduced, 2) / full for _, full, reduced, *_ in FIGURES]
    assert sum(savings) / 3 == pytest.approx(0.56, abs=0.01)


@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_nothing_reduced_is_the_plain_vit(reduction: Reduction) -> None:
    model, x = small(reduction, p=0.0, r=0).double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert model.keep == 16
    wanted = F.normalize(model.vit(x), dim=-1)
    torch.testing.assert_close(model.student(x, None), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.full(x), wanted, rtol=1e-12, atol=1e-14)
    other = model.student(x, wanted)
    assert (other - wanted).abs().max() > 1e-4  # the residual token is seen


@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_tokens_in_the_blocks(reduction: Reduction) -> None:
    model, x = small(reduction, p=0.75, r=3), torch.randn(2, 3, 16, 16)
    seen: list[int] = []
    for block in model.vit.blocks:
        block.mlp.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].shape[1]))  # type: ignore[union-attr]
    feature, hint = model.full(x), torch.rand(2, 2, 16, 16)
    seen.clear()
    for known, extra in ((feature, 2), (None, 1)):
        model.student(x, known, hint)
        assert seen == ([13 + extra, 10 + extra] if reduction == "merge" else [4 + extra] * 2)
        seen.clear()


def test_order_of_tokens() -> None:
    """Class token, residual token without a position, kept patches with theirs."""
    model, x = small(p=0.75), torch.randn(1, 3, 16, 16)
    seen: list[Tensor] = []
    model.vit.norm_pre.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    feature = torch.randn(1, 6)
    model.student(x, feature)
    whole = model.vit.embed(x)
    index = torch.tensor([0, 5, 10, 15])
    wanted = torch.cat((whole[:, :1], model.tokenizer(feature)[:, None], whole[:, 1 + index]), 1)
    torch.testing.assert_close(seen[0], wanted)
    model.student(x, None)
    torch.testing.assert_close(seen[1], wanted[:, [0, 2, 3, 4, 5]])


def test_which_tokens_stay() -> None:
    x = torch.zeros(2, 3, 16, 16)
    assert kept(49, 0.85) == 7 and kept(196, 0.85) == 29 and kept(256, 0.85) == 38 and kept(4, 0.99) == 1
    assert small("uniform", p=0.8).choose(x)[0].tolist() == [0, 7, 15]
    assert small("center", p=0.75).choose(x)[0].tolist() == [5, 6, 9, 10]
    model = small("random", p=0.5)
    picks = torch.stack([model.choose(x) for _ in range(200)])
    assert picks.shape == (200, 2, 8) and (picks.diff(dim=-1) > 0).all()
    assert torch.bincount(picks.flatten(), minlength=16).min() > 140
    field = torch.zeros(2, 2, 16, 16)
    field[0, :, 5, 9] = torch.tensor([3.0, 4.0])  # patch 6, length 5
    field[0, 0, 12:, :4] = 0.2  # patch 12, sum 3.2
    field[1, 1, 0, 15] = -1.0  # patch 3
    energy = patch_energy(field, 4)
    torch.testing.assert_close(energy[0, [6, 12]], torch.tensor([5.0, 3.2]))
    assert energy[0].count_nonzero() == 2
    for reduction in ("motion", "residuals"):
        model = small(reduction, p=0.9)
        assert model.keep == 2
        assert model.choose(x, field)[0].tolist() == [6, 12] and 3 in model.choose(x, field)[1].tolist()


def test_merging_keeps_sizes_and_protected_tokens() -> None:
    torch.manual_seed(0)
    x, metric = torch.randn(2, 13, 5, dtype=torch.float64), torch.randn(2, 13, 3, dtype=torch.float64)
    size = torch.rand(2, 13, dtype=torch.float64) + 1
    y, w = merge_tokens(x, size, metric, 4, 2)
    assert y.shape == (2, 9, 5) and torch.equal(y[:, :2], x[:, :2]) and torch.equal(w[:, :2], size[:, :2])
    torch.testing.assert_close(w.sum(1), size.sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close((y * w[..., None]).sum(1), (x * size[..., None]).sum(1), rtol=1e-10, atol=1e-12)
    assert merge_tokens(x, size, metric, 0, 2)[0] is x
    assert merge_tokens(x, size, metric, 99, 2)[0].shape[1] == 8  # half of eleven stay at least
    twins = x.clone()
    twins[:, 3] = twins[:, 2]
    metric[:, 3] = metric[:, 2]
    y, w = merge_tokens(twins, torch.ones(2, 13, dtype=torch.float64), metric, 1, 2)
    assert (w.max(1).values == 2).all()
    for n in range(2):
        torch.testing.assert_close(y[n, w[n].argmax()], twins[n, 2], rtol=1e-12, atol=1e-14)


def test_p_frames_come_from_their_i_frame() -> None:
    model, video = small(interval=2), torch.randn(2, 7, 3, 16, 16)
    out = model(video)
    assert out.shape == (2, 7, 6)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(2, 7))
    for t in range(7):
        anchor = model.full(video[:, t - t % 3])
        wanted = anchor if t % 3 == 0 else model.student(video[:, t], anchor)
        torch.testing.assert_close(out[:, t], wanted, rtol=1e-5, atol=1e-6)
    moved = video.clone()
    moved[:, 3] += 1
    assert ((model(moved) != out).any(-1).any(0)).tolist() == [False] * 3 + [True] * 3 + [False]
    assert torch.equal(small(interval=0)(video), model.full(video.flatten(0, 1)).view(2, 7, 6))
    hints = torch.rand(2, 7, 2, 16, 16)
    motion = small("motion")
    wanted = motion.student(video[:, 1], motion.full(video[:, 0]), hints[:, 1])
    torch.testing.assert_close(motion(video, hints)[:, 1], wanted, rtol=1e-5, atol=1e-6)


def test_distillation_loss() -> None:
    torch.manual_seed(0)
    teacher, text = F.normalize(torch.randn(3, 4), dim=-1), F.normalize(torch.randn(5, 4), dim=-1)
    student = F.normalize(torch.randn(3, 4), dim=-1).requires_grad_()
    wanted = torch.stack([F.cross_entropy(7 * text @ s, (7 * text @ t).softmax(0)) for s, t in zip(student, teacher, strict=True)]).mean()
    torch.testing.assert_close(distillation_loss(teacher, student, text, 7.0), wanted)
    best = distillation_loss(teacher, teacher, text, 7.0)
    p = (7 * teacher @ text.mT).softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    torch.testing.assert_close(best, entropy)
    assert best < distillation_loss(teacher, student, text, 7.0)


def test_only_the_tokenizer_trains() -> None:
    model = small(layers=2).train()
    model(torch.randn(1, 3, 3, 16, 16)).sum().backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {"tokenizer"}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.tokenizer.parameters())
    assert [type(m).__name__ for m in ResidualTokenizer(3, 4, 3)] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


@pytest.mark.parametrize("reduction", ["uniform", "merge"])
def test_batch_state_and_autocast(reduction: Reduction) -> None:
    model, video = small(reduction, r=3), torch.randn(2, 3, 3, 16, 16)
    y = model(video)
    torch.testing.assert_close(model(video[1:]), y[1:], rtol=1e-5, atol=1e-6)
    other = small(reduction, r=3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(video), y)
    picture = video[:, 1].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.student(picture, y[:, 0]), y[:, 1], rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(video).isfinite().all()


def test_gradcheck() -> None:
    torch.manual_seed(0)
    metric, size = torch.randn(1, 6, 2, dtype=torch.float64), torch.rand(1, 6, dtype=torch.float64) + 1
    x = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: merge_tokens(t, size, metric, 2, 1)[0], (x,))
    model = small(p=0.8).double()
    feature = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    picture = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: model.student(picture, f), (feature,))


@pytest.mark.parametrize("reduction", ["uniform", "merge"])
def test_compiles_without_breaks(reduction: Reduction) -> None:
    model, x = small(reduction, r=3), torch.randn(2, 3, 16, 16)
    feature = model.full(x)
    compiled = torch.compile(model.student, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, feature), model.student(x, feature))


def test_errors_name_the_argument() -> None:
    vit = VisionTransformer(16, 4, 16, 1, 2, outputs=6)
    with pytest.raises(ValueError, match="vit must have"):
        ResidualViT(VisionTransformer(16, 4, 16, 1, 2))
    with pytest.raises(ValueError, match="interval must be"):
        ResidualViT(vit, interval=-1)
    with pytest.raises(ValueError, match="reduction must be"):
        ResidualViT(vit, reduction="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="p and r"):
        ResidualViT(vit, p=1.0)
    with pytest.raises(ValueError, match="layers must be"):
        ResidualTokenizer(3, 4, 0)
    with pytest.raises(ValueError, match="hint must be"):
        small("motion").choose(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="video must be"):
        small()(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="x must be images"):
        small()(torch.zeros(1, 1, 3, 20, 16))
