"""The words that settings of the method choose from; without torch, so that settings are checked at once."""

STOCHASTIC = ("sde", "cps")
KINDS = (*STOCHASTIC, "ode")
STDS = ("batch", "group")
KLS = ("flow_grpo", "paper")
NORMALISE = ("rollout", "step")
COLUMNS = ("clip", "t5", "both")
SOFTMAX_OVER = ("joint", "text")
COLUMNS_COUNT = ("as_attended", "equally")
