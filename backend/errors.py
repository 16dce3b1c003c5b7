"""The errors a person may meet, each with the exit code that the command line ends with."""

from __future__ import annotations

import errno

TOLD_AT_THE_END = "told_at_the_end"
"""Marks records of the log that repeat what the command line tells as its last words."""


class BackendError(Exception):
    """Base of all errors that are told in one or two lines instead of a traceback.

    Args:
        message: names the thing and its value.
        hint: the cure, as a full sentence. Shown behind the message.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Message and cure in one text."""
        return f"{self.message} {self.hint}".strip()


class UserError(BackendError):
    """The input, an option or a file is not what the command needs (exit code 2)."""

    exit_code = 2


class ScanError(UserError):
    """A scan cannot be used as a CT volume; the message is the reason told in the index."""


class NotMet(UserError):
    """A process has not found those that it is to work with."""


class Cancelled(BackendError):
    """The user asked to stop: SIGINT, or a `stop` file in the run folder (exit code 3)."""

    exit_code = 3


class ResourceError(BackendError):
    """Memory or disk does not suffice; the hint says what to lower (exit code 4)."""

    exit_code = 4


class Interrupted(BackendError):
    """The system asked to stop: SIGTERM or SIGUSR1 (exit code 5). The run can be resumed."""

    exit_code = 5


class AtOnce(BaseException):
    """A signal that ends the work wherever it stands.

    No `Exception`, or whoever expects errors there (`logging`, readers of damaged files) would take
    it for one of theirs, and the work would go on.

    Args:
        reason: what is told in the end.
    """

    def __init__(self, reason: Cancelled | Interrupted) -> None:
        super().__init__(str(reason))
        self.reason = reason


_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad allocation",
    "failed to allocate memory",  # ITK
    "could not create a primitive",  # oneDNN
    "could not create a memory",
)


def told_plainly(error: BaseException, path: object = None) -> BackendError:
    """The error as a person should be told it; one of ours stays what it is.

    Args:
        error: whatever was raised.
        path: the file it is about, where the error itself does not know.
    """
    if isinstance(error, BackendError):
        return error
    if isinstance(error, AtOnce):
        return error.reason
    if isinstance(error, KeyboardInterrupt):
        return Cancelled("Stopped by the keyboard.")
    if is_out_of_memory(error):
        return ResourceError(
            "Memory does not suffice.",
            "Lower the batch size, choose a smaller crop or preset, or close other programs.",
        )
    # What Path.resolve says of links that lead to themselves, before Python 3.13.
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        return UserError(f"{error}.", "Choose another path.")
    if isinstance(error, OSError):
        named = error.filename if path is None else path
        return _told_os_error(error, "A file or stream" if named is None else named)
    # Libraries append traces and file contents to theirs; the log has them all.
    first = next(iter(str(error).strip().splitlines()), "no message")
    return BackendError(
        f"Unexpected {type(error).__name__}: {first}", "This is our mistake; please report it."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of the many ways in which libraries say that memory is short."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _MEMORY_WORDS)


def _told_os_error(error: OSError, path: object) -> BackendError:
    if error.errno in _FULL:
        return ResourceError(
            f"{path}: the disk is full.", "Free some space or choose another folder."
        )
    if error.errno == errno.EFBIG:
        return ResourceError(
            f"{path}: grows larger than this disk or account allows.",
            "Choose another folder, or raise the limit (ulimit -f).",
        )
    if error.errno in _CLOSED:
        return UserError(
            f"{path}: cannot be written or read ({error.strerror}).",
            "Check its rights or choose another folder.",
        )
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"{path}: the name is too long.", "Choose a shorter one.")
    if error.errno == errno.ELOOP:
        return UserError(f"{path}: is a link that leads to itself.", "Choose another path.")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path}: a folder stands where a file should be.", "Choose another name.")
    if isinstance(error, NotADirectoryError | FileExistsError):
        return UserError(
            f"{path}: a file stands where a folder should be.", "Choose another folder."
        )
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: {error.strerror}.", "Check the path.")
    return BackendError(f"{path}: {error.strerror or error}.", "Is the disk in order?")
