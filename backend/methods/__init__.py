"""Pretext methods, one readable file each."""
