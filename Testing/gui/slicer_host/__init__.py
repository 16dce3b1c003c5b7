"""Hosts a real, unmodified scripted module of Slicer on PySide6, with real MRML."""

from slicer_host.immortal import keep_none_alive

keep_none_alive()
