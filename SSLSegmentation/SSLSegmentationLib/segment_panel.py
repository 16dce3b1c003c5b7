"""The panel Segment."""

from __future__ import annotations

from SSLSegmentationLib.panel import Panel


class SegmentPanel(Panel):
    """See the module."""

    UI = "Segment.ui"
