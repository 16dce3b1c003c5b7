"""The one error that the GUI shows as it stands."""

from __future__ import annotations

import errno


class LogicError(Exception):
    """Something that a person can mend.

    Args:
        message: names the thing and its value.
        hint: the cure, as a full sentence. Shown behind the message.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Message and cure in one text."""
        return f"{self.message} {self.hint}".strip()


_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def told_plainly(error: OSError, path: object) -> LogicError:
    """What the system says about a file, with the cure.

    Args:
        error: whatever was raised.
        path: the file it is about.
    """
    if error.errno in _FULL:
        return LogicError(f"{path}: the disk is full.", "Free some space or choose another folder.")
    if error.errno == errno.ENAMETOOLONG:
        return LogicError(f"{str(path)[:60]}…: is too long for a path.", "Choose a shorter one.")
    if error.errno in _CLOSED:
        return LogicError(
            f"{path}: cannot be written or read ({error.strerror}).",
            "Check its rights or choose another folder.",
        )
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return LogicError(
            f"{path}: a file stands where a folder should be.", "Choose another folder."
        )
    return LogicError(f"{path}: {error.strerror or error}.", "Check the path.")
