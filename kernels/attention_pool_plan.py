"""How attention pooling splits its N tokens over programs, in one step or two."""

import triton
from torch import Tensor

from .attention_pool_configs import SUMS, Config

Split = tuple[int, int]  # programs that N is split over; tokens of each


def _split(N: int, tile: int, most: int) -> Split:
    """At most `most` programs of whole tiles."""
    tiles = triton.cdiv(N, tile)
    share = triton.cdiv(tiles, max(1, most)) * tile
    return triton.cdiv(N, max(1, share)), share


def plan(
    config: Config, of_two: Config, tokens: Tensor, owners: int, processors: int
) -> tuple[Split, Split | None]:
    """How the pass splits N, and how its second step does, where it takes one; `owners` share the device.

    Over as many programs as run at once, as far as their sums (R, C) stay within 6 R N numbers a sample. If
    that leaves most of the multiprocessors idle, in two steps, the first of them launched by `of_two`.
    """
    N, C = tokens.shape[1:]
    most = max(1, 6 * N // C)
    one = _split(N, config.tokens, min(most, config.residents * processors // owners))
    if 2 * owners * one[0] >= processors or one[0] == triton.cdiv(N, config.tokens):
        return one, None
    return _split(N, of_two.tokens, of_two.residents * processors // owners), _split(N, SUMS["TOKENS"], most)
