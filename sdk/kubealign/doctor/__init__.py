"""A cluster held against what a run needs of it, before the run does it the long way."""
