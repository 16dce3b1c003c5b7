"""From files to crops: scan, read, preprocess, cache, labelled sets, phantoms."""
