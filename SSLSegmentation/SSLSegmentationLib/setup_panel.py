"""The panel Setup."""

from __future__ import annotations

from SSLSegmentationLib.panel import Panel


class SetupPanel(Panel):
    """See the module."""

    UI = "Setup.ui"
