"""How the cells of a matrix are run: here, one or several at a time, or as SLURM jobs.

Every launcher runs cells through :func:`star.matrix.commands.attempt`, so that their folders look the same whatever ran them.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from importlib.util import find_spec
from itertools import takewhile
from typing import Any, ClassVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from star import config as settings
from star.common.console import log, note, tell
from star.common.errors import RunStopped, UserError, first_line, one_line
from star.common.files import write_text
from star.common.machine import CORES_VARIABLE, cores
from star.config.schema import COUNT, MINUTES
from star.matrix.cells import Cell, State
from star.matrix.commands import CONSEQUENCE, POLL_SECONDS, attempt, attempt_beside
from star.matrix.estimate import epochs
from star.records.attempts import lines

RESTARTS = 100  # of a job that ran into its time limit: long trainings take many
FIRST_PORT, PORTS = 20_000, 10_000
LOCAL_PORT = 29_500
FAILED_IN_A_ROW = 2  # runs without an epoch, after which a place looks broken
RETRY_SECONDS = 600.0  # after which a cluster is asked again to take a job
LOCK_SECONDS = 600.0  # that a job waits for its cell's lock, with GPUs that others could use
GRACE_SECONDS = 900.0  # within which SLURM kills what it has told to end
CPUS_OF_A_GPU = 8  # for its process, the evaluator's thread and the OCR workers

Event = tuple[Cell, State, str]
"""What became of a cell, and the reason if it failed. A cell that goes on running is reported again and again."""


@dataclass
class Local:
    """Cells on this machine.

    Attributes:
        gpus_per_node: how many GPUs each cell runs on.
        at_once: how many cells run side by side, each with its share of the cores and its own GPUs; null for one, or for
            two without GPUs (if there are two cores), since small tensors make poor use of a second core.
    """

    gpus_per_node: int
    at_once: int | None
    nodes: ClassVar[int] = 1


@dataclass
class Submitit:
    """A SLURM job per cell.

    Attributes:
        cluster: ``slurm``, or ``local`` to try it without one.
        nodes, gpus_per_node: of a job; with several GPUs in total the cell runs through accelerate.
        cpus: per node; null for :data:`CPUS_OF_A_GPU` per GPU.
        partition: null for the cluster's default.
        timeout: minutes after which a job goes back into the queue.
        additional: further options of sbatch by their long names; ``true`` for those without a value, ``false`` for none.
    """

    cluster: str
    nodes: int
    gpus_per_node: int
    cpus: int | None
    partition: str | None
    timeout: int
    additional: dict[str, str] = field(default_factory=dict)


Options = Local | Submitit
RULES = dict.fromkeys(("nodes", "gpus_per_node", "cpus", "at_once"), COUNT) | {"timeout": MINUTES}
"""The allowed values of their numeric options."""

KINDS: dict[str, type[Local] | type[Submitit]] = {"local": Local, "submitit": Submitit}


def load(words: Sequence[str]) -> Options:
    """The launcher and its options.

    Args:
        words: ``launcher=NAME`` and ``launcher.KEY=VALUE``.

    Raises:
        UserError: no such launcher or option, or a value that is out of range or left out.
    """
    name = next((word.partition("=")[2] for word in reversed(words) if word.startswith("launcher=")), "local")
    if name not in settings.options("launcher"):
        raise UserError(f"no launcher {name!r}; there are: {', '.join(settings.options('launcher'))}")
    kind = KINDS[name]
    file = resources.files("star.config.files") / "launcher" / f"{name}.yaml"
    given = [word.removeprefix("launcher.") for word in words if word.startswith("launcher.")]
    if empty := [option for word in given for option, _, value in [word.partition("=")] if not value.strip()]:
        raise UserError(f"launcher.{empty[0]}= has no value; write one, or leave it out")
    try:
        merged = OmegaConf.merge(kind, OmegaConf.create(file.read_text()), OmegaConf.from_dotlist(given))
        options: Any = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        known = ", ".join(option.name for option in fields(kind))
        raise UserError(f"launcher={name}: {first_line(error)}; its options are: {known}") from None
    for option, rule in RULES.items():
        value = getattr(options, option, None)
        if value is not None and not rule.allows(value):
            raise UserError(f"launcher.{option}={value} {rule.text}")
    if isinstance(options, Submitit) and options.cluster not in ("slurm", "local"):
        raise UserError(f"launcher.cluster={options.cluster} is not known; it is slurm or local")
    return options


def launch(cells: Sequence[Cell], options: Options) -> Generator[Event, None, None]:
    """Run cells; every one is reported as done or failed in the end.

    Raises:
        UserError: the launcher cannot be used.
    """
    if isinstance(options, Submitit) and find_spec("submitit") is None:
        raise UserError("launcher=submitit needs the package submitit; get it with: pip install 'star-rl[slurm]'")
    if isinstance(options, Submitit):
        return _submitit(cells, options)
    gpus, at_once = usable_gpus(), side_by_side(options)
    needed = at_once * options.gpus_per_node if gpus or options.gpus_per_node > 1 else 0
    if needed > len(gpus):
        raise UserError(
            f"launcher.at_once={at_once} runs with launcher.gpus_per_node={options.gpus_per_node} each, but here are "
            f"{len(gpus) or 'no'} GPUs"
        )
    if cells and (idle := len(gpus) - at_once * options.gpus_per_node) > 0:
        note(
            f"{idle} of {len(gpus)} GPUs are not used; launcher.gpus_per_node={len(gpus)} spreads each run over all of them, "
            f"launcher.at_once={len(gpus)} makes {len(gpus)} runs side by side"
        )
    return _local(cells, options, at_once, gpus)


def side_by_side(options: Options) -> int:
    """How many cells run at once; 1 for a cluster, where that is not known beforehand."""
    if isinstance(options, Submitit):
        return 1
    return options.at_once or (1 if usable_gpus() else min(2, cores()))


def command(cell: Cell, options: Options, node: int | str = 0, host: str = "HOST", port: int = LOCAL_PORT) -> list[str]:
    """The command that runs a cell, as a user would type it.

    Args:
        cell: the cell.
        options: with the number of nodes and of GPUs.
        node: number of the node that it is run on.
        host, port: where the processes meet: an address of node 0.
    """
    processes = options.nodes * options.gpus_per_node
    if processes == 1:
        return list(cell.command)
    words = ["accelerate", "launch", "--multi_gpu", "--num_processes", processes, "--num_machines", options.nodes]
    # Stated explicitly, so that the user's accelerate configuration does not interfere.
    words += ["--mixed_precision", "no", "--dynamo_backend", "no", "--gpu_ids", "all", "--main_process_port", port]
    if options.nodes > 1:
        words += ["--machine_rank", node, "--main_process_ip", host]
    return [*map(str, words), "--module", *cell.command]


def outcome(cell: Cell, before: int, otherwise: str) -> Event:
    """What became of a cell whose attempt has ended.

    Args:
        cell: the cell.
        before: how many :func:`star.records.attempts.lines` its folder had before this attempt.
        otherwise: the reason if this attempt left none.
    """
    try:
        if cell.state() is State.DONE:
            return cell, State.DONE, ""
        told = [str(line["reason"]) for line in lines(cell.folder)[before:] if line.get("reason")]
        causes = [reason for reason in told if not CONSEQUENCE.search(reason)]
        return cell, State.FAILED, (causes or told or [otherwise])[-1]
    except OSError as error:  # its folder cannot be read now, which is no reason to end other runs
        return cell, State.FAILED, one_line(error)


def _local(cells: Sequence[Cell], options: Local, at_once: int, gpus: Sequence[str]) -> Generator[Event, None, None]:
    waiting, running = list(cells), dict[Cell, tuple[Generator[None, None, int], int]]()
    size = options.gpus_per_node
    own = [",".join(gpus[place * size : (place + 1) * size]) for place in range(at_once)]
    places = Places(own)
    before = {cell: len(lines(cell.folder)) for cell in cells}
    begun = {cell: epochs(cell) for cell in cells}
    with ExitStack() as stack:
        while waiting or running:
            while waiting and places.free:
                cell, place = waiting.pop(0), places.free.pop(0)
                words = [*command(cell, options, port=_free_port()), *_folder_word(cell)]
                going = attempt(cell.folder, words, _share(at_once, own[place], size))
                stack.callback(going.close)
                running[cell] = going, place
            for cell, (going, place) in list(running.items()):
                ended, otherwise = _gone_on(going)
                if not ended:
                    yield cell, State.RUNNING, ""
                    continue
                del running[cell]
                event = outcome(cell, before[cell], otherwise)
                yield event
                lost = event[1] is State.FAILED and not _has_moved(cell, begun[cell])
                going_on = bool(gpus) and any(_has_moved(other, begun[other]) for other in running)
                waiting = places.ended(cell, place, lost, going_on) + waiting


class Places:
    """The places where runs go on side by side, each with its own GPUs.

    A place whose GPU is broken would soon fail every waiting run, so it is left alone and its runs are tried elsewhere.

    Attributes:
        free: the numbers of the places that can take a run.
    """

    def __init__(self, gpus: Sequence[str]) -> None:
        """
        Args:
            gpus: those of each place, as a value of ``CUDA_VISIBLE_DEVICES``.
        """
        self._gpus = gpus
        self.free = list(range(len(gpus)))
        self._failed: dict[int, list[Cell]] = {place: [] for place in self.free}
        self._moved: dict[Cell, int] = {}  # a run to be tried again -> the place it failed at

    def ended(self, cell: Cell, place: int, lost: bool, going_on: bool) -> list[Cell]:
        """Give a place back.

        Args:
            cell: the run that has ended there.
            place: its number.
            lost: whether the run failed without completing an epoch.
            going_on: whether any run at another place has completed an epoch.

        Returns:
            runs that are to be tried again.
        """
        if (origin := self._moved.pop(cell, None)) is not None:
            # The first retry to end settles whether its first place is to blame; other retries from there no longer count.
            self._moved = {other: where for other, where in self._moved.items() if where != origin}
            if lost:  # it fails here, too, so its first place was not to blame: both are free
                self.free += [place, origin]
                return []
        failed = self._failed[place]
        if lost:
            failed.append(cell)
        else:
            failed.clear()
        if len(failed) < FAILED_IN_A_ROW or not going_on:
            self.free.append(place)
            return []
        tell(
            f"CUDA_VISIBLE_DEVICES={self._gpus[place]} has failed {len(failed)} runs in a row while others go on: is a GPU "
            "broken? It is left alone, and they are tried elsewhere"
        )
        again = list(failed)
        self._moved |= dict.fromkeys(again, place)
        failed.clear()
        return again


def _has_moved(cell: Cell, begun: int) -> bool:
    """Whether a run has completed more than ``begun`` epochs; False if its folder cannot be read now."""
    try:
        return epochs(cell) > begun
    except OSError:
        return False


def _gone_on(going: Generator[None, None, int]) -> tuple[bool, str]:
    """Whether an attempt has ended, and the reason to give if it recorded none."""
    try:
        next(going)
    except StopIteration:
        return True, "it ended well but left no results"
    except OSError as error:  # its disk is full or its folder gone; the other runs go on
        return True, one_line(error)
    return False, ""


def _folder_word(cell: Cell) -> list[str]:
    """The word that fixes a training's folder, since later code might derive another, empty one from its settings."""
    return [] if cell.seed is None else [f"run={cell.folder}"]


