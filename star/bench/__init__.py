"""Measurements of the method itself: where its maps lie and what they cost."""
