"""The panel Finetune."""

from __future__ import annotations

from SSLSegmentationLib.panel import Panel


class FinetunePanel(Panel):
    """See the module."""

    UI = "Finetune.ui"
