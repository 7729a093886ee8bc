"""Patch embeddings for other patches and pixels, against what defines them."""

import pytest
import torch

from hsta_fast.pretrained.patches import fold_pixels, inflate, resample, resize_matrix


def projection(size: int, width: int = 5) -> torch.Tensor:
    return torch.randn(
        width, 3, 2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def resized(patches: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ap,bq,nctpq->nctab", matrix, matrix, patches)


def tokens(patches: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.einsum("nctpq,dctpq->nd", patches, weight)


def test_larger_patches_have_the_same_tokens() -> None:
    weight, patches = projection(8), projection(8, width=7)
    larger = resample(weight, 12)
    assert larger.shape == (5, 3, 2, 12, 12)
    got = tokens(resized(patches, resize_matrix(8, 12)), larger)
    torch.testing.assert_close(got, tokens(patches, weight), rtol=0, atol=1e-12)


def test_smaller_patches_have_the_tokens_of_the_patches_that_they_are_upsampled_to() -> None:
    weight, patches = projection(16), projection(12, width=7)
    upsampled = resized(patches, torch.linalg.pinv(resize_matrix(16, 12)))
    torch.testing.assert_close(resized(upsampled, resize_matrix(16, 12)), patches, rtol=0, atol=1e-12)
    got = tokens(patches, resample(weight, 12))
    torch.testing.assert_close(got, tokens(upsampled, weight), rtol=0, atol=1e-11)


def test_smaller_patches_are_the_best_in_the_least_squares_sense() -> None:
    weight = projection(16, width=1)[:, :1, :1]
    matrix = resize_matrix(16, 12)
    both = torch.kron(matrix, matrix)  # (144, 256); over all x of unit variance the error is |B' v - w|^2
    best = torch.linalg.lstsq(both.T, weight.reshape(256, 1)).solution
    torch.testing.assert_close(resample(weight, 12).reshape(144, 1), best, rtol=0, atol=1e-11)


def test_a_still_clip_has_the_tokens_of_its_image() -> None:
    image, weight = torch.randn(4, 3, 8, 8, dtype=torch.float64), projection(8)[:, :, 0]
    still = image.unsqueeze(2).expand(-1, -1, 2, -1, -1)
    got = torch.einsum("nctpq,dctpq->nd", still, inflate(weight, 2))
    torch.testing.assert_close(got, torch.einsum("ncpq,dcpq->nd", image, weight), rtol=0, atol=1e-12)


@pytest.mark.parametrize("theirs", [((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ((0.5, 0.4, 0.3), (0.5, 0.2, 0.1))])
def test_folded_pixels_give_the_same_tokens(theirs: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    ours = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels, weight = torch.rand(6, 3, 2, 8, 8, dtype=torch.float64), projection(8)
    bias = torch.randn(5, dtype=torch.float64)

    def seen(by: tuple[tuple[float, ...], tuple[float, ...]]) -> torch.Tensor:
        mean, std = (torch.tensor(three, dtype=torch.float64).view(3, 1, 1, 1) for three in by)
        return (pixels - mean) / std

    folded, of_bias = fold_pixels(weight, bias, theirs, ours)
    got, want = tokens(seen(ours), folded) + of_bias, tokens(seen(theirs), weight) + bias
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)
