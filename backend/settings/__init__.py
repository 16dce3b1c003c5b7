"""What can be set of each method: one file per family, typed and frozen, without torch.

The docstring under a field is its help. Lengths are voxels unless the name carries a unit; triples
are (z, y, x).
"""
