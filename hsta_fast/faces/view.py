"""How the pictures of a clip are shown: cut out, held still, their movement enlarged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .align import Alignment, FaceCrop
from .magnify import LARGEST_FACTOR, magnify_fingerprint
from .stabilise import follow_head, onset_reference, stabilise_fingerprint


@dataclass(frozen=True)
class PictureRecipe:
    """What is done to all pictures before they are shown; by default nothing.

    Attributes:
        crop: how the face is cut out; None: pictures are shown whole.
        stabilise: undo the movement of the head since the onset.
        magnify: the factor by which movement since the onset is enlarged; 0: it is not.
    """

    crop: FaceCrop | None = None
    stabilise: bool = False
    magnify: float = 0.0

    def __post_init__(self) -> None:
        if self.magnify and not 1 <= self.magnify <= LARGEST_FACTOR:
            expected = f"0 (not), or 1 to {LARGEST_FACTOR:g}"
            raise ValueError(f"magnify expected {expected}, got {self.magnify:g}")

    @property
    def is_plain(self) -> bool:
        """Whether nothing is done."""
        return self == PLAIN

    def fingerprint(self) -> dict[str, Any]:
        """Everything that a picture depends on besides those of its clip; empty if nothing is done."""
        how: dict[str, Any] = {}
        if self.crop is not None:
            how["crop_face"] = self.crop.fingerprint()
        if self.stabilise:
            how["stabilise"] = stabilise_fingerprint()
        if self.magnify:
            how["magnify"] = magnify_fingerprint(self.magnify)
        return how


PLAIN = PictureRecipe()


@dataclass(frozen=True, eq=False)
class ClipView:
    """The pictures of one clip, as a `PictureRecipe` shows them; what it enlarges is left to `magnify`.

    Attributes:
        alignment: the clip's; None: pictures are shown whole.
        reference: `onset_reference` of the clip, to which its head is held; None: it moves.
    """

    alignment: Alignment | None = None
    reference: np.ndarray | None = None

    @classmethod
    def of(cls, onset: np.ndarray, alignment: Alignment | None, *, stabilise: bool) -> ClipView:
        """The view of a clip with this onset, uint8 RGB (h, w, 3)."""
        if not stabilise:
            return cls(alignment)
        whole = Alignment.whole(*onset.shape[1::-1])
        return cls(alignment, onset_reference(onset, alignment or whole))

    def show(self, picture: np.ndarray, size: int) -> np.ndarray:
        """A picture of the clip, uint8 RGB (h, w, 3), as the model is shown it: (size, size, 3).

        Raises ValueError if the head cannot be followed.
        """
        alignment = self.alignment or Alignment.whole(*picture.shape[1::-1])
        if self.reference is not None:
            alignment = follow_head(picture, alignment, self.reference)
        return alignment.apply(picture, size)
