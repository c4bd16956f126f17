"""Results: their files, their statistics, the tables and the comparison with published numbers."""
