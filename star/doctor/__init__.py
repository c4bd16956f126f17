"""``star doctor``: whether this machine can run a configuration, and what to do where it cannot."""
