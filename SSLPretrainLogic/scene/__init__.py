"""Between MRML and files: the only place that touches `slicer`, `vtk` and nodes.

`volumes` writes what a model reads, `segments` what it learns from, `results` brings its answer
back. `structures`, `terminology`, `grids` and `files` need neither Slicer nor VTK.
"""
