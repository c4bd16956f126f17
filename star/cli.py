"""The command line."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from star.errors import RunStopped, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "STAR: reinforcement learning for text-to-image flow models with attention-allocated rewards, and the baselines "
        "it is compared with.\n\nSettings are words key=value: task=geneval, method=star|flow_grpo|spatial|temporal|"
        "dense_uniform|star_shuffled|star_random, scale=mini|paper, and any key of a run's config.yaml, e.g. "
        "train.epochs=5."
    ),
)
mini = typer.Typer(no_args_is_help=True, help="The embedded small base model and its world.")
app.add_typer(mini, name="mini")

Settings = Annotated[list[str] | None, typer.Argument(help="Settings, key=value.", metavar="[KEY=VALUE]...")]


@app.command()
def train(overrides: Settings = None) -> None:
    """Train one method and evaluate it; an interrupted run goes on where it was.

    Example: star train task=geneval method=star seed=0
    """
    from star import runs, settings_table

    rows = runs.trained(_load(overrides))
    settings_table.show(rows)


@app.command()
def reproduce(
    task: Annotated[str, typer.Argument(help="geneval")],
    overrides: Settings = None,
) -> None:
    """Base, Flow-GRPO and STAR on a task: result file, table beside the paper's numbers, and diff.

    Example: star reproduce geneval seed=1
    """
    from star.reproduce import reproduce as run

    raise typer.Exit(run(task, overrides or []))


@app.command()
def diff(
    ours: Annotated[Path, typer.Argument(help="A result file, e.g. results/mini/geneval.csv.")],
    reference: Annotated[Path | None, typer.Argument(help="Another one; by default the paper's numbers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every row as JSON.")] = False,
) -> None:
    """Set a result file beside the paper's numbers or another file.

    Exit code 0 if nothing differs beyond its interval, 1 if something does, 2 if a file cannot be used.
    """
    from star.bench.diff import run

    raise typer.Exit(run(ours, reference, as_json))


def main() -> None:
    """Entry point: bad input is one line and exit code 2, a run that was stopped one line and exit code 1."""
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except RunStopped as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last checkpoint", 130)


def _fail(message: str, code: int) -> None:
    Console(stderr=True).print(f"star: {message}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def _load(overrides: list[str] | None):
    from star.config import load

    return load(overrides or [])
