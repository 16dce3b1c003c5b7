"""Command lines to copy: for this machine's shell, or for a server that has a copy of the project.

The program itself never needs them: it starts processes with lists of words, without a shell.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.project import Project, is_outside, to_text

System = Literal["posix", "windows"]


@dataclass(frozen=True, kw_only=True)
class ServerCommand:
    """A command for another machine.

    Attributes:
        text: to be typed in the copy of the project folder.
        outside: paths in it that do not lie in the project, so that they must exist there too.
    """

    text: str
    outside: tuple[str, ...]


def this_system() -> System:
    """Whose quotes this machine's shell understands."""
    return "windows" if sys.platform == "win32" else "posix"


def quoted(argv: Sequence[str], *, system: System) -> str:
    """One line that a shell takes for exactly these words.

    Args:
        argv: program and arguments.
        system: "posix" for sh, bash and zsh, "windows" for the command prompt (cmd.exe).

    Raises:
        LogicError: if a word has a line break, which no line can hold.
    """
    broken = [word for word in argv if re.search(r"[\r\n\0]", word)]
    if broken:
        raise LogicError(f"{broken[0]!r} has a line break.", "Rename the file or folder.")
    if system == "posix":
        return shlex.join(argv)
    line = subprocess.list2cmdline(argv)
    # Quotes hide these from cmd.exe, but not always; a caret before each, quotes too, always does.
    return re.sub(r'([()%!^"<>&|])', r"^\1", line) if re.search(r"[()%!^<>&|]", line) else line


def for_server(words: Sequence[str], *, project: Project, system: System) -> ServerCommand:
    """The command line of a server that has `backend` installed and a copy of the project.

    Args:
        words: behind `backend`, as `commands.words` makes them.
        project: paths inside it become relative to it.
        system: of the server.

    Raises:
        LogicError: if a word has a line break.
    """
    there = [_moved(word, project) for word in words]
    outside = tuple(dict.fromkeys(word for word in there if is_outside(word)))
    return ServerCommand(text=quoted(["backend", *there], system=system), outside=outside)


def _moved(word: str, project: Project) -> str:
    return to_text(project, Path(word)) if Path(word).is_absolute() else word
