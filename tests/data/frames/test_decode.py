"""Pixels of images: depth, transparency, damaged EXIF data, and sizes that differ within a clip."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from hsta_fast.data.clips import LEFT_OUT, UNREADABLE
from hsta_fast.data.doctor import examine
from hsta_fast.data.frames.decode import content_keys, decode_image

from .. import fake_datasets
from ..fake_datasets import csv_row
from .test_store import PICTURE, encoded, load, table_of

DEEP = np.random.default_rng(1).integers(0, 2**16, (24, 32, 3)).astype(np.uint16)


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize("grey", [False, True])
def test_of_16_bits_the_upper_8_are_taken(grey: bool) -> None:
    image = DEEP[..., 0] if grey else DEEP
    upper = (image >> 8).astype(np.uint8)
    expected = cv2.cvtColor(upper, cv2.COLOR_GRAY2RGB if grey else cv2.COLOR_BGR2RGB)
    assert np.array_equal(decode_image(encoded(".png", image)), expected)
    dark = np.minimum(image, 4096)  # in use: one bit more than 12
    assert decode_image(encoded(".png", dark)).max() == 16


@pytest.mark.parametrize("bits", [10, 12])
def test_16_bit_images_that_use_12_bits_or_fewer_are_refused(bits: int) -> None:
    for image in (DEEP >> (16 - bits), DEEP[..., 0] >> (16 - bits)):
        most = int(image.max())
        with pytest.raises(
            ValueError, match=f"expected 16-bit values over the whole range, got at most {most}: "
        ):
            decode_image(encoded(".png", image))


def test_transparent_images_are_refused_and_opaque_ones_read() -> None:
    colours = Image.fromarray(PICTURE)
    clear, opaque = colours.convert("RGBA"), colours.convert("RGBA")
    clear.paste((255, 0, 0, 0), (0, 0, 4, 3))
    assert np.array_equal(decode_image(png(opaque)), PICTURE)
    palette = colours.convert("P")
    hidden = int((np.asarray(palette) == palette.getpixel((0, 0))).sum())
    for data, count in (
        (png(clear), 12),
        (png(clear.convert("LA")), 12),
        (png(palette, transparency=palette.getpixel((0, 0))), hidden),
        (png(colours, transparency=tuple(int(value) for value in PICTURE[0, 0])), 1),
    ):
        with pytest.raises(ValueError, match=f"expected an opaque picture, got {count} of 768 pixels with"):
            decode_image(data)
    deep = np.dstack([DEEP, np.full(DEEP.shape[:2], 65535, np.uint16)])
    assert decode_image(encoded(".png", deep)).shape == (24, 32, 3)
    deep[0, 0, 3] = 65534
    with pytest.raises(ValueError, match="got 1 of 768 pixels with transparency"):
        decode_image(encoded(".png", deep))


def test_damaged_exif_data_are_ignored_without_a_word() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\0\0"
    whole = encoded(".jpg")
    data = whole[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + whole[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decode_image(data), decode_image(whole))


def test_a_clip_whose_images_differ_in_size_is_a_fault(tmp_path: Path) -> None:
    fake_datasets.csv_copy(tmp_path, [csv_row()])
    for clip in "ab":
        (tmp_path / clip).mkdir()
        for k in range(1, 7):
            image = PICTURE[:12] if (clip, k > 4) == ("b", True) else PICTURE
            (tmp_path / clip / f"{k}.png").write_bytes(encoded(".png", image + np.uint8(k)))
    rows = [csv_row(clip=clip, path=clip, onset=1, apex=2, offset=6) for clip in "ab"]
    rows.append(csv_row(clip="small", path="b", onset=5, apex="", offset=6))
    fake_datasets.table(tmp_path / "clips.csv", fake_datasets.CSV_HEADER, rows)
    what = "b/5.png: expected the clip's size, 32 x 24, got 32 x 12 (and 1 more of its frames)"
    (fault,) = examine([tmp_path], progress=False).diagnoses[0].faults
    assert (fault.clip, fault.what, fault.action) == ("b", what, UNREADABLE)
    clips = [[f"{clip}/{k}.png" for k in range(1, 7)] for clip in "ab"]
    left, _ = load(table_of(tmp_path, [*clips, ["b/5.png", "b/6.png"]]))
    assert left.clips["subject"].tolist() == ["s0", "s2"]
    (fault,) = left.faults
    assert fault.action == LEFT_OUT and fault.what.startswith(
        "b/6.png: expected the clip's size, 32 x 24, got"
    )


def test_sizes_are_those_of_the_decoded_images(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.bmp"):
        (tmp_path / name).write_bytes(encoded(Path(name).suffix))
    (tmp_path / "bad.png").write_bytes(b"no image")
    names = ["a.png", "a.jpg", "a.bmp", "bad.png", "missing.png", "../a.png", "film.mp4#3"]
    sizes: dict[str, tuple[int, int]] = {}
    content_keys(tmp_path, names, sizes=sizes)
    assert sizes == dict.fromkeys(names[:3], (32, 24))
