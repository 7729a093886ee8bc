"""The model that is pretrained: the branches of an HSTA as encoders, each with a small decoder of its own.

The encoder of a branch is its patch embedding, positions, USTA layers and last norm. CSTA and the head take
no part. An encoder sees the CLS and the visible tokens only. The CLS stands among them because it does in the
trained model: its layers must not meet it, as a key and a value, for the first time in the fine-tuning. The
decoder sees the CLS too, so that the CLS of the last layer, which the head reads, learns as well.

B batch, N patch tokens, n visible ones, C width of the branch. Branch 0 is special, 1 is video.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ..layers import LN_EPS, USTA
from ..model import BRANCHES, HSTA, SPECIAL_FRAMES, HSTALayer, position_table
from .objective import Target, num_outputs, reconstruction_loss, take_rows, targets, token_order


class Decoder(nn.Module):
    """Predictions of all tokens from the encoder's rows: a projection, a mask token, narrow USTA layers."""

    positions: Tensor

    def __init__(self, width: int, *, num_heads: int, layers: int, tokens: int, outputs: int) -> None:
        super().__init__()
        narrow = width // 2
        heads = num_heads // 2 if num_heads % 2 == 0 else num_heads
        self.project = nn.Linear(width, narrow)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, narrow))
        self.blocks = nn.ModuleList(USTA(narrow, num_heads=heads) for _ in range(layers))
        self.norm = nn.LayerNorm(narrow, eps=LN_EPS)
        self.predict = nn.Linear(narrow, outputs)
        self.register_buffer("positions", position_table(1 + tokens, narrow).float(), persistent=False)
        self.apply(HSTA._initialise)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Tensor, order: Tensor) -> Tensor:
        """Encoded CLS and visible tokens (B, 1 + n, C) -> predictions of all tokens (B, N, outputs).

        order: the numbers of the tokens (B, N), first those of the visible ones; the result has this order.
        """
        seen = self.project(encoded)
        rows = torch.cat([torch.zeros_like(order[:, :1]), 1 + order], dim=1)
        hidden = rows.shape[1] - seen.shape[1]
        masked = self.mask_token.to(seen.dtype).expand(len(seen), hidden, -1)
        x = torch.cat([seen, masked], dim=1) + take_rows(self.positions, rows).to(seen.dtype)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x[:, 1:]))


class MaskedAutoencoder(nn.Module):
    """An HSTA that is pretrained, with what is only needed for it.

    Args:
        model: the HSTA; CSTA and head get no gradient.
        image_size: height and width of the frames in pixels.
        num_frames: T of the video branch.
        target: what is predicted.
        visible_weight: of the loss over visible tokens, beside that over the hidden ones.
        decoder_layers: USTA layers of each decoder.

    Attributes:
        positions: P of each branch, by its name.
    """

    def __init__(
        self,
        model: HSTA,
        *,
        image_size: int,
        num_frames: int,
        target: Target,
        visible_weight: float,
        decoder_layers: int,
    ) -> None:
        super().__init__()
        self.model, self.target, self.visible_weight = model, target, visible_weight
        self.num_frames, c = num_frames, model.config
        self.positions = {BRANCHES[d]: (image_size // c.patch_sizes[d]) ** 2 for d in c.branch_ids}
        self.decoders = nn.ModuleDict(
            {
                str(d): Decoder(
                    c.widths[d],
                    num_heads=c.num_heads[d],
                    layers=decoder_layers,
                    tokens=self._times(d) * self.positions[BRANCHES[d]],
                    outputs=num_outputs(target, c.tubelet_depth, c.patch_sizes[d]),
                )
                for d in c.branch_ids
            }
        )

    def _times(self, d: int) -> int:
        return (SPECIAL_FRAMES, self.num_frames)[d] // self.model.config.tubelet_depth

    def encode(self, d: int, frames: Tensor, visible: Tensor) -> Tensor:
        """Frames (B, 3, T, H, W) of branch `d`, numbers of its visible tokens (B, n) -> (B, 1 + n, C).

        With all tokens visible, in order, these are the rows of an `HSTA` without CSTA.
        """
        model, key = self.model, str(d)
        x = model.patch_embed[key](frames, model.cls_token[key], model._positions(d, frames.shape))
        x = take_rows(x, torch.cat([torch.zeros_like(visible[:, :1]), 1 + visible], dim=1))
        for layer in model.blocks:
            for block in cast(nn.ModuleList, cast(HSTALayer, layer).blocks[key]):
                x = block(x)
        return model.norm[key](x)

    def predict(self, d: int, frames: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, int]:
        """Frames of branch `d`, hidden positions bool (B, P) -> predictions of all tokens (B, N, outputs).

        Returns:
            The predictions; the numbers of their tokens (B, N), first those of the visible ones; how many
            are visible.
        """
        order, visible = token_order(hidden, self._times(d))
        encoded = self.encode(d, frames, order[:, :visible])
        return self.decoders[str(d)](encoded, order), order, visible

    def forward(self, frames: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss () of each branch, in float32 at least.

        Args:
            frames: of each branch, "special" (B, 3, 2, H, W) and "video" (B, 3, T, H, W), as `HSTA` takes
                them.
            masks: hidden positions of each branch, bool (B, P) (`tube_masks`), on the device of the frames.
        """
        losses, c = {}, self.model.config
        for d in c.branch_ids:
            name = BRANCHES[d]
            predicted, order, visible = self.predict(d, frames[name], masks[name])
            wanted = take_rows(targets(frames[name], self.target, c.tubelet_depth, c.patch_sizes[d]), order)
            losses[name] = reconstruction_loss(predicted, wanted, visible, self.visible_weight)
        return losses
