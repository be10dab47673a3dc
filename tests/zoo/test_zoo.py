"""The list of the zoo: every system has its file, its tests, its demonstration and its row."""
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from models.zoo import NAMES, create, system, systems
from models.zoo.base import ClaimFailed, DemoResult, Row
from models.zoo.counting import macs, parameters
from models.zoo.layers import DropPath, LayerNorm2d

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", NAMES)
def test_system_is_whole(name: str) -> None:
    found = system(name)
    assert found.name == name and found.title and found.paper and 2010 <= found.year <= 2026
    file = ROOT / "models" / "zoo" / f"{name}.py"
    assert (file.is_file() or (file.with_suffix("") / "__init__.py").is_file()) and (ROOT / "tests" / "zoo" / f"test_{name}.py").is_file()
    module, _, function = found.demo.partition(":")
    assert module == f"models.zoo.demos.{name}" and callable(getattr(importlib.import_module(module), function))
    assert found.variants and found.checked and found.lowering
    assert {part.verdict for part in found.lowering} <= {"as is", "after a change", "no"}
    doc = importlib.import_module(f"models.zoo.{name}").__doc__ or ""
    assert "On hardware" in doc and len(doc) > 300
    assert found.record()["variants"] == list(found.variants)


@pytest.mark.parametrize("name", NAMES)
def test_operator_follows_device_and_dtype(name: str) -> None:
    """A tensor that a forward pass makes on the CPU, or in float32, does not go through the meta device, as it would not on a GPU."""
    device = "cpu" if name == "dymu" else "meta"  # how many tokens dymu keeps depends on their values
    case = system(name).bench()
    for model in (case.ours, case.baseline):
        model.to(device, torch.float64)
        inputs = [x.to(device, torch.float64).requires_grad_() if x.is_floating_point() else x.to(device) for x in case.inputs]
        output = model(*inputs)
        first = output[0] if isinstance(output, tuple) else output
        assert first.device.type == device and first.dtype == torch.float64
        first.square().mean().backward()


def test_every_module_is_listed() -> None:
    helpers = {"__init__", "base", "counting", "layers", "bench"}
    assert {p.stem for p in (ROOT / "models" / "zoo").glob("*.py")} - helpers <= set(NAMES)
    variants = [v for each in systems().values() for v in each.variants]
    assert len(variants) == len(set(variants)), "a variant's name stands for one system"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="variant must be one of"):
        create("nothing")
    with pytest.raises(ValueError, match="name must be one of"):
        system("nothing")


def test_a_claim_that_does_not_show_fails() -> None:
    good = Row(name="a", ours=[3.0, 3.0, 3.0], baseline=[1.0, 1.0, 1.0], expected="higher", margin=1.5)
    DemoResult(rows=(good,)).check()
    for changes in ({"margin": 2.5}, {"expected": "lower"}, {"ours": [3.0]}, {"ours": [float("nan")] * 3}):
        bad = Row(**({"name": "a", "ours": [3.0] * 3, "baseline": [1.0] * 3, "expected": "higher", "margin": 1.5} | changes))  # type: ignore[arg-type]
        with pytest.raises(ClaimFailed):
            DemoResult(rows=(bad,)).check()


def test_counting() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert parameters(model) == 216 + 645
    assert macs(model, torch.zeros(1, 3, 4, 4)) == 216 * 16 + 640


def test_shared_layers() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 4)
    norm = LayerNorm2d(6)
    torch.testing.assert_close(norm(x).mean(1), torch.zeros(2, 3, 4), atol=1e-6, rtol=0)
    drop = DropPath(0.5).train()
    kept = drop(torch.ones(4000, 1))
    assert set(kept.unique().tolist()) == {0.0, 2.0} and abs(kept.mean().item() - 1) < 0.1
    assert torch.equal(drop.eval()(x), x)
    with pytest.raises(ValueError, match="probability"):
        DropPath(1.0)
