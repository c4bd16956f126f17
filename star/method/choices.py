"""The words that settings of the method choose from, and where a word lies; without torch, for what must start at once."""

Span = tuple[int, int]
"""A word's place in its prompt: characters ``[start, end)``."""

STOCHASTIC = ("sde", "cps")
KINDS = (*STOCHASTIC, "ode")
STDS = ("batch", "group")
KLS = ("flow_grpo", "paper")
NORMALISE = ("rollout", "step")
STEPS = ("as_sampled", "equal")
CLIPS = ("ratio", "kl")
COLUMNS = ("clip", "t5", "both")
SOFTMAX_OVER = ("joint", "text")
COLUMNS_COUNT = ("as_attended", "equally")
