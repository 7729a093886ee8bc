"""Where the models look in a clip, mean over the heads and the models, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ..csta_maps import attention_maps
from ..faces import resize
from ..model import BRANCHES, HSTAConfig
from ..pictures import enlarged_difference, heat, jpeg
from ..protocol import Picture
from ..rollout import attention_rollout
from .clip_inputs import ClipInputs
from .ensemble import Ensemble

SIDE = 160  # pixels of a picture
CSTA, ROLLOUT = (
    "Where the CLS look: last CSTA",
    "Of which patches the CLS are made: rollout of the USTA layers",
)
_BOX, _SQUARE = (255, 170, 0), (255, 255, 255)  # RGB: the face, and what the model is shown


@dataclass(frozen=True)
class Look:
    """The weights over the patches of one clip.

    kind: CSTA or ROLLOUT; cls: the branch of the CLS; branch: that of the tokens; tokens: (T / t, h, w).
    """

    kind: str
    cls: str
    branch: int
    tokens: np.ndarray


def looks(ensemble: Ensemble, clips: Sequence[ClipInputs], device: torch.device) -> list[list[Look]]:
    """The maps of each clip: of the last CSTA, if the models have one, and the rollout of the USTA layers."""
    inputs = {
        name: torch.from_numpy(np.stack([getattr(clip, name) for clip in clips])).to(device)
        for name in ("video", "special")
    }
    sums: dict[tuple[str, str, int], torch.Tensor] = {}
    count = 0
    for _, model in ensemble.models():
        count += 1
        given = {name: inputs[name] for name in model.config.branches}
        found: dict[tuple[str, str, int], torch.Tensor] = {}
        if model.config.csta and model.config.branches == BRANCHES:
            maps = attention_maps(model, **given)
            found[CSTA, "special", 1] = maps.special.mean(1)
            found[CSTA, "video", 0] = maps.video.mean(1)
        for name, rollout in attention_rollout(model, **given).items():
            found[ROLLOUT, name, BRANCHES.index(name)] = rollout.tokens
        for key, weights in found.items():
            sums[key] = sums.get(key, 0) + weights.float().cpu()
    means = {key: (weights / count).numpy() for key, weights in sums.items()}
    order = sorted(means, key=lambda key: (key[0] != CSTA, -key[2]))  # those over the video frames first
    return [[Look(*key, means[key][i]) for key in order] for i in range(len(clips))]


def movement_pictures(clip: ClipInputs) -> list[Picture]:
    """The whole onset with the face's box, the face at onset and apex, and their enlarged difference."""
    onset, apex = (clip.pictures[name].transpose(2, 0, 1) for name in ("onset", "apex"))
    grey, times = enlarged_difference(onset, apex)
    face = "" if clip.face is None else f", face of {clip.face.width:.0f} x {clip.face.height:.0f} pixels"
    return [
        Picture(f"frame {clip.clip.onset}{face}", jpeg(_framed(clip))),
        Picture(f"onset, frame {clip.clip.onset}", jpeg(clip.pictures["onset"])),
        Picture(f"apex, frame {clip.clip.apex}", jpeg(clip.pictures["apex"])),
        Picture(f"apex minus onset, times {times}", jpeg(grey.transpose(1, 2, 0))),
    ]


def look_pictures(
    clip: ClipInputs, found: Sequence[Look], config: HSTAConfig
) -> list[tuple[str, list[Picture]]]:
    """The maps of a clip as heat on its frames, in a row with a title for each kind."""
    rows: dict[str, list[Picture]] = {}
    for look in found:
        patch = config.patch_sizes[look.branch]
        for number, weights in enumerate(look.tokens):
            frame, name = _under(clip, look.branch, number, config.tubelet_depth)
            image, peak = heat(frame, weights, patch, SIDE)
            title = f"{look.cls} CLS over {name}: peak {peak:.1f} times the mean"
            rows.setdefault(look.kind, []).append(Picture(title, jpeg(image)))
    return list(rows.items())


def _under(clip: ClipInputs, branch: int, number: int, depth: int) -> tuple[np.ndarray, str]:
    """The frame under map `number` of a branch, the last one of its tubelet, and its name."""
    last = (number + 1) * depth - 1
    if branch == 1:
        return clip.video[:, last], f"frame {clip.clip.onset + int(clip.shown[last])}"
    if clip.special.dtype == np.uint8:
        return clip.special[:, last], "the second special frame"
    size = clip.special.shape[-1]
    return resize(clip.pictures["apex"], size, size).transpose(2, 0, 1), "the flow, on the apex"


def _framed(clip: ClipInputs) -> np.ndarray:
    """The whole picture with the face's box, and the square that the model is shown where it is another."""
    scene, scale, alignment = clip.scene.copy(), clip.scale, clip.alignment
    thick = max(1, round(max(scene.shape[:2]) / 200))
    corner, right, down = (np.array(point) for point in (alignment.corner, alignment.right, alignment.down))
    outline = np.array([corner, corner + right, corner + right + down, corner + down]) * scale
    cv2.polylines(scene, [np.rint(outline).astype(np.int32)], True, _SQUARE, thick, cv2.LINE_AA)
    if (face := clip.face) is not None:
        start = round(face.x * scale), round(face.y * scale)
        end = round((face.x + face.width) * scale), round((face.y + face.height) * scale)
        cv2.rectangle(scene, start, end, _BOX, thick, cv2.LINE_AA)
    return scene
