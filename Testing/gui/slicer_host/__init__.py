"""Hosts a real, unmodified scripted module of Slicer on PySide6, with real MRML."""
