"""Measurements: what maps gain without a whole training, where they lie and what they cost, and how fast training is."""

OWN = {
    "gradient": ("epochs", "arms", "weights", "out"),
    "first_updates": ("epochs", "arms", "seed", "out"),
    "influence": ("prompts", "tokens", "weights", "out"),
}
"""The words of some commands that are no settings; here, so that they are known before torch is imported."""
