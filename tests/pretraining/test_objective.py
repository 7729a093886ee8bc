"""Masks, targets and the loss against plain loops in float64."""

import math

import pytest
import torch

from hsta_fast.pretraining.objective import (
    Target,
    cell_size,
    num_outputs,
    reconstruction_loss,
    take_rows,
    targets,
    token_order,
    tube_masks,
)


def test_masks_are_equal_for_equal_seeds_and_hide_the_same_number_in_every_clip() -> None:
    masks = tube_masks(5, 49, 0.9, (3, 1, 4))
    assert masks.dtype == torch.bool and masks.sum(1).tolist() == [44] * 5
    assert torch.equal(masks, tube_masks(5, 49, 0.9, (3, 1, 4)))
    assert not torch.equal(masks, tube_masks(5, 49, 0.9, (3, 1, 5)))
    assert len({tuple(mask.tolist()) for mask in masks}) == 5
    # The very positions, so that a release draws the masks of the one before.
    assert tube_masks(2, 6, 0.5, (1,)).int().tolist() == [[1, 0, 0, 1, 0, 1], [0, 1, 0, 1, 0, 1]]


@pytest.mark.parametrize(("ratio", "hidden"), [(0.01, 1), (0.99, 3), (0.5, 2)])
def test_at_least_one_position_is_hidden_and_one_visible(ratio: float, hidden: int) -> None:
    assert tube_masks(2, 4, ratio, (0,)).sum(1).tolist() == [hidden] * 2


def test_a_position_is_hidden_at_every_time() -> None:
    hidden = torch.tensor([[True, False, True], [False, True, True]])
    order, visible = token_order(hidden, times=2)
    assert visible == 2
    assert order.tolist() == [[1, 4, 0, 2, 3, 5], [0, 3, 1, 2, 4, 5]]


def by_loops(frames: torch.Tensor, target: Target, t: int, p: int) -> torch.Tensor:
    """`targets` of float64 frames, number by number."""
    num, height, width = frames.shape[2:]
    lines, columns = height // p, width // p
    side = cell_size(p)
    rows = []
    for x in frames[..., : lines * p, : columns * p]:
        moved = torch.zeros(num, lines * p // side, columns * p // side, dtype=torch.float64)
        for f in range(num):
            for i in range(moved.shape[1]):
                for j in range(moved.shape[2]):
                    cell = slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side)
                    moved[f, i, j] = (x[:, f, *cell] - x[:, 0, *cell]).mean()
            moved[f] -= moved[f].mean()
        moved /= moved.square().mean().sqrt() + 1e-6
        tokens = []
        for k in range(num // t):
            for i in range(lines):
                for j in range(columns):
                    if target == "pixels":
                        tube = x[:, k * t : (k + 1) * t, i * p : (i + 1) * p, j * p : (j + 1) * p]
                        tokens.append(torch.cat([(c - c.mean()) / (c.std() + 1e-6) for c in tube]).flatten())
                    else:
                        n = p // side
                        tube = moved[k * t : (k + 1) * t, i * n : (i + 1) * n, j * n : (j + 1) * n]
                        tokens.append(tube.flatten())
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


@pytest.mark.parametrize("target", ["pixels", "difference"])
def test_targets_are_those_of_plain_loops(target: Target) -> None:
    torch.manual_seed(0)
    frames = torch.rand(2, 3, 4, 13, 20, dtype=torch.float64)  # 13: a line outside whole patches
    found = targets(frames, target, 2, 6)
    assert found.shape == (2, 2 * 2 * 3, num_outputs(target, 2, 6))
    torch.testing.assert_close(found, by_loops(frames, target, 2, 6), rtol=1e-10, atol=1e-10)


def test_bytes_have_the_targets_of_their_values() -> None:
    frames = torch.randint(0, 256, (2, 3, 2, 8, 8), dtype=torch.uint8)
    for target in ("pixels", "difference"):
        wide = targets(frames.double() / 255, target, 2, 4)
        torch.testing.assert_close(targets(frames, target, 2, 4).double(), wide, rtol=1e-3, atol=1e-4)


def test_a_clip_without_movement_has_a_target_of_zero() -> None:
    frames = torch.rand(1, 3, 1, 8, 8, dtype=torch.float64).expand(-1, -1, 2, -1, -1)
    assert targets(frames, "difference", 2, 4).abs().max() == 0


@pytest.mark.parametrize(("patch", "side"), [(16, 4), (12, 4), (6, 3), (14, 2), (7, 1)])
def test_squares_divide_the_patch(patch: int, side: int) -> None:
    assert cell_size(patch) == side


def test_the_loss_is_the_mean_over_hidden_numbers_and_a_share_of_the_visible_ones() -> None:
    torch.manual_seed(0)
    predicted, wanted = (torch.randn(2, 5, 3, dtype=torch.float64) for _ in range(2))
    sums = {True: 0.0, False: 0.0}
    for b in range(2):
        for n in range(5):
            for k in range(3):
                sums[n < 2] += (predicted[b, n, k] - wanted[b, n, k]).item() ** 2
    hidden, visible = sums[False] / 18, sums[True] / 12
    for weight in (0.0, 0.5):
        loss = reconstruction_loss(predicted, wanted, 2, weight).item()
        assert math.isclose(loss, hidden + weight * visible, rel_tol=1e-12)


def test_rows_are_taken_of_each_clip_and_of_a_table_that_all_share() -> None:
    x, rows = torch.arange(12.0).view(2, 3, 2), torch.tensor([[2, 0], [1, 1]])
    assert take_rows(x, rows).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
    assert take_rows(x[:1], rows).tolist() == [[[4, 5], [0, 1]], [[2, 3], [2, 3]]]
