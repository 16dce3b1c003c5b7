"""Arrays as plain `.npy` files, of which boxes are read without mapping the file.

A map would save one copy, but a file that is cut off while mapped ends the process, as does a disk
that fails; here both are errors like others. No file stays open, however many scans there are.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_HEAD = 256
"""Bytes read to know an array; the header of one with three axes takes 128."""

_PIECE = 512 << 10
"""Bytes that are read before they are copied: the processor's cache still holds them then."""

_GAP = 48 << 10
"""So many bytes between the rows of two planes are read along sooner than skipped."""


class _Layout(NamedTuple):
    """What a header tells, and where the voxels begin."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int


def plain_bytes(voxels: NDArray[np.generic]) -> bytes:
    """The array in NumPy's file format."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(voxels), allow_pickle=False)
    return file.getvalue()


class PlainArray:
    """An array (z, y, x) in an open file, indexed like one in memory with three slices.

    Args:
        stream: the file, unbuffered; it must stay open while the array is used.

    Raises:
        ValueError: if it holds no such array.

    """

    def __init__(self, stream: io.FileIO) -> None:
        stream.seek(0)
        self._stream = stream
        self.shape, self.dtype, self._offset = _layout(stream.read(_HEAD))

    def __getitem__(self, box: tuple[slice, slice, slice]) -> NDArray[Any]:
        """A copy of a box inside the array.

        Raises:
            ValueError: if the file ends before the box does.
        """
        planes, rows, columns = box
        _, height, width = self.shape
        depth, tall, wide = (s.stop - s.start for s in box)
        result = np.empty((depth, tall, wide), self.dtype)
        if result.size == 0:
            return result
        row_bytes = width * self.dtype.itemsize
        skips = (height - tall) * row_bytes > _GAP
        plane_bytes = (tall if skips else height) * row_bytes
        together = min(depth, max(1, _PIECE // plane_bytes))
        piece = np.empty((together * height, width), self.dtype)
        inner = piece.reshape(together, height, width)[:, :tall, columns]
        run = 1 if skips else together
        for first in range(0, depth, together):
            count = min(together, depth - first)
            for plane in range(0, count, run):
                last = min(plane + run, count) - 1
                row = (planes.start + first + plane) * height + rows.start
                wanted = piece[plane * height : last * height + tall]
                self._fill(wanted, self._offset + row * row_bytes)
            result[first : first + count] = inner[:count]
        return result

    def _fill(self, piece: NDArray[Any], offset: int) -> None:
        self._stream.seek(offset)
        done = self._stream.readinto(piece.data)
        # All at once, but for some network file systems.
        while done < piece.nbytes:
            more = self._stream.readinto(piece.reshape(-1).view(np.uint8).data[done:])
            if not more:
                raise ValueError("the file is cut short")
            done += more


@lru_cache(maxsize=4096)
def _layout(head: bytes) -> _Layout:
    file = io.BytesIO(head)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not a file of the first version of NumPy's format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 3 or is_fortran or dtype.hasobject:
        raise ValueError(f"not an array (z, y, x) in C order: {shape}, {dtype}")
    return _Layout(shape, dtype, file.tell())
