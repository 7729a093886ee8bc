"""The models whose weights an HSTA can start from: the names in their files, and what a file does not say.

A transformer's file holds tensors alone: not the eps of its norms, the positions of its patches, its heads,
or how its pixels were normalised. `Source` has these, as the source's published models have them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..model import IMAGENET_MEAN, IMAGENET_STD

Three = tuple[float, float, float]

# Heads of the published models by width: VideoMAE's, MARLIN's and ViT's Ti, S, B and L.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
NONCOMMERCIAL = "CC BY-NC 4.0: no commercial use"
OF_ITS_OWNER = "as the file's owner says"

_NOT_OF_THE_ENCODER = "part of the decoder of its pretraining"
_MEAN_NORM = "normalises the mean of the tokens, ours each token"
_ITS_HEAD = "its classes are those of its training"
_PIXELS = "its pixels are taken to be normalised by ImageNet's mean and deviation, as ours"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of file. Keys are those of its state dict.

    Attributes:
        name: of the model.
        licence: a line on the published weights.
        prefixes: what may stand in front of the encoder's keys.
        patch_embed: key of the patch embedding's weight, without prefix.
        patch_dims: its number of dimensions: 5 for a video's (C, 3, t, p, p), 4 for an image's (C, 3, p, p).
        norm_eps: eps of its layer norms.
        first_position: position of its first patch in the fixed table; None: its positions are learned.
        mean: of the pixels on the 0..1 scale, which it was trained on normalised.
        std: as `mean`.
        names: pairs of a pattern of keys, without prefix, and our name, as `re` expands it; ours are those of
            one branch, with its blocks counted through (`blocks.N.`).
        dropped: pairs of a pattern of whole keys, and why they have no place in an HSTA.
        assumed: what is taken to hold of the file, though its kind does not say so.
    """

    name: str
    licence: str
    prefixes: tuple[str, ...]
    patch_embed: str
    patch_dims: int
    norm_eps: float
    first_position: int | None
    mean: Three = IMAGENET_MEAN
    std: Three = IMAGENET_STD
    names: tuple[tuple[str, str], ...]
    dropped: tuple[tuple[str, str], ...]
    assumed: str = ""

    def our_name(self, key: str) -> str | None:
        """Our name of a key without prefix; None: it has none."""
        found = ((re.fullmatch(pattern, key), ours) for pattern, ours in self.names)
        return next((match.expand(ours) for match, ours in found if match), None)

    def reason_to_drop(self, key: str) -> str | None:
        """Why a whole key is dropped; None: it is not known."""
        return next((why for pattern, why in self.dropped if re.fullmatch(pattern, key)), None)


_WB = r"\.(weight|bias)"
_BLOCK = r"(blocks\.\d+\.)"
# VideoMAE's names and timm's are ours.
_SAME = (
    (rf"(patch_embed\.proj|norm){_WB}", r"\1.\2"),
    (rf"{_BLOCK}(norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2){_WB}", r"\1\2.\3"),
    (rf"{_BLOCK}attn\.qkv\.weight", r"\1attn.qkv.weight"),
)
_QV_BIAS = (rf"{_BLOCK}attn\.([qv])_bias", r"\1attn.\2_bias")

_LAYER = r"encoder\.layer\.(\d+)\."
_HUGGING_FACE = (
    (rf"embeddings\.patch_embeddings\.projection{_WB}", r"patch_embed.proj.\1"),
    (rf"{_LAYER}layernorm_before{_WB}", r"blocks.\1.norm1.\2"),
    (rf"{_LAYER}layernorm_after{_WB}", r"blocks.\1.norm2.\2"),
    (rf"{_LAYER}attention\.attention\.(query|key|value)\.weight", r"blocks.\1.attn.\2.weight"),
    (rf"{_LAYER}attention\.attention\.(query|value)\.bias", r"blocks.\1.attn.\2.bias"),
    (rf"{_LAYER}attention\.output\.dense{_WB}", r"blocks.\1.attn.proj.\2"),
    (rf"{_LAYER}intermediate\.dense{_WB}", r"blocks.\1.mlp.fc1.\2"),
    (rf"{_LAYER}output\.dense{_WB}", r"blocks.\1.mlp.fc2.\2"),
    (rf"layernorm{_WB}", r"norm.\1"),
)

