"""``star matrix``: all cells of a matrix, whatever was done of them before, and the result files that come of them."""

import shlex
import signal
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from star.common.children import end_with_parent
from star.common.files import check_room
from star.config import Config
from star.matrix import launchers
from star.matrix.board import Board
from star.matrix.cells import Cell, State, expand
from star.matrix.collect import collect, publish
from star.matrix.estimate import clock, left, pace, spent


def matrix(words: Sequence[str], dry_run: bool = False) -> int:
    """Run the cells that are not done; what failed before is tried again.

    Args:
        words: ``task=``, ``method=`` and ``seed=`` with lists and ranges, ``launcher=`` and its options, and overrides of
            every cell.
        dry_run: print the commands, states and expected times, and run nothing.

    Returns:
        the exit code: 1 if a cell failed.

    Raises:
        UserError: a word, the model, an evaluator or the launcher cannot be used; nothing was run then.
    """
    cells, options = plan(words)
    if not dry_run:
        return run(cells, options)
    _print_commands({cell: cell.state() for cell in cells}, options)
    return 0


def plan(words: Sequence[str]) -> tuple[list[Cell], launchers.Options]:
    """The cells of a matrix and what runs them, from the words of its command; see :func:`matrix`."""
    chosen = [word for word in words if word.startswith(("launcher=", "launcher."))]
    return expand([word for word in words if word not in chosen]), launchers.load(chosen)


def run(cells: Sequence[Cell], options: launchers.Options) -> int:
    """Run the cells that are not done, and write the result files; returns and raises what :func:`matrix` does."""
    states = {cell: cell.state() for cell in cells}
    folder = Path("results", cells[0].config.scale)
    waiting = [cell for cell, state in states.items() if state is not State.DONE]
    launched = launchers.launch(waiting, options)
    if waiting:
        check_present(cells[0].config, {cell.config.method.arm for cell in waiting})
    check_room(folder, "result files")
    with _interruptible(), Board(states, launchers.side_by_side(options)) as board, closing(launched) as events:
        for cell, state, reason in events:
            board.update(cell, state, reason)
            if state is State.DONE:
                publish(cell, folder)
    collect([cell for cell, state in board.states.items() if state is State.DONE], folder)
    _report(board, folder)
    return 1 if board.reasons else 0


def _print_commands(states: dict[Cell, State], options: launchers.Options) -> None:
    """A line per cell that a shell can run, with what is known of it as a comment."""
    console = Console()
    if options.nodes > 1:
        console.print(
            "# on every node with its --machine_rank, and with an address of the first one for HOST", highlight=False
        )
    for cell, state in states.items():
        time = f"took {clock(spent(cell.folder))}" if state is State.DONE else _expected(cell, state)
        console.print(
            f"{shlex.join(launchers.command(cell, options))}  # {state}, {time}", markup=False, highlight=False, soft_wrap=True
        )
    console.print(f"# {Board(states, launchers.side_by_side(options)).line()}", highlight=False, soft_wrap=True)


def _expected(cell: Cell, state: State) -> str:
    seconds = left(cell, state, pace(cell.config.scale, cell.task))
    return "?" if seconds is None else f"about {clock(seconds)}"


def check_present(config: Config, arms: Collection[str]) -> None:
    """Tell what is missing before hours of training, not after; in another process, which gives its memory back."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        pool.submit(_load_all, config, sorted(arms)).result()


def _load_all(config: Config, arms: Sequence[str]) -> None:
    from star.method.arms import map_maker
    from star.models import find
    from star.tasks import load_rewards, load_task

    for arm in arms:
        map_maker(arm)
    find(config.model)
    for name in config.evaluators:
        task = load_task(config, name)
        if name == config.task.name:
            load_rewards(config, task)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Inside, being told to end or losing the terminal is like Ctrl-C: the running cell is ended too."""
    # Not those that are ignored: nohup does that to SIGHUP.
    there = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has one of them
    ours = [number for number in there if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _report(board: Board, folder: Path) -> None:
    console = Console()
    for cell, reason in board.reasons.items():
        console.print(f"failed: {cell.label}: {reason} ({cell.folder / 'log.txt'})", markup=False, soft_wrap=True)
    console.print(board.line(), highlight=False)
    console.print(f"results in {folder}" + ("; the same command tries again what failed" if board.reasons else ""))
