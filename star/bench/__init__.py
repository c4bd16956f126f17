"""Measurements of the method itself: what its maps gain without a whole training, where they lie, and what they cost."""
