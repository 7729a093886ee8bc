"""Pictures of a clip for people: its movement enlarged, and the weights of an attention as heat on a frame.

A frame is RGB planes (3, H, W) uint8, as the model is shown it; a picture is RGB (side, side, 3).
"""

import cv2
import numpy as np

_QUALITY = 80  # of a JPEG
_MOST_ENLARGED = 16  # times that a difference is enlarged
_HEAT = np.array([255, 120, 0], dtype=np.float32)  # RGB
_OPACITY = 0.6  # where the weight is largest: the face stays visible


def enlarged_difference(onset: np.ndarray, apex: np.ndarray) -> tuple[np.ndarray, int]:
    """The difference of two frames (3, H, W), grey where nothing moves, and how often it is enlarged."""
    difference = apex.astype(np.float32) - onset
    times = int(np.clip(127 / max(np.quantile(abs(difference), 0.998), 1.0), 1, _MOST_ENLARGED))
    return np.clip(128 + times * difference, 0, 255).astype(np.uint8), times


def heat(frame: np.ndarray, weights: np.ndarray, patch: int, side: int) -> tuple[np.ndarray, float]:
    """A frame (3, H, W) in grey, coloured where a patch has more than the mean of the weights (h, w).

    Returns:
        The picture, float32 (side, side, 3), and the largest weight over the mean.
    """
    times = weights / max(weights.mean(), np.finfo(np.float32).tiny)  # all weight may be on the CLS itself
    peak = float(times.max())
    share = np.clip((times - 1) / max(peak - 1, 1), 0, 1).astype(np.float32)  # about even weights: no colour
    covered = [round(side * n * patch / size) for n, size in zip(share.shape, frame.shape[1:], strict=True)]
    alpha = np.zeros((side, side, 1), dtype=np.float32)  # pixels behind the last patch have none
    alpha[: covered[0], : covered[1], 0] = cv2.resize(share, covered[::-1], interpolation=cv2.INTER_LINEAR)
    alpha *= _OPACITY
    grey = cv2.cvtColor(resized(frame, side), cv2.COLOR_RGB2GRAY)[:, :, None]
    return grey * (1 - alpha) + _HEAT * alpha, peak


def resized(frame: np.ndarray, side: int) -> np.ndarray:
    """A frame (3, H, W) as a picture (side, side, 3)."""
    how = cv2.INTER_AREA if frame.shape[1] > side else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(frame.transpose(1, 2, 0)), (side, side), interpolation=how)


def jpeg(image: np.ndarray) -> bytes:
    """An RGB picture (h, w, 3) of any numbers from 0 to 255 as the bytes of a JPEG file."""
    bgr = np.ascontiguousarray(np.rint(image).astype(np.uint8)[:, :, ::-1])
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
