"""Dynamic contrastive distillation: weights, selection, loss, and the cross-encoders it is for."""
from __future__ import annotations

import math
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.counting import macs, parameters
from models.zoo.dcd import DCD, SYSTEM, CrossEncoder, DCDLoss, Terms, choose, confidence, uncertainty

Model = TypeVar("Model", bound=nn.Module)


def shaken(model: Model) -> Model:
    """Every parameter away from its start."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def small(layers: int = 2, **options: Any) -> CrossEncoder:
    torch.manual_seed(0)
    return CrossEncoder(layers, dim=8, heads=2, image_dim=5, text_dim=6, **options)


def pairs(n: int = 3, texts: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 7, 5), torch.randn(n, texts, 3, 6)


class Bilinear(nn.Module):
    """A scorer without encoders: image (B, d), text (B, n, d) -> (B, n)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim))
        self.seen: list[int] = []

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        self.seen.append(text.shape[1])
        return torch.einsum("bd,de,bne->bn", image, self.weight, text)


def test_shares_and_weights_sum_to_one() -> None:
    t = torch.randn(6, 5, dtype=torch.float64)
    e = uncertainty(t)
    entropy = [-sum(p * math.log(p) for p in row.softmax(0).tolist()) for row in t]
    torch.testing.assert_close(e, torch.tensor(entropy, dtype=torch.float64) / sum(entropy), rtol=1e-10, atol=0)
    w = confidence(e)
    assert float(e.sum()) == pytest.approx(1, abs=1e-12) and float(w.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.equal(w.argsort(), e.argsort(descending=True))  # the surer, the heavier
    wanted = ((1 - e) ** 2).exp() / ((1 - e) ** 2).exp().sum()
    torch.testing.assert_close(w, wanted, rtol=1e-10, atol=0)
    certain = torch.tensor([[1e4, 0.0, 0.0], [0.0, 1e4, 0.0]])
    torch.testing.assert_close(uncertainty(certain), torch.tensor([0.5, 0.5]))  # no entropy at all


def test_equal_entropies_are_plain_distillation() -> None:
    row = torch.randn(5, dtype=torch.float64)
    t = torch.stack([row[torch.randperm(5)] for _ in range(4)])
    s = torch.randn(4, 5, dtype=torch.float64)
    terms = DCDLoss(alpha=0.3)(s, t)
    label = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64).expand(4, -1)
    plain = 0.3 * F.mse_loss(s, t) + 0.7 * F.binary_cross_entropy_with_logits(s, label)
    torch.testing.assert_close(terms.total, plain, rtol=1e-10, atol=1e-12)


def test_loss_against_its_definition() -> None:
    s, t = torch.randn(2, 3, 4, dtype=torch.float64)
    temperature, alpha = 2.0, 0.2
    e = uncertainty(t)
    w = confidence(e)
    d = c = 0.0
    for i in range(3):
        d += float(w[i]) * sum(float((t[i, k] - s[i, k]) / temperature) ** 2 for k in range(4)) / 4
        bce = [math.log1p(math.exp(-float(s[i, k]) if k == 0 else float(s[i, k]))) for k in range(4)]
        c += float(e[i]) * sum(bce) / 4
    terms = DCDLoss(alpha, temperature)(s, t)
    assert float(terms.distillation) == pytest.approx(temperature**2 * d, rel=1e-10)
    assert float(terms.contrast) == pytest.approx(c, rel=1e-10)
    assert float(terms.total) == pytest.approx(alpha * temperature**2 * d + (1 - alpha) * c, rel=1e-10)


def test_slips_of_the_published_code() -> None:
    """Its weights have no effect, and its columns are wrong where the positive is not the teacher's first."""
    s = torch.randn(4, 5, dtype=torch.float64)
    t = torch.randn(4, 5, dtype=torch.float64).sort(1, descending=True).values  # the positive first everywhere
    official, intended = DCDLoss(official=True)(s, t), DCDLoss()(s, t)
    torch.testing.assert_close(official.distillation, F.mse_loss(s, t), rtol=1e-10, atol=0)
    torch.testing.assert_close(official.contrast, intended.contrast, rtol=1e-12, atol=0)
    assert abs(float(official.distillation - intended.distillation)) > 1e-4
    swapped = t[:, [1, 0, 2, 3, 4]]
    torch.testing.assert_close(DCDLoss(official=True)(s, swapped).distillation, official.distillation)
    assert abs(float(DCDLoss()(s, swapped).distillation - intended.distillation)) > 1e-4


def test_wsl_weights() -> None:
    s, t = torch.randn(2, 3, 4, dtype=torch.float64)
    label = torch.zeros(3, dtype=torch.long)
    ratio = F.cross_entropy(s, label, reduction="none") / F.cross_entropy(t, label, reduction="none")
    wanted = ((1 - (-ratio).exp()) * (s - t).square().mean(1)).mean()
    torch.testing.assert_close(DCDLoss(weighting="wsl")(s, t).distillation, wanted, rtol=1e-10, atol=0)
    sure = torch.tensor([[1e4, 0.0, 0.0]])
    assert DCDLoss(weighting="wsl")(torch.zeros(1, 3), sure).total.isfinite()


