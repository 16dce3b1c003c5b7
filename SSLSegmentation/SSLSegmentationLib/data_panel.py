"""The panel Data."""

from __future__ import annotations

from SSLSegmentationLib.panel import Panel


class DataPanel(Panel):
    """See the module."""

    UI = "Data.ui"
