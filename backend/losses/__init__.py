"""Loss functions and the state that some of them keep."""
