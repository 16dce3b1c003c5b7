"""The panel Jobs."""

from __future__ import annotations

from SSLSegmentationLib.panel import Panel


class JobsPanel(Panel):
    """See the module."""

    UI = "Jobs.ui"
