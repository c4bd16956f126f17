"""The settings of a run as everything else gets them: composed, checked, and with a place of their own."""

from collections.abc import Sequence

from star.config.checks import check
from star.config.compose import compose
from star.config.identity import run_folder
from star.config.schema import Config


def load(overrides: Sequence[str]) -> Config:
    """The settings of a run.

    Args:
        overrides: ``key=value`` words in Hydra's grammar.

    Raises:
        UserError: an unknown file or key, a value of the wrong type or out of range; the line names it and what is allowed.
    """
    config = compose(overrides)
    check(config)
    config.run = config.run or str(run_folder(config))
    return config