VIDEOMAE = Source(
    name="VideoMAE or VideoMAE V2",
    licence=NONCOMMERCIAL,
    prefixes=("", "encoder.", "model."),
    patch_embed="patch_embed.proj.weight",
    patch_dims=5,
    norm_eps=1e-6,
    first_position=0,
    names=(*_SAME, _QV_BIAS),
    dropped=(
        (r"decoder\..*|encoder_to_decoder\.weight|mask_token", _NOT_OF_THE_ENCODER),
        (r"(model\.)?fc_norm\..*", _MEAN_NORM),
        (r"(model\.)?head\..*", _ITS_HEAD),
    ),
)
VIDEOMAE_HF = Source(
    name="VideoMAE of transformers",
    licence=NONCOMMERCIAL,
    prefixes=("", "videomae."),
    patch_embed="embeddings.patch_embeddings.projection.weight",
    patch_dims=5,
    norm_eps=1e-12,
    first_position=0,
    names=(*_HUGGING_FACE, (rf"{_LAYER}attention\.attention\.([qv])_bias", r"blocks.\1.attn.\2_bias")),
    dropped=(
        (r"decoder\..*|encoder_to_decoder\.weight|mask_token", _NOT_OF_THE_ENCODER),
        (r"fc_norm\..*", _MEAN_NORM),
        (r"classifier\..*", _ITS_HEAD),
    ),
)
MARLIN = Source(
    name="MARLIN",
    licence=NONCOMMERCIAL,
    prefixes=("", "encoder.", "marlin.encoder.", "marlin."),
    patch_embed="patch_embedding.projection.weight",
    patch_dims=5,
    norm_eps=1e-5,
    first_position=0,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    names=(
        *_SAME[1:],
        _QV_BIAS,
        (rf"patch_embedding\.projection{_WB}", r"patch_embed.proj.\1"),
        (rf"{_BLOCK}mlp\.layers\.0\.linear{_WB}", r"\1mlp.fc1.\2"),
        (rf"{_BLOCK}mlp\.layers\.1\.linear{_WB}", r"\1mlp.fc2.\2"),
        (rf"norm{_WB}", r"norm.\1"),
    ),
    dropped=(
        (r"(marlin\.)?(encoder\.)?pos_embedding\.emb", "the fixed table of positions, which ours computes"),
        (r"(marlin\.)?(decoder\..*|enc_dec_proj\..*|discriminator\..*)", _NOT_OF_THE_ENCODER),
    ),
)
VIT = Source(
    name="ViT with timm's names",
    licence=OF_ITS_OWNER,
    prefixes=("",),
    patch_embed="patch_embed.proj.weight",
    patch_dims=4,
    norm_eps=1e-6,
    first_position=None,
    names=(*_SAME, (rf"{_BLOCK}attn\.qkv\.bias", r"\1attn.qkv.bias"), (r"(cls_token|pos_embed)", r"\1")),
    dropped=((r"fc_norm\..*", _MEAN_NORM), (r"head\..*", _ITS_HEAD)),
    assumed=_PIXELS,
)
_NEW = r"layers\.(\d+)\."
VIT_HF = Source(
    name="ViT of transformers",
    licence=OF_ITS_OWNER,
    prefixes=("", "vit."),
    patch_embed="embeddings.patch_embeddings.projection.weight",
    patch_dims=4,
    norm_eps=1e-12,
    first_position=None,
    names=(
        *_HUGGING_FACE,
        (rf"{_LAYER}attention\.attention\.key\.bias", r"blocks.\1.attn.key.bias"),
        (rf"{_NEW}layernorm_before{_WB}", r"blocks.\1.norm1.\2"),
        (rf"{_NEW}layernorm_after{_WB}", r"blocks.\1.norm2.\2"),
        (rf"{_NEW}attention\.q_proj{_WB}", r"blocks.\1.attn.query.\2"),
        (rf"{_NEW}attention\.k_proj{_WB}", r"blocks.\1.attn.key.\2"),
        (rf"{_NEW}attention\.v_proj{_WB}", r"blocks.\1.attn.value.\2"),
        (rf"{_NEW}attention\.o_proj{_WB}", r"blocks.\1.attn.proj.\2"),
        (rf"{_NEW}mlp\.(fc1|fc2){_WB}", r"blocks.\1.mlp.\2.\3"),
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
    ),
    dropped=(
        (r"(vit\.)?pooler\..*|classifier\..*", _ITS_HEAD),
        (r"(vit\.)?embeddings\.mask_token", _NOT_OF_THE_ENCODER),
    ),
    assumed=_PIXELS,
)
SOURCES = (VIDEOMAE, VIDEOMAE_HF, MARLIN, VIT, VIT_HF)


def recognise(name: str, state: Mapping[str, Tensor]) -> tuple[Source, str]:
    """The source of a state dict, and the prefix of its encoder's keys; name: the file, for messages.

    Raises:
        ValueError: no source is recognised, or several are.
    """
    found = [
        (source, prefix)
        for source in SOURCES
        for prefix in source.prefixes
        if (patch := state.get(prefix + source.patch_embed)) is not None and patch.dim() == source.patch_dims
    ]
    if len(found) == 1:
        return found[0]
    known = ", ".join(source.name for source in SOURCES)
    if found:
        got = " and ".join(f"{source.name} ({prefix + source.patch_embed})" for source, prefix in found)
        raise ValueError(f"{name} expected the weights of one model, got several: {got}")
    keys = ", ".join(list(state)[:3]) or "no keys"
    raise ValueError(
        f"{name} expected weights of {known}, or a file of hsta_fast.save_model, got none of them ({keys})"
    )
