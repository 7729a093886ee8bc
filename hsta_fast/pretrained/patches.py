"""A patch embedding for other patches and other pixels: inflated, resampled, folded; all in float64."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def inflate(weight: Tensor, depth: int) -> Tensor:
    """An image's projection (C, 3, p, p) for tubelets of `depth` frames: (C, 3, depth, p, p).

    Each frame has the same share, so that a clip without movement has the tokens of its image.
    """
    return weight.unsqueeze(2).expand(-1, -1, depth, -1, -1) / depth


def resize_matrix(before: int, after: int) -> Tensor:
    """The linear resize of `before` pixels to `after`, antialiased: (after, before), float64."""
    rows = torch.eye(before, dtype=torch.float64, device="cpu")
    image, size = rows.view(1, 1, before, before), (after, before)
    resized = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
    return resized.view(after, before)


def resample(weight: Tensor, size: int) -> Tensor:
    """A projection (C, 3, t, p, p) for patches of `size` x `size` pixels: (C, 3, t, size, size), float64.

    With B the resize of a patch, from p to `size` along both sides, it is pinv(B)' w (Beyer et al. 2023,
    FlexiViT): of all projections the one whose tokens of resized patches B x are closest to those of x. They
    are the same for every x if `size` >= p, and for every x = pinv(B) z if not.
    """
    # pinv(B) of both sides together is the Kronecker product of those of each side.
    back = torch.linalg.pinv(resize_matrix(weight.shape[-1], size))
    return torch.einsum("pq,cdtpr,rs->cdtqs", back, weight.double(), back)


def fold_pixels(
    weight: Tensor,
    bias: Tensor,
    theirs: tuple[Sequence[float], Sequence[float]],
    ours: tuple[Sequence[float], Sequence[float]],
) -> tuple[Tensor, Tensor]:
    """Weight (C, 3, t, p, p) and bias (C,) for pixels that are normalised by other means and deviations.

    theirs, ours: (mean, std) by channel, on the 0..1 scale. A pixel z of ours, normalised by mean and std, is
    (std z + mean - mean') / std' of theirs. So the weight is multiplied by std / std', and the bias gets its
    sum times (mean - mean') / std'.
    """
    mean, std, own_mean, own_std = (
        torch.tensor(tuple(three), dtype=torch.float64, device="cpu") for three in (*theirs, *ours)
    )
    weight = weight.double()
    sums = weight.sum((2, 3, 4))
    folded = weight * (own_std / std).view(1, 3, 1, 1, 1)
    return folded, bias.double() + sums @ ((own_mean - mean) / std)
