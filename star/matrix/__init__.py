"""The ablation matrix: every combination of tasks, methods and seeds, each in its own run folder."""
