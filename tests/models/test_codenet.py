"""The detector family: the paper's sizes, shapes, wiring, trunks."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import checkpoint
from models.detectors.codenet import CHANNELS, PRESETS, VOC, Codenet, CodenetConfig, images_to_input, trace
from models.detectors.trunk import IMAGENET_MEAN, IMAGENET_STD, fold_preprocessing, load_trunk
from models.layers import find_layers
from models.ops.wiring import Shuffle

WEIGHTS = Path(__file__).parents[3] / "shared/data/weights"


@pytest.mark.parametrize(("preset", "parameters"), [("a", 1_588_031), ("b", 1_588_031), ("d", 6_082_427)])
def test_parameter_totals_are_the_papers(preset: str, parameters: int) -> None:
    with torch.device("meta"):
        model = Codenet(PRESETS[preset])
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("width", sorted(CHANNELS))
@pytest.mark.parametrize("stem", ["pool", "stride4"])
def test_maps_have_a_quarter_of_the_size(width: float, stem: str) -> None:
    with torch.device("meta"):
        maps = Codenet(CodenetConfig(width=width, size=(64, 96), classes=VOC, stem=stem))(torch.empty(2, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(2, 20, 16, 24), (2, 2, 16, 24), (2, 2, 16, 24)]


def test_shuffle_interleaves_the_halves() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert Shuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_starts_as_a_plain_convolution_with_the_prior_of_a_rare_object() -> None:
    model = Codenet(CodenetConfig(size=(32, 32))).eval()
    assert all(bool((stage.offset(torch.rand(1, stage.deform.channels, 2, 2)) == 0).all()) for stage in model.decoder)  # type: ignore[operator, union-attr, arg-type]
    with torch.no_grad():
        assert torch.sigmoid(model(torch.rand(1, 3, 32, 32))[0]).mean().item() == pytest.approx(0.1, abs=0.02)


def test_graph_consists_of_leaf_modules_with_paths() -> None:
    model = Codenet(PRESETS["tiny"])
    kinds = {node.op for node in trace(model).nodes}
    assert kinds == {"placeholder", "call_module", "call_function", "output"}
    functions = {str(node.target) for node in trace(model).nodes if node.op == "call_function"}
    assert len(functions) == 1 and "getitem" in functions.pop()


def test_one_quantizer_a_stage_serves_all_block_outputs() -> None:
    layers, groups = find_layers(Codenet(PRESETS["tiny"]))
    assert [len(group) for group in groups] == [2 + 3, 2 + 7, 2 + 3]
    assert groups[0] == ["stage2.0.branch1.4", *(f"stage2.{i}.branch2.7" for i in range(4))]
    assert len(layers) == 1 + (5 + 3 * 3) + (5 + 7 * 3) + (5 + 3 * 3) + 1 + 3 * 3 + 3 * 3
    by_name = {layer.conv: layer for layer in layers}
    assert by_name["decoder.0.offset"].slot == "decoder.0.bound" and by_name["decoder.0.deform"].slot == "decoder.0.gathered"
    assert by_name["stage2.0.branch2.3"].slot == "stage2.0.branch2.4", "without a ReLU the place of the batch norm is the quantizer's"
    assert [layer.conv for layer in layers if layer.output is not None] == ["hm.6", "wh.6", "reg.6"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0.3}, "width must be one of"),
        ({"size": (100, 128)}, "multiple of 32"),
        ({"classes": ()}, "classes must be"),
        ({"classes": ("a", "a")}, "classes must be"),
        ({"stem": "big"}, "stem must be"),
        ({"frac_bits": 5}, "frac_bits must be"),
    ],
)
def test_bad_configurations_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodenetConfig(**fields)  # type: ignore[arg-type]


def test_configuration_survives_json() -> None:
    config = CodenetConfig(width=0.5, classes=("x", "y"), frac_bits=0)
    assert CodenetConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="unknown fields"):
        CodenetConfig.from_json('{"depth": 3}')


def test_images_become_raw_over_256() -> None:
    x = images_to_input(np.array([[[[0, 1, 255]]]], np.uint8))
    assert x.shape == (1, 3, 1, 1) and (x.flatten() * 256).tolist() == [0, 1, 255]
    with pytest.raises(ValueError, match="uint8"):
        images_to_input(np.zeros((1, 4, 4, 3)))


def stem_of(state: dict[str, torch.Tensor]) -> nn.Sequential:
    model = Codenet(CodenetConfig(size=(32, 32))).eval()
    model.load_state_dict(state, strict=False)
    return model.conv1


@pytest.mark.parametrize("normalized", [False, True])
def test_preprocessing_folds_into_the_stem(normalized: bool) -> None:
    """Inside the image the folded stem on raw / 256 gives what the original gives on its own input."""
    torch.manual_seed(0)
    state = {name: value for name, value in Codenet(CodenetConfig(size=(32, 32))).state_dict().items() if name.startswith("conv1")}
    state["conv1.1.running_mean"] = torch.randn(24)
    raw = torch.randint(0, 256, (1, 3, 16, 16))
    given = raw / 255
    if normalized:
        given = (given - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.no_grad():
        expected, got = stem_of(state)(given), stem_of(fold_preprocessing(state, normalized=normalized))(raw / 256)
    torch.testing.assert_close(got[:, :, 1:, 1:], expected[:, :, 1:, 1:], rtol=1e-4, atol=1e-5)
    if not normalized:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_trunk_report_says_what_did_not_match(tmp_path: Path) -> None:
    model = Codenet(CodenetConfig(size=(32, 32)))
    state = {name: value for name, value in model.state_dict().items() if name.startswith(("conv1", "stage"))}
    del state["stage3.0.branch1.0.weight"]
    state["stage4.0.branch1.0.weight"] = torch.zeros(7)
    state["fc.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "trunk.pth")
    report = load_trunk(model, tmp_path / "trunk.pth")
    assert set(report.unused) == {"fc.weight"} and report.differ == ("stage4.0.branch1.0.weight is 7, here 48x1x3x3",)
    assert {"stage3.0.branch1.0.weight", "conv5.0.weight"} <= set(report.missing)
    assert "not used: fc.weight" in str(report) and "differ: stage4.0.branch1.0.weight is 7" in str(report)


def test_a_trunks_depthwise_kernels_start_deformable_ones(tmp_path: Path) -> None:
    plain = Codenet(CodenetConfig(size=(32, 32)))
    torch.save({name: value for name, value in plain.state_dict().items() if name.startswith(("conv1", "stage"))}, tmp_path / "trunk.pth")
    deform = Codenet(CodenetConfig(size=(32, 32), deform_stages=(4,)))
    report = load_trunk(deform, tmp_path / "trunk.pth")
    assert not report.unused and not report.differ
    left = plain.get_submodule("stage4.1.branch2.3").weight
    assert torch.equal(deform.get_submodule("stage4.1.branch2.3.deform").weight, left)  # type: ignore[arg-type]
    even = Codenet(CodenetConfig(width=0.5, size=(32, 32), blocks="even-odd"))
    with pytest.raises(ValueError, match="torchvision's wiring"):
        load_trunk(even, tmp_path / "trunk.pth")


def test_a_file_that_is_no_trunk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="must be a PyTorch state dict"):
        load_trunk(Codenet(CodenetConfig(size=(32, 32))), tmp_path / "junk.pth")
    torch.save({"conv1.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit a network of width"):
        load_trunk(Codenet(CodenetConfig(size=(32, 32))), tmp_path / "other.pth")


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs ../shared/data/weights")
def test_shared_trunks_agree_whatever_their_preprocessing() -> None:
    """The same trunk given with and without mean and std folded in is the same network, but for the border."""
    outputs = []
    for name in ("shufflenetv2_x0.5_imagenet_trunk.pth", "shufflenetv2_x0.5_imagenet_trunk_meanstd.pth"):
        model = Codenet(CodenetConfig(width=0.5, size=(64, 64))).eval()
        report = load_trunk(model, WEIGHTS / name)
        assert not report.unused and all(missing.startswith("conv5") for missing in report.missing)
        with torch.no_grad():
            outputs.append(model.conv1(torch.full((1, 3, 64, 64), 100 / 256)))
    torch.testing.assert_close(outputs[0][:, :, 1:, 1:], outputs[1][:, :, 1:, 1:], rtol=1e-3, atol=1e-3)


def test_checkpoints_load_weights_only(tmp_path: Path) -> None:
    model = Codenet(CodenetConfig(size=(32, 32))).eval()
    checkpoint.save_float(tmp_path / "float.pt", model)
    again = checkpoint.load_float(tmp_path / "float.pt")
    assert again.config == model.config and all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    torch.save({"config": Path}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="must be a checkpoint"):
        checkpoint.load(tmp_path / "code.pt")
    checkpoint.save(tmp_path / "other.pt", {"config": model.config.to_json(), "state": {}})
    with pytest.raises(ValueError, match="must be a float checkpoint"):
        checkpoint.load_float(tmp_path / "other.pt")
