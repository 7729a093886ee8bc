"""Where a video file is cut or damaged, told by the lengths that its container declares.

FFmpeg says almost nothing of it. Where a container makes no sense it searches for the next place that does,
so frames are lost and all later ones get too small a number; at an early end it reports the end. The counts
and durations that a container declares are no help: healthy files often declare none, or wrong ones. What
every healthy file has is a chain of elements without a gap, each as long as it says, up to the end. That
chain is followed here; the pictures are not read.
"""

from __future__ import annotations

import os
from typing import BinaryIO

# Matroska's elements down to the blocks, the first byte of the number included.
_SEGMENT, _CLUSTER, _BLOCK_GROUP = 0x18538067, 0x1F43B675, 0xA0
_ELEMENTS = {
    *(0x1A45DFA3, _SEGMENT, 0xEC, 0xBF),  # header, segment, void, checksum
    *(0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, 0x1B538667),
    *(_CLUSTER, 0xE7, 0xA3, _BLOCK_GROUP, 0xA7, 0xAB, 0x5854, 0xAF),  # cluster, and what it holds
    *(0xA1, 0xA2, 0x75A1, 0x9B, 0xFA, 0xFB, 0xFD, 0xA4, 0x75A2, 0x8E, 0xC8),  # what a group of blocks holds
}
# Boxes of an mp4 outside of all others, and those that make up a fragment.
_BOXES = set(
    b"ftyp moov moof mdat free skip wide uuid sidx ssix styp mfra meta udta pnot emsg prft pdin "
    b"mfhd traf tfhd tfdt trun sbgp sgpd subs saiz saio senc pssh".split()
)


def first_damage(file: BinaryIO, container: str) -> int | None:
    """The position of the first byte from which a file is missing or damaged; None for a whole one.

    container: FFmpeg's name, "avi", "matroska" or "mov". A file that lacks whole elements at its end is found
    if one that holds them declares its length, which live recordings need not do. Damage inside an element
    is not found: it moves no other frame.
    """
    follow = {"avi": _avi, "matroska": _matroska, "mov": _mov}[container]
    return follow(file, file.seek(0, os.SEEK_END))


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _avi(file: BinaryIO, size: int) -> int | None:
    position = riff_end = promised = odd = 0
    while position + 8 <= size:
        kind = _read(file, position, 4)
        if riff_end and position >= riff_end and kind != b"RIFF":
            break  # what follows is no part of the video
        if odd and not _is_word(kind) and _is_word(_read(file, position - 1, 4)):
            position -= 1  # some programs leave out the byte that makes a length even
            kind = _read(file, position, 4)
        length = int.from_bytes(_read(file, position + 4, 4), "little")
        end = position + 8 + length
        if kind in (b"RIFF", b"LIST"):
            known = length not in (0, 0xFFFFFFFF)  # a file written to a pipe does not know it
            promised = max(promised, end if known else 0)
            riff_end = riff_end if kind == b"LIST" else end if known else 0
            position, odd = position + 12, 0
        elif not _is_word(kind) or end > size:
            return position
        else:
            odd = length % 2
            position = end + odd
    return size if promised > size + 8 else None  # + 8: some count the eight bytes before the length, too


def _is_word(kind: bytes) -> bool:
    return len(kind) == 4 and all(0x20 <= byte < 0x7F for byte in kind)


def _matroska(file: BinaryIO, size: int) -> int | None:
    position = segment_end = promised = 0
    while position < size and not (segment_end and position >= segment_end):
        head = _read(file, position, 12)
        of_kind = 9 - head[0].bit_length()
        of_length = 9 - head[of_kind].bit_length() if of_kind < len(head) else 9
        if int.from_bytes(head[:of_kind]) not in _ELEMENTS or of_length > 8:
            return position
        bits = (1 << 7 * of_length) - 1
        length = int.from_bytes(head[of_kind : of_kind + of_length]) & bits
        start, kind = position + of_kind + of_length, int.from_bytes(head[:of_kind])
        if kind in (_SEGMENT, _CLUSTER, _BLOCK_GROUP):
            if length != bits:  # all ones: a live recording does not know it
                promised = max(promised, start + length)
                segment_end = start + length if kind == _SEGMENT else segment_end
            position = start
        elif start + length > size:
            return position
        else:
            position = start + length
    return size if promised > size else None


def _mov(file: BinaryIO, size: int) -> int | None:
    position, has_fragments = 0, False
    while position + 8 <= size:
        head = _read(file, position, 16)
        length, kind = int.from_bytes(head[:4]), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:])
        if kind not in _BOXES or 0 < length < 8:  # in a file of one part, moov has told where all frames are
            return position if has_fragments else None
        if length == 0:  # up to the end of the file
            return None
        if position + length > size:
            return size
        has_fragments = has_fragments or kind == b"moof"
        position += 8 if kind in (b"moof", b"traf") else length
    return None
