"""Runs: rollouts, updates, evaluations and checkpoints."""
