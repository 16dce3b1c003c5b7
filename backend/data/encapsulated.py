"""What compressed pixel data say of themselves: a header that says less would cut them in silence.

Decoders refuse too little data, but drop what is too much without a word.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

from pydicom.encaps import generate_fragments, parse_basic_offsets
from pydicom.uid import RLELossless

_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
# Start of frame: all of 0xC0 to 0xCF that are no tables, and that of JPEG-LS.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_RLE_HEAD = 64


def encapsulated_problem(
    pixel_data: bytes, *, syntax: str, plane: tuple[int, int], frames: int
) -> str:
    """Why compressed pixel data are not what the header says, "" if they are as far as known.

    Args:
        pixel_data: the whole value, offset table included.
        syntax: UID of the transfer syntax.
        plane: rows and columns that the header states.
        frames: that it states.
    """
    starts = [piece for piece in _fragments(pixel_data) if _begins_frame(piece, syntax)]
    if len(starts) > frames:
        return f"unreadable: the file holds {len(starts)} frames, but NumberOfFrames is {frames}"
    return _plane_problem(starts[0], syntax=syntax, plane=plane) if starts else ""


def _plane_problem(frame: bytes, *, syntax: str, plane: tuple[int, int]) -> str:
    """Why a frame is not as large as the header says."""
    rows, columns = plane
    stated = f"but the header says {rows} rows x {columns} columns"
    if syntax == RLELossless:
        held = _rle_bytes(frame)
        # Some writers pad by a few bytes, but not by as much as a row.
        more = held >= (rows + 1) * columns
        return f"unreadable: frames of {held} pixels, {stated}" if more else ""
    found = _jpeg_plane(frame)
    if found in (None, plane):
        return ""
    return f"unreadable: frames of {' x '.join(map(str, found or ()))}, {stated}"


def _fragments(pixel_data: bytes) -> Iterator[bytes]:
    stream = io.BytesIO(pixel_data)
    parse_basic_offsets(stream)
    yield from generate_fragments(stream)


def _begins_frame(fragment: bytes, syntax: str) -> bool:
    """Whether a fragment is the first of its frame; in RLE every one is."""
    return syntax == RLELossless or fragment.startswith((_JPEG, _JPEG_2000))


def _rle_bytes(fragment: bytes) -> int:
    """How many bytes the first segment of a frame unpacks to: one per pixel."""
    count, first, second = struct.unpack_from("<3L", fragment.ljust(_RLE_HEAD, b"\0"))
    end = second if count > 1 else len(fragment)
    total = 0
    while first < end - 1:
        head = fragment[first]
        run = head + 1 if head < 128 else 257 - head if head > 128 else 0
        total += run
        first += 1 + (head + 1 if head < 128 else head > 128)
    return total


def _jpeg_plane(fragment: bytes) -> tuple[int, int] | None:
    """Rows and columns of a JPEG, JPEG-LS or JPEG 2000 stream, None if it does not tell."""
    if fragment.startswith(_JPEG_2000) and len(fragment) >= 24:
        right, bottom, left, top = struct.unpack_from(">4L", fragment, 8)
        return bottom - top, right - left
    place = len(_JPEG)
    while place + 9 <= len(fragment) and fragment[place] == 0xFF:
        marker, length = fragment[place + 1], struct.unpack_from(">H", fragment, place + 2)[0]
        if marker in _FRAME_MARKERS:
            rows, columns = struct.unpack_from(">2H", fragment, place + 5)
            return rows, columns
        place += 2 + length
    return None
