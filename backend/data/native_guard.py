"""What is looked at in plain Python before native code sees it, which would end the process.

ITK's readers for MetaImage and NRRD trust their header: a number of dimensions that cannot be, or
a line longer than their buffers, makes them write where they must not.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import BinaryIO

from backend.errors import ScanError

_HEADER_LIMIT = 1 << 20
_NRRD_LINE_LIMIT = 1000
"""Teem quotes a line that it does not understand in a text of 1024 characters."""
_META_TEXT_LIMIT = 250
"""MetaIO copies these texts into 255 characters."""

_META_DATA_FILE = re.compile(r"^\s*ElementDataFile\s*[=:]\s*(.*)$", re.MULTILINE)
_META_DIMENSIONS = re.compile(r"^\s*NDims\b\s*[=:]?\s*(\S*)", re.MULTILINE)
_META_TEXTS = re.compile(
    r"^\s*(Object\w*|Name|Comment|AcquisitionDate)\s*[=:]\s*(.*)$", re.MULTILINE
)


_NRRD_END = re.compile(r"\n(?=\r?\n)")
_COMPRESSED = re.compile(
    r"^\s*(CompressedData\s*[=:]\s*(True|T|1)|encoding:\s*(gz|gzip))\s*$", re.MULTILINE | re.I
)
_ELSEWHERE = re.compile(
    r"^\s*(HeaderSize\b|BinaryData\s*[=:]\s*(False|F|0)|(line|byte) ?skip:"
    r"|encoding:(?!\s*(raw|gz|gzip)\s*$)|ElementDataFile\s*=\s*LIST|data ?file:.*(LIST|%))",
    re.MULTILINE | re.I,
)
"""What makes voxels begin elsewhere than behind the header, or stand there as something else."""
_PIECE = 1 << 20


def printable(path: Path | str) -> str:
    r"""A path as text that any file and console takes: bytes that are no UTF-8 become \xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def name_problem(path: Path) -> str:
    """Why a path cannot be handed to native code or written down, "" if it can."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"unreadable: the name {printable(path.name)} is not valid UTF-8; rename it"
    return ""


def metaimage_problem(path: Path) -> str:
    """Why the header of a .mha or .mhd file must not be read by ITK, "" if it may."""
    head = _head(path)
    data = _META_DATA_FILE.search(head)
    if data is None:
        return "unreadable: its header names no ElementDataFile"
    # ITK takes the name for a pattern of file names where it holds this sign.
    if "%" in data[1]:
        return "unreadable: ElementDataFile stands for several files"
    fields = head[: data.start()]
    for dimensions in _META_DIMENSIONS.findall(fields):
        if dimensions not in ("2", "3", "4"):
            return f"unreadable: NDims is {dimensions[:20]!r} instead of 3"
    for key, text in _META_TEXTS.findall(fields):
        if len(text) > _META_TEXT_LIMIT:
            return f"unreadable: {key} in its header has {len(text)} characters"
    return ""


def nrrd_problem(path: Path) -> str:
    """Why the header of a .nrrd or .nhdr file must not be read by ITK, "" if it may."""
    head = re.split(r"\r?\n\r?\n", _head(path), maxsplit=1)[0]
    for number, line in enumerate(head.split("\n"), start=1):
        # Texts of the user's own (key:=value) may be of any length, as may comments.
        own = line.startswith("#") or ":=" in line.partition(": ")[0]
        if not own and len(line) > _NRRD_LINE_LIMIT:
            return f"unreadable: line {number} of its header has {len(line)} characters"
    return ""


def _head(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(_HEADER_LIMIT).decode("latin-1")


def voxel_bytes(path: Path, detached: Path | None) -> int | None:
    """Bytes of voxels that a file holds, None where its header does not tell how they lie there.

    Args:
        path: a MetaImage or NRRD file.
        detached: the file that holds its voxels, None if they stand behind the header.

    Raises:
        ScanError: if compressed voxels are damaged. Their stream ends with a checksum, at which ITK
            does not look.
    """
    head = _head(path)
    end = _META_DATA_FILE.search(head) or _NRRD_END.search(head)
    fields = head[: end.start() + 1] if end else head
    if (end is None and detached is None) or _ELSEWHERE.search(fields):
        return None
    with (detached or path).open("rb") as stream:
        # Latin-1 has one character a byte.
        begin = head.find("\n", end.end()) + 1 if end and not detached else 0
        if not _COMPRESSED.search(fields):
            return stream.seek(0, os.SEEK_END) - begin
        stream.seek(begin)
        return _inflated_bytes(stream)


def _inflated_bytes(stream: BinaryIO) -> int:
    # zlib or gzip, as its first bytes say.
    inflater = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
    count = 0
    try:
        while not inflater.eof and (data := stream.read(_PIECE)):
            while data and not inflater.eof:
                # Little by little: a few bytes may stand for gigabytes.
                count += len(inflater.decompress(data, _PIECE))
                data = inflater.unconsumed_tail
    except zlib.error as error:
        raise ScanError(f"unreadable: voxels are missing or corrupt ({error})") from error
    if not inflater.eof:
        raise ScanError("unreadable: voxels are missing or corrupt (cut off)")
    return count
