"""``star matrix``: runs the cells of a matrix that are not done yet, and writes the result files."""

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from star.common.children import end_with_parent
from star.common.console import console, tell
from star.common.errors import RunStopped, UserError, one_line
from star.common.files import check_room, free_bytes
from star.common.numbers import counted
from star.common.plugins import own_errors
from star.common.progress import clock
from star.common.signals import ending_like_ctrl_c
from star.config import Config, other_tasks
from star.matrix import launchers
from star.matrix.board import Board
from star.matrix.cells import Cell, State, expand, same_given
from star.matrix.collect import collect, put
from star.matrix.estimate import expected, took
from star.records.folder import own_results

Given = Mapping[tuple[str, str], str]


def matrix(words: Sequence[str], dry_run: bool = False) -> int:
    """Run the cells that are not done; those that failed before are tried again.

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
    folder = own_results(cells[0].config.scale)
    waiting = [cell for cell, state in states.items() if state is not State.DONE]
    known = same_given(cell for cell, state in states.items() if state is State.DONE)
    launched = launchers.launch(waiting, options)
    if waiting:
        check_present(waiting, known)
    check_room(folder, "result files")
    with ending_like_ctrl_c(), Board(states, launchers.side_by_side(options)) as board, closing(launched) as events:
        keep_books = Bookkeeping()
        for cell, state, reason in events:
            keep_books(board.update, cell, state, reason)
            if state is State.DONE:
                keep_books(put, cell, folder)
    collect([cell for cell, state in board.states.items() if state is State.DONE], folder)
    _report(board, folder)
    return 1 if board.reasons else 0


class Bookkeeping:
    """Does work whose failure must not end the trainings under way; each reason of a failure is reported once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, work: Callable[..., None], *arguments: object) -> None:
        """Do it."""
        try:
            work(*arguments)
        except (OSError, UserError) as error:  # a file system that does not respond, a result file that a spreadsheet changed
            if (reason := one_line(error)) not in self._told:
                self._told.add(reason)
                tell(f"{reason}; the runs go on, and what they leave is collected at the end")


def _print_commands(states: dict[Cell, State], options: launchers.Options) -> None:
    """A line per cell that a shell can run, with what is known of it as a comment."""
    out = console()
    if options.nodes > 1:
        out.print("# on every node with its --machine_rank, and with an address of the first one for HOST")
    for (cell, state), seconds in zip(states.items(), expected(states).values(), strict=True):
        known = "?" if seconds is None else f"about {clock(seconds)}"
        time = f"took {took(cell.folder)}" if state is State.DONE else known
        out.print(f"{shlex.join(launchers.command(cell, options))}  # {state}, {time}", soft_wrap=True)
    at_once = launchers.side_by_side(options)
    told = f", {at_once} side by side" if at_once > 1 else ""
    out.print(f"# {Board(states, at_once).line()}{told}", soft_wrap=True)


def check_present(waiting: Sequence[Cell], known: Given) -> None:
    """Find what is missing before hours of training, not after; in another process, so that the memory is freed.

    Args:
        waiting: the cells that are not done.
        known: what those that are done were given, see :func:`star.matrix.cells.same_given`.
    """
    configs = {cell.task: cell.config for cell in waiting}
    arms: dict[str, set[str]] = {task: set() for task in configs}
    for cell in waiting:
        if cell.seed is not None:
            arms[cell.task].add(cell.config.method.arm)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
            takes = pool.submit(_load_all, configs, arms, dict(known)).result()
    except BrokenProcessPool:
        raise RunStopped(
            "the process that looks for models and evaluators was killed, perhaps for want of memory; nothing was run"
        ) from None
    runs = [max(0.0, takes[cell.task] - _size(cell.folder)) for cell in waiting if cell.seed is not None]
    free = free_bytes(waiting[0].folder)  # runs may be a link to another disk
    if sum(runs) > free:
        tell(
            f"{counted(len(runs), 'run')} may need {sum(runs) / 2**30:,.0f} GiB more on this disk (estimate), where "
            f"{free / 2**30:,.0f} are free; what stops for want of room goes on by the same command when there is some; "
            "train.keep lowers it"
        )


def _size(folder: Path) -> int:
    """The bytes that a run takes on disk so far; too few if files vanish while they are counted."""
    size = 0
    with suppress(OSError):
        for file in folder.rglob("*"):
            size += file.lstat().st_size
    return size


@own_errors()
def _load_all(configs: Mapping[str, Config], arms: Mapping[str, Collection[str]], known: Given) -> dict[str, float]:
    """Load what runs of these tasks need, and check that each task's evaluator provides what its arms' maps are made from.

    Base weights and prompts must be the ``known`` ones.

    Returns:
        task -> the most bytes that a run of it takes on disk; 0 if unknown.
    """
    import torch

    from star.common.machine import on_gpu
    from star.method.arms import map_maker
    from star.models import find
    from star.models.memory import left_on_disk, needed
    from star.models.shapes import shape_of
    from star.models.sources import source
    from star.tasks import load_rewards, load_task, try_evaluator
    from star.training.credit import check_evaluator, check_map
    from star.training.given import check_given, given

    for arm in sorted(set().union(*arms.values())):
        map_maker(arm)
    device = torch.device("cuda" if on_gpu() else "cpu")
    for config in configs.values():
        find(config.model)
    for own, config in configs.items():
        task = load_task(config, own)
        load_rewards(config, task)
        before = {name: digest for (name, of), digest in known.items() if of in ("", own)}
        begun = "the runs that are done were made; put that back, or delete their folders"
        check_given(config, before, given(config, task, training=bool(arms[own])), begun)
        try_evaluator(config, task)
        for arm in sorted(arms[own]):
            check_evaluator(arm, task)
            check_map(replace(config, method=replace(config.method, arm=arm)), task, device)
    trained = [config for own, config in configs.items() if arms[own]]
    others = {name: config for config in trained for name in other_tasks(config) if name not in configs}
    for name, config in others.items():
        try_evaluator(config, load_task(config, name))
    takes = dict.fromkeys(configs, 0.0)
    for own, config in configs.items():
        with suppress(UserError):  # unknown for a user-defined model
            takes[own] = left_on_disk(config, needed(config, shape_of(source(config.model))))
    return takes


def _report(board: Board, folder: Path) -> None:
    out = console()
    for cell, reason in board.reasons.items():
        out.print(f"failed: {cell.label}: {reason} ({cell.folder / 'log.txt'})", soft_wrap=True)
    out.print(board.line())
    out.print(f"results in {folder}" + ("; the same command tries again what failed" if board.reasons else ""))
