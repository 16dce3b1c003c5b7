"""How many cells of a grid a ratio means: settings, masks and descriptions must agree on it."""

import math


def hidden_count(cells: int, ratio: float) -> int:
    """How many of `cells` a mask ratio hides: rounded up, e.g. 152 of 216 at 0.7."""
    return math.ceil(round(ratio * cells, 9))