def test_positive_first_and_the_hardest_distinct() -> None:
    t = torch.randn(5, 20)
    chosen = choose(t, 7)
    assert chosen.shape == (5, 8) and (chosen[:, 0] == 0).all()
    for row, columns in zip(t, chosen.tolist(), strict=True):
        assert columns[1:] == (row[1:].argsort(descending=True)[:7] + 1).tolist()
    torch.manual_seed(0)
    some = choose(t, 7, "random")
    assert (some[:, 0] == 0).all() and all(len(set(row)) == 8 for row in some.tolist()) and not torch.equal(some, chosen)
    assert sorted(choose(t, 19)[0].tolist()) == list(range(20))


def test_student_sees_the_few_and_the_teacher_gets_no_gradient() -> None:
    teacher, student = Bilinear(6), shaken(Bilinear(6))
    method = DCD(teacher, student, negatives=3).train()
    image, text = torch.randn(4, 6), torch.randn(4, 11, 6)
    terms = method(image, text)
    assert isinstance(terms, Terms) and teacher.seen == [11] and student.seen == [4]
    scores = teacher(image, text)
    chosen = choose(scores, 3)
    few = torch.stack([text[i, chosen[i]] for i in range(4)])
    torch.testing.assert_close(terms.total, DCDLoss()(student(image, few), teacher(image, few)).total)
    terms.total.backward()  # type: ignore[no-untyped-call]
    assert teacher.weight.grad is None and student.weight.grad is not None and student.weight.grad.abs().sum() > 0
    assert torch.equal(method.eval()(image, text), student(image, text))
    t = torch.randn(2, 3, requires_grad=True)
    DCDLoss()(torch.randn(2, 3, requires_grad=True), t).total.backward()
    assert t.grad is None


def test_shared_encoders_are_frozen_in_training() -> None:
    teacher = small(4)
    student = small(2, share=teacher)
    assert student.vision is teacher.vision and student.text is teacher.text
    image, text = pairs(3, 10)
    method = DCD(teacher, student, negatives=4).train()
    terms = method(image, text)
    assert isinstance(terms, Terms)
    terms.total.backward()  # type: ignore[no-untyped-call]
    for name, p in student.named_parameters():
        frozen = name.startswith(("vision", "text"))
        assert p.requires_grad != frozen and (p.grad is None) == frozen


@pytest.mark.parametrize(("variant", "layers"), [("dcd_teacher", 6), ("dcd_student", 3)])
def test_sizes_of_the_cross_encoders(variant: str, layers: int) -> None:
    """Against the sum of their parts; figures of METER need its encoders, which are not here."""
    d = 768
    side = 2 * 4 * (d * d + d) + 8 * d * d + 5 * d + 6 * d
    with torch.device("meta"):
        assert parameters(SYSTEM.variants[variant]()) == 4 * (d * d + d) + 2 * layers * side + 4 * d + 2


def test_student_costs_half_of_the_co_attention() -> None:
    with torch.device("meta"):
        image, text = torch.empty(1, 49, 768), torch.empty(1, 2, 12, 768)
        costs = []
        for variant in ("dcd_teacher", "dcd_student"):
            model = SYSTEM.variants[variant]()
            own = 49 * 768 * 768 + 24 * 768 * 768 + 2 * (2 * 768 * 768 + 2 * 768 * 2)  # encoders, poolers, head
            costs.append(macs(model, image, text) - own)
    assert costs[0] == 2 * costs[1]


def test_gradcheck() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 4, dtype=torch.float64)
    s.requires_grad_()
    for loss in (DCDLoss(), DCDLoss(temperature=2.0, official=True)):
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(s, t).total, (s,))
    model = shaken(small(1)).double()
    image, text = (x[:1].double().requires_grad_() for x in pairs(1, 2))
    assert torch.autograd.gradcheck(model, (image, text), fast_mode=True)


def test_cross_encoder_modes_batch_and_state() -> None:
    model, (image, text) = shaken(small()), pairs()
    y = model(image, text)
    assert y.shape == (3, 4) and torch.equal(model.eval()(image, text), y)
    torch.testing.assert_close(model(image[1:2], text[1:2]), y[1:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(image, text[:, 2:3]), y[:, 2:3], rtol=1e-5, atol=1e-5)  # texts alone too
    other = small()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(image, text), y)
    model(image, text).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(image, text).isfinite().all()


def test_compiles_without_breaks() -> None:
    loss, s, t = DCDLoss(), torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="eager")(s, t), loss(s, t))
    model, (image, text) = shaken(small(1)), pairs()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(image, text), model(image, text))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="negatives must be"):
        choose(torch.zeros(1, 4), 4)
    with pytest.raises(ValueError, match="alpha must be"):
        DCDLoss(1.5)
    with pytest.raises(ValueError, match="temperature must be"):
        DCDLoss(temperature=0.0)
    with pytest.raises(ValueError, match="weighting must be"):
        DCDLoss(weighting="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="student and teacher"):
        DCDLoss()(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="pick must be"):
        DCD(Bilinear(2), Bilinear(2), pick="easy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers must be"):
        CrossEncoder(0)
    with pytest.raises(ValueError, match="heads must be"):
        CrossEncoder(1, dim=8, heads=3)
    with pytest.raises(ValueError, match="share must have"):
        CrossEncoder(1, dim=16, heads=2, share=small())
