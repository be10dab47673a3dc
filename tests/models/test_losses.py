"""CenterNet's targets and losses."""
from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch

from models.losses import MIN_OVERLAP, detection_loss, draw_gaussian, focal_loss, gaussian_radius, make_targets


def test_centre_is_floored_and_the_rest_is_kept() -> None:
    t = make_targets([np.array([[10, 20, 31, 42]], np.float32)], [np.array([1])], classes=3, size=(64, 96))
    assert t.hm.shape == (1, 3, 16, 24)
    assert (int(t.image[0]), int(t.row[0]), int(t.column[0])) == (0, 7, 5)  # centre (20.5, 31) / 4
    assert t.wh.tolist() == [[5.25, 5.5]] and t.reg.tolist() == [[0.125, 0.75]]
    assert t.hm[0, 1, 7, 5] == 1 and t.hm[0, 1].eq(1).sum() == 1 and not t.hm[0, [0, 2]].any()


def test_patches_are_the_definition_evaluated_everywhere() -> None:
    rng = np.random.default_rng(0)
    got, expected = np.zeros((12, 20), np.float32), np.zeros((12, 20))
    ys, xs = np.mgrid[:12, :20]
    for _ in range(8):
        row, column, radius = int(rng.integers(12)), int(rng.integers(20)), int(rng.integers(6))
        draw_gaussian(got, row, column, radius)
        dy, dx, sigma = ys - row, xs - column, (2 * radius + 1) / 6
        bell = np.exp(-(dy**2 + dx**2) / (2 * sigma**2)) * (np.maximum(abs(dy), abs(dx)) <= radius)
        expected = np.maximum(expected, bell)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_radius_is_the_released_formulas() -> None:
    """CornerNet released (b + root) / 2 where the root of a r^2 + b r + c is (b + root) / (2 a), a = 4 * MIN_OVERLAP in the binding case:
    its radius is a times that at which a box grown on all sides overlaps by MIN_OVERLAP."""
    for h, w in ((8, 5), (30, 30), (4, 40), (100, 60)):
        right = gaussian_radius(h, w) / (4 * MIN_OVERLAP)
        assert h * w / ((h + 2 * right) * (w + 2 * right)) == pytest.approx(MIN_OVERLAP)


def test_centres_on_the_far_edge_stay_inside_and_empty_boxes_are_left_out() -> None:
    t = make_targets([np.array([[90, 60, 96, 64], [96, 64, 96, 64]], np.float32)], [np.array([0, 0])], classes=1, size=(64, 96))
    assert len(t.row) == 1 and t.hm.amax() == 1


def test_image_without_objects() -> None:
    t = make_targets([np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)], classes=2, size=(32, 32))
    maps = tuple(torch.zeros(1, c, 8, 8, requires_grad=True) for c in (2, 2, 2))
    losses = detection_loss(maps, t)  # type: ignore[arg-type]
    assert torch.isfinite(losses["loss"]) and losses["wh"] == 0
    losses["loss"].backward()  # type: ignore[no-untyped-call]


def test_focal_loss_by_hand() -> None:
    logits, target = torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[1.0, 0.5]]]])
    p = 1 / (1 + np.exp(-2.0))
    expected = -(log(0.5) * 0.25 + log(1 - p) * p**2 * 0.5**4)
    assert focal_loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_weights_of_the_three_losses() -> None:
    t = make_targets([np.array([[8, 8, 24, 24], [40, 8, 56, 24]], np.float32)], [np.array([0, 2])], classes=3, size=(64, 96))
    wh, reg = torch.full((1, 2, 16, 24), 5.0), torch.full((1, 2, 16, 24), 0.25)
    losses = detection_loss((torch.zeros(1, 3, 16, 24), wh, reg), t)
    assert losses["wh"].item() == pytest.approx(2.0) and losses["reg"].item() == pytest.approx(0.5)
    assert losses["loss"].item() == pytest.approx(losses["hm"].item() + 0.1 * 2.0 + 0.5)


def test_perfect_maps_cost_almost_nothing() -> None:
    t = make_targets([np.array([[8, 8, 24, 24]], np.float32)], [np.array([0])], classes=1, size=(32, 32))
    hm = torch.where(t.hm == 1, 20.0, -20.0)
    wh, reg = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    wh[0, :, t.row[0], t.column[0]], reg[0, :, t.row[0], t.column[0]] = t.wh[0], t.reg[0]
    assert detection_loss((hm, wh, reg), t)["loss"].item() < 1e-3


def test_boxes_in_an_area_weigh_one_each_and_point_at_their_centre() -> None:
    boxes = np.array([[8, 8, 56, 40], [20, 12, 60, 44], [0, 0, 6, 6]], np.float32)
    t = make_targets([boxes[:1], boxes], [np.zeros(1, np.int64), np.array([0, 1, 1])], classes=2, size=(64, 96), box_area=0.4)
    assert t.objects == 4 and len(t.row) > 3 * 4
    assert len({(int(i), int(r), int(c)) for i, r, c in zip(t.image, t.row, t.column, strict=True)}) == len(t.row), "one box a pixel"
    assert t.weight.sum().item() == pytest.approx(4)
    first = t.image == 0
    centres = t.reg[first] + torch.stack([t.column[first], t.row[first]], 1)
    torch.testing.assert_close(centres, torch.tensor([[8.0, 6.0]]).expand_as(centres))
    assert {tuple(x) for x in t.wh[first].tolist()} == {(12.0, 8.0)}
    spread = t.row[first].max() - t.row[first].min(), t.column[first].max() - t.column[first].min()
    assert [int(x) for x in spread] == [2, 4]  # int(0.4 * 8 / 2) and int(0.4 * 12 / 2) pixels to either side
    heaviest = t.weight[first].argmax()
    assert (int(t.row[first][heaviest]), int(t.column[first][heaviest])) == (6, 8)


def test_a_perfect_area_costs_nothing_and_the_whole_area_counts() -> None:
    t = make_targets([np.array([[8, 8, 40, 40]], np.float32)], [np.array([0])], classes=1, size=(64, 64), box_area=0.5)
    wh, reg = torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16)
    wh[0, :, t.row, t.column], reg[0, :, t.row, t.column] = t.wh.T, t.reg.T
    losses = detection_loss((torch.zeros(1, 1, 16, 16), wh, reg), t)
    assert losses["wh"] == 0 and losses["reg"] == 0
    wh[0, 0, t.row[0], t.column[0]] += 1
    assert detection_loss((torch.zeros(1, 1, 16, 16), wh, reg), t)["wh"].item() == pytest.approx(t.weight[0].item())
    with pytest.raises(ValueError, match="box_area must be between 0 and 1"):
        make_targets([], [], classes=1, size=(32, 32), box_area=2.0)
