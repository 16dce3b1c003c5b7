"""Views of a volume, made in a batch on the device: crops, flips, intensity, masks."""