def _free_port() -> int:
    """A port that nothing listens on: another matrix may run on this machine."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def _share(at_once: int, gpus: str, processes: int) -> dict[str, str]:
    """The environment that gives one of several cells its share of the cores, and its GPUs if there are any.

    Args:
        at_once: how many cells run side by side.
        gpus: those of the cell, as a value of ``CUDA_VISIBLE_DEVICES``.
        processes: how many the cell has. Each makes as many threads as the environment says, so they divide the share.
    """
    if at_once == 1:
        return {}
    own = max(1, cores() // at_once)
    share = {CORES_VARIABLE: str(own), "OMP_NUM_THREADS": str(max(1, own // processes))}
    return share | ({"CUDA_VISIBLE_DEVICES": gpus} if gpus else {})


def usable_gpus() -> list[str]:
    """The GPUs that may be used here, by the names that ``CUDA_VISIBLE_DEVICES`` takes."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        # CUDA reads the list up to the first name of no GPU, such as -1.
        return list(takewhile(lambda name: name.strip() and not name.strip().startswith("-"), named.split(",")))
    return [str(index) for index in range(_installed_gpus())]


@cache
def _installed_gpus() -> int:
    """How many GPUs this machine has; asking takes a second."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())  # other lines are MIG devices and errors


@dataclass
class Job:
    """What every node of a SLURM job does. submitit pickles it, and calls :meth:`checkpoint` when the job's time is up."""

    cell: Cell
    options: Submitit

    def __call__(self) -> None:
        """Runs on every node of the job."""
        import submitit

        environment = submitit.JobEnvironment()
        # The result of an attempt that SLURM put back into the queue would say that the job is over.
        environment.paths.result_pickle.unlink(missing_ok=True)
        told: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
        node, job = environment.node, int(environment.job_id.partition("_")[0])
        # Jobs of the same user may share a node, so each has its own port.
        words = command(self.cell, self.options, node, environment.hostnames[0], FIRST_PORT + job % PORTS)
        words += _folder_word(self.cell)
        if node == 0:
            code = _ended(attempt(self.cell.folder, words, patience=LOCK_SECONDS))
        else:
            code = _ended(attempt_beside(self.cell.folder, words, node))
        if code and told:
            time.sleep(GRACE_SECONDS)  # SLURM took the nodes away: it ends this, and may put the job back into the queue
        if code:
            # The other nodes would wait for this one's processes until the job's time is up; a failed task ends them.
            raise RunStopped(f"node {node} of {self.cell.label} ended with exit code {code}")

    def checkpoint(self) -> Any:
        """What is put back into the queue when the job's time is up."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _ended(going: Generator[None, None, int]) -> int:
    """Wait until a command has ended, and return its exit code."""
    while True:
        try:
            next(going)
        except StopIteration as end:
            return int(end.value)


def _submitit(cells: Sequence[Cell], options: Submitit) -> Generator[Event, None, None]:
    before = {cell: len(lines(cell.folder)) for cell in cells}
    waiting, jobs, again, said = list(cells), list[tuple[Cell, Any]](), 0.0, ""
    try:
        while waiting or jobs:
            while waiting and time.monotonic() >= again:
                try:
                    jobs.append((waiting[0], _queued(waiting[0]) or _submit(waiting[0], options)))
                    waiting.pop(0)
                except UserError as error:
                    if not jobs:
                        raise
                    # Clusters limit how many jobs one may have, and at times do not answer.
                    again = time.monotonic() + RETRY_SECONDS
                    told = f"star: {error}; {len(waiting)} runs wait ten minutes, or until a job has ended"
                    if told != said:
                        log(told)
                    said = told
            for cell, job in list(jobs):
                if job.done():
                    jobs.remove((cell, job))
                    again = 0.0
                    otherwise = f"job {job.job_id} ended without results ({job.state}), see {job.paths.folder}"
                    yield outcome(cell, before[cell], otherwise)
                else:
                    yield cell, State.RUNNING if job.state == "RUNNING" else State.NEW, ""
            time.sleep(POLL_SECONDS)
    except (GeneratorExit, KeyboardInterrupt):
        log(f"star: jobs go on without being watched: {' '.join(job.job_id for _, job in jobs)}")
        raise


def _submit(cell: Cell, options: Submitit) -> Any:
    """Send a cell to the cluster."""
    import submitit

    cell.folder.mkdir(parents=True, exist_ok=True)
    cpus = options.cpus or CPUS_OF_A_GPU * options.gpus_per_node
    try:
        executor = submitit.AutoExecutor(cell.folder / "slurm", options.cluster, slurm_max_num_timeout=RESTARTS)
        executor.update_parameters(
            name=cell.label.replace(" ", "-"),
            nodes=options.nodes,
            tasks_per_node=1,
            gpus_per_node=options.gpus_per_node,
            cpus_per_task=cpus,
            timeout_min=options.timeout,
            slurm_partition=options.partition,
            slurm_additional_parameters=_flags(options.additional),
            # SLURM 22.05 to 23.02 does not pass --cpus-per-task from sbatch to srun, and a run would have one core.
            slurm_srun_args=[f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"],
        )
        job = executor.submit(Job(cell, options))
        try:
            write_text(cell.folder / "job", f"{job.job_id}\n")
        except OSError:  # else the next matrix would not know of it, and submit another
            job.cancel()
            raise
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"launcher=submitit: {cell.label} could not be submitted: {one_line(error)}") from None
    return job


def _flags(additional: Mapping[str, str]) -> dict[str, str | bool]:
    """Options of sbatch as submitit takes them. Where a cluster does not let jobs go back into the queue, they ask for it."""
    asked = {"requeue": "true", **additional}
    return {name: value.lower() == "true" or value for name, value in asked.items() if value.lower() != "false"}


def _queued(cell: Cell) -> Any:
    """The job of a cell that an earlier matrix submitted, if it is still queued or running; else None.

    Raises:
        UserError: SLURM does not answer. If the job were wrongly taken for gone, two trainings would share a folder.
    """
    import submitit

    file = cell.folder / "job"
    if not file.exists() or shutil.which("squeue") is None:
        return None
    number = file.read_text().strip()
    listed = subprocess.run(["squeue", "--noheader", "--jobs", number], capture_output=True, text=True)
    if listed.returncode and "Invalid job id" not in listed.stderr:
        reason = " ".join(listed.stderr.split()) or f"exit code {listed.returncode}"
        raise UserError(f"launcher=submitit: squeue does not say whether job {number} still runs ({reason}); try again")
    return submitit.SlurmJob(cell.folder / "slurm", number) if listed.stdout.strip() else None
