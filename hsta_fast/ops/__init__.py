"""The ops: checks, autograd contract and choice of implementation, one file per op."""

from .attention_pool import attention_pool
from .cls_cross_attention import cls_cross_attention
from .few_query_attention import few_query_attention
from .linear import linear
from .space_time_attention import space_time_attention
from .tubelet_embed import tubelet_embed

__all__ = [
    "attention_pool",
    "cls_cross_attention",
    "few_query_attention",
    "linear",
    "space_time_attention",
    "tubelet_embed",
]
