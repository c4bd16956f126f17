"""Loads the settings of a run as everything else gets them: composed, checked, and with the run's folder."""

from collections.abc import Sequence

from star.common.errors import UserError
from star.config.checks import check
from star.config.compose import compose
from star.config.identity import run_folder
from star.config.schema import Config


def load(overrides: Sequence[str], own_folder: bool = True) -> Config:
    """The settings of a run.

    Args:
        overrides: ``key=value`` words in Hydra's grammar.
        own_folder: whether the command keeps something in the folder that ``run=`` names.

    Raises:
        UserError: an unknown file or key, a value of the wrong type or out of range; the line names it and what is allowed.
            Or run= is given to a command that writes nothing there.
    """
    if not own_folder and (named := [word for word in overrides if word.lstrip("+~").partition("=")[0] == "run"]):
        raise UserError(f"{named[-1]}: only a training has a folder of one's choice; leave it out")
    config = compose(overrides)
    check(config)
    config.run = config.run or str(run_folder(config))
    return config
