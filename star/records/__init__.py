"""Measured and published numbers: their files, names, summaries and comparisons."""
