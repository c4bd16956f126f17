"""The files of a results folder beside the result files of its tasks, and which of their lines belong to those.

``curves.csv`` has a line per epoch of every training, ``images.csv.gz`` one per evaluated image with its verdicts, and
``commands.csv`` the command of every run, with what trainings must share to be compared (``terms``), and ``gradient.csv`` and
``influence.csv`` what ``star bench gradient`` and ``star bench influence`` measured.
"""

from collections.abc import Iterable

import pandas as pd

from star.records.results import Row

CURVES, IMAGES, COMMANDS = "curves.csv", "images.csv.gz", "commands.csv"
GRADIENT, INFLUENCE = "gradient.csv", "influence.csv"

KEY = ["task", "method", "seed"]
EVALUATION = [*KEY, "config_hash"]
FIRST = {
    CURVES: [*EVALUATION, "epoch", "updates", "images_seen", "seconds", "reward"],
    IMAGES: [*EVALUATION, "stratum", "prompt", "image"],
    COMMANDS: [*EVALUATION, "command", "terms"],
}
"""The columns that each begins with."""


def belonging(table: pd.DataFrame, known: Iterable[Row]) -> pd.DataFrame:
    """The lines of a table that belong to result rows, rather than to runs whose results were replaced since."""
    evaluations = pd.DataFrame([(r.task, r.method, r.seed, r.config_hash) for r in known], columns=EVALUATION)
    return table.merge(evaluations.drop_duplicates().astype(table[EVALUATION].dtypes), on=EVALUATION)
