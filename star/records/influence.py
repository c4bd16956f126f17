"""What ``star bench influence`` measures, and what its figures are called."""

from star.records.folder import INFLUENCE, NEEDED

COLUMNS = NEEDED[INFLUENCE]

LABELS = {
    "reward_change": "reward: rms change",
    "with_objects": "objects: prompts with some",
    "on_objects": "objects: tokens",
    "carried": "objects: sum of squares",
    "on_over_off": "objects: on over off",
    "quartile_1": "relevance: lowest 1/4",
    "quartile_2": "relevance: second",
    "quartile_3": "relevance: third",
    "quartile_4": "relevance: highest",
    "correlation": "relevance: correlation",
    "in_token": "image: in the token",
    "in_3x3": "image: in 3 x 3",
}
"""A metric's key in the table -> its name."""
