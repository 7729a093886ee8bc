"""Operations and bytes of each part of HSTA, by formula.

Floating-point operations are those of the equations: a backward counts what it must compute, not what an
implementation computes again. Bytes are the least that must move if every step of a part reads its inputs and
writes its results once. Norms, GELU, sums and the optimiser have operations too, so that they have a place in
a roofline: nominal ones, as their bytes decide.

B batch, N patch tokens (N + 1 rows with the CLS), C width, H heads, K HSTA layers. Branch 0 is special, 1 is
video.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from ..model import SPECIAL_FRAMES, HSTAConfig

Part = Literal[
    "USTA products",
    "USTA attention",
    "USTA pointwise",
    "norms",
    "CSTA",
    "embedding",
    "head and loss",
    "optimiser",
    "data",
    "other",
    "launching",
]
Direction = Literal["forward", "backward", "update"]
_NORM, _GELU, _ADAM = 8, 10, 12  # nominal operations per number


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)


def tokens(config: HSTAConfig, frames: int, image_size: int) -> tuple[int, int]:
    """N of each branch."""
    return tuple(  # type: ignore[return-value]
        count // config.tubelet_depth * (image_size // patch) ** 2
        for count, patch in zip((SPECIAL_FRAMES, frames), config.patch_sizes, strict=True)
    )


def work_of(
    config: HSTAConfig,
    batch: int,
    frames: int,
    image_size: int,
    *,
    itemsize: int = 4,
    gelu_apart: bool = True,
) -> dict[tuple[Part, Direction], Work]:
    """The work of one training step of a model of both branches, with CSTA; its forward is that of inference.

    Args:
        config: the model.
        batch: B.
        frames: T, video frames.
        image_size: height and width in pixels.
        itemsize: bytes of a number in the products; parameters have 4.
        gelu_apart: whether GELU reads and writes memory of its own; in a product it moves no more bytes.
    """
    found: dict[tuple[Part, Direction], Work] = defaultdict(Work)

    def add(part: Part, direction: Direction, flops: float, size: float) -> None:
        found[part, direction] += Work(flops, size)

    counts = tokens(config, frames, image_size)
    parameters = 0.0
    for d, depth in enumerate((config.n_special, config.n_video)):
        C, N = config.widths[d], counts[d]
        rows, blocks, hidden = (
            batch * (N + 1),
            config.num_layers * depth,
            int(config.widths[d] * config.mlp_ratio),
        )
        numbers = rows * C * itemsize  # bytes of one state

        weights = 4 * C * C + 2 * C * hidden  # qkv, proj, fc1, fc2
        taken, given = (3 * C + hidden) / C, (5 * C + hidden) / C  # states read and written by the products
        add(
            "USTA products",
            "forward",
            blocks * 2 * rows * weights,
            blocks * (4 * weights + (taken + given) * numbers),
        )
        add(
            "USTA products",
            "backward",
            blocks * 4 * rows * weights,
            blocks * (8 * weights + (2 * taken + given) * numbers),
        )
        scores = batch * (N + 1) ** 2 * C
        add("USTA attention", "forward", blocks * 4 * scores, blocks * 4 * numbers)
        add("USTA attention", "backward", blocks * 8 * scores, blocks * 8 * numbers)
        wide = hidden / C * numbers * gelu_apart  # bytes of the hidden layer
        gelu = _GELU * rows * hidden * gelu_apart
        add("USTA pointwise", "forward", blocks * (gelu + 2 * rows * C), blocks * (2 * wide + 6 * numbers))
        add("USTA pointwise", "backward", blocks * (gelu + 2 * rows * C), blocks * (3 * wide + 6 * numbers))
        norms = 2 * blocks + 1
        add("norms", "forward", norms * _NORM * rows * C, norms * 2 * numbers)
        add("norms", "backward", norms * 2 * _NORM * rows * C, norms * 3 * numbers)

        pixels = 3 * config.tubelet_depth * config.patch_sizes[d] ** 2
        read = batch * N * pixels + 4 * C * pixels
        add("embedding", "forward", 2 * batch * N * C * pixels, read + numbers)
        add("embedding", "backward", 2 * batch * N * C * pixels, read + numbers)
        parameters += blocks * (weights + 8 * C + hidden) + (pixels + 2) * C

        other, K = config.widths[1 - d], config.num_layers  # the CLS of the other branch asks these tokens
        pool = 4 * batch * config.num_heads[d] * N * C
        small = 2 * other * C + 4 * C * C  # from one width to the other and back; query, keys, values, output
        add("CSTA", "forward", K * (pool + 2 * batch * small), K * (4 * small + numbers))
        add("CSTA", "backward", K * 2 * (pool + 2 * batch * small), K * (8 * small + 3 * numbers))
        parameters += K * (small + 9 * C + 3 * other)
    features = sum(config.widths)
    add("head and loss", "forward", 2 * batch * features * config.num_classes, 0)
    add("head and loss", "backward", 4 * batch * features * config.num_classes, 0)
    parameters += features * (config.num_classes + 2) + config.num_classes
    add(
        "optimiser", "update", _ADAM * parameters, 7 * 4 * parameters
    )  # reads p, g and two moments; writes three
    clips = batch * 3 * (frames + SPECIAL_FRAMES) * image_size**2
    add("data", "update", 0, 2 * clips)  # reads decoded frames, writes a batch
    return dict(found)


def flops_of(config: HSTAConfig, batch: int, frames: int, image_size: int, *, training: bool) -> float:
    """Operations of the products and sums of a forward, or of a training step, without nominal ones."""
    exact = ("USTA products", "USTA attention", "CSTA", "embedding", "head and loss")
    return sum(
        work.flops
        for (part, direction), work in work_of(config, batch, frames, image_size).items()
        if part in exact and (training or direction == "forward")
    )
