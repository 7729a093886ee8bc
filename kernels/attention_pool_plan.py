"""How attention pooling splits N tokens over programs, in one step or two."""

import triton
from torch import Tensor

from .attention_pool_configs import SUMS, Config

Split = tuple[int, int]  # number of programs, tokens per program


def _split(N: int, tile: int, most: int) -> Split:
    """Split N tokens into whole tiles over at most `most` programs."""
    tiles = triton.cdiv(N, tile)
    share = triton.cdiv(tiles, max(1, most)) * tile
    return triton.cdiv(N, max(1, share)), share


def plan(
    config: Config, of_two: Config, tokens: Tensor, owners: int, processors: int
) -> tuple[Split, Split | None]:
    """The splits of N in the pass and in its second step, or None if one step is enough.

    One step uses as many programs as run at once, while their sums (R, C) take at most 6 R N numbers per
    sample. If that leaves most multiprocessors idle, two steps are used.

    Args:
        config: launches a single step.
        of_two: launches the first of two steps.
        tokens: (B, N, C).
        owners: samples, or pairs of a sample and a group of queries, that share the device.
        processors: number of multiprocessors.
    """
    N, C = tokens.shape[1:]
    most = max(1, 6 * N // C)
    one = _split(N, config.tokens, min(most, config.residents * processors // owners))
    if 2 * owners * one[0] >= processors or one[0] == triton.cdiv(N, config.tokens):
        return one, None
    return _split(N, of_two.tokens, of_two.residents * processors // owners), _split(N, SUMS["TOKENS"], most)
