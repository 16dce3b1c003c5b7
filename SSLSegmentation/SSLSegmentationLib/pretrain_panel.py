"""The panel Pretrain."""

from __future__ import annotations

from SSLSegmentationLib.panel import Panel


class PretrainPanel(Panel):
    """See the module."""

    UI = "Pretrain.ui"
