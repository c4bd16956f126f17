"""Where results lie, and the files of a results folder beside the result files of its tasks.

What is run here goes to ``runs/results/SCALE``, which git ignores; what ships is in ``results/SCALE``, and ``star publish`` is
the way there. In both, ``curves.csv`` has a line per epoch of every training, ``images.csv.gz`` one per evaluated image with
its verdicts, ``commands.csv`` the command of every run, with what trainings must share to be compared (``terms``), and
``gradient.csv`` and ``influence.csv`` what ``star bench gradient`` and ``star bench influence`` measured.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from star.common.errors import UserError
from star.records.results import ROOT, Row

OWN = Path("runs", "results")
"""Where results of this machine's runs are put, a folder for each scale."""

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


def own_results(scale: str) -> Path:
    """The folder of results that were made here."""
    return OWN / scale


def shipped_results(scale: str) -> Path:
    """The folder of results that ship with this project: of this checkout, or else of the current directory."""
    root = ROOT if (ROOT / "results").is_dir() else Path()
    return root / "results" / scale


def latest_own_results() -> Path:
    """The folder of the results that were made here last.

    Raises:
        UserError: there are none.
    """
    files = list(OWN.glob("*/*.csv"))
    if not files:
        raise UserError(f"no results of yours in {OWN}: run `star reproduce geneval`, or name what ships, e.g. results/mini")
    return max(files, key=lambda file: file.stat().st_mtime).parent
