"""Python imports this when it starts: the way faults get into the processes of a command."""

from __future__ import annotations

from injection import install

install()
