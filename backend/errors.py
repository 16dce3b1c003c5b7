"""The errors a person may meet, each with the exit code that the command line ends with."""


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


class Cancelled(BackendError):
    """The user asked to stop: SIGINT, or a `stop` file in the run folder (exit code 3)."""

    exit_code = 3


class ResourceError(BackendError):
    """Memory or disk does not suffice; the hint says what to lower (exit code 4)."""

    exit_code = 4


class Interrupted(BackendError):
    """The system asked to stop: SIGTERM or SIGUSR1 (exit code 5). The run can be resumed."""

    exit_code = 5
