"""The folder of a run: its settings, its log, and which of its checkpoints and results are there. Needs no torch."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from star.common.console import tell
from star.common.errors import RunStopped, UserError
from star.common.files import (
    MOST_AMOUNT,
    append_jsonl,
    check_room,
    fault,
    is_amount,
    last_of_jsonl,
    read_json,
    read_jsonl,
    to_disk,
    write_text,
    writing,
)
from star.records.results import METRICS

HEADER = "# training settings "
"""The start of a run's ``config.yaml``, which marks its folder as a run's; the run's identity follows."""

BESIDE = re.compile(r"log(-\d+)?\.txt|lock|job|slurm|attempts\.jsonl|\..*")
"""Files that a launcher puts into a run's folder before the run begins, and hidden files."""

EPOCH = "epoch-" + 6 * "[0-9]"
"""The folders of checkpoints, as a pattern; another name, such as that of a copy, is not looked into."""

SAVED = "saved"
"""The empty file that says that a run has had a checkpoint: if there is none now, they are out of reach."""

FEW = 10
"""How many epochs a message names at most."""


def kept(run: str) -> str:
    """How a run that was interrupted goes on, for a message.

    Args:
        run: its folder.
    """
    folder = RunFolder(Path(run))
    if folder.summary() is not None:
        return "the training is done; the same command evaluates it"
    if checkpoints := folder.checkpoints():
        return f"the same command goes on after epoch {int(checkpoints[-1].name[-6:])}"
    return "there is no checkpoint yet, so the same command starts anew"


def _is_epoch(line: dict) -> bool:
    """Whether an object is a line that a training logs, with numbers for what others reckon with."""
    least = {"epoch": 1, "images_seen": 1, "seconds": 0, "reward": -MOST_AMOUNT}
    return isinstance(line.get("epoch"), int) and all(is_amount(line.get(name), low) for name, low in least.items())


class RunFolder:
    """The files of one run.

    ``config.yaml`` its settings; ``metrics.jsonl`` a line per epoch; ``saved`` says that there were checkpoints;
    ``checkpoints/epoch-000012/`` with ``trained.safetensors``, ``state.pt`` (optimizer, average, scaler), ``lora/`` (the
    average, for others to load), ``progress.json`` and the digests of all; ``best/`` the ``lora/`` that scored highest in the
    evaluations during training, if there were any; ``final/`` the weights of the finished run. All random numbers are keyed,
    so no generator has to be saved.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def started(self) -> bool:
        """Whether the folder holds a checkpoint or a finished run, or the log of a run that has had a checkpoint."""
        return bool(self.checkpoints()) or (self.path / "final" / "summary.json").exists() or self._cut_from_checkpoints

    def check_place(self) -> None:
        """Check, before any work, that the folder can hold a run.

        Raises:
            UserError: its run is not done and it cannot be made or written to, or it holds something other than a run.
        """
        config = self.path / "config.yaml"
        try:
            ours = config.is_file() and config.read_bytes().startswith(HEADER.encode())
            others = sorted(file.name for file in self.path.iterdir() if not BESIDE.fullmatch(file.name)) if not ours else []
        except (FileNotFoundError, ValueError):
            others = []
        except OSError as error:
            raise UserError(f"run={self.path} cannot be a run's folder: {error.strerror}; name another one") from None
        if "config.yaml" in others and {"checkpoints", "final", "metrics.jsonl"} & set(others):
            raise UserError(
                f"run={self.path}: config.yaml is damaged, its first line is not {HEADER.strip()!r}; put it back, or delete "
                "the folder"
            )
        if others:
            raise UserError(
                f"run={self.path} holds something else than a run of this project ({others[0]}); name an empty or new folder"
            )
        if self.summary() is None:
            check_room(self.path, "the run")

    @property
    def _cut_from_checkpoints(self) -> bool:
        """Whether epochs are logged of a run that has had a checkpoint, and none is there now."""
        return (self.path / SAVED).exists() and not self.checkpoints() and bool(self.metrics())

    def open(self, config: str, identity: str) -> None:
        """Make the folder, or check that the run that was started in it is the same.

        Args:
            config: the settings, as YAML.
            identity: a hash of the settings that training depends on; it becomes the first line of ``config.yaml``.

        Raises:
            UserError: the folder holds another run, a finished one that has changed, or something else; or one whose
                checkpoints are out of reach, and beginning anew would delete its log.
        """
        self.check_place()
        file = self.path / "config.yaml"
        head, text = f"{HEADER}{identity}\n", f"{HEADER}{identity}\n{config}"
        there = file.read_text(errors="replace") if file.exists() else ""
        if self.started and not there.startswith(head):
            raise UserError(
                f"{self.path} holds a run with other settings (see its config.yaml); delete it or name another "
                "folder with run=..."
            )
        self._check_end()
        if self.summary() is None and self._cut_from_checkpoints:
            raise UserError(
                f"{len(self.metrics())} epochs are logged in {self.path / 'metrics.jsonl'}, but there are no checkpoints in "
                f"{self.path / 'checkpoints'} any more; put them back, or delete the folder, and the same command trains anew"
            )
        if there != text:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                write_text(file, text)

    def _check_end(self) -> None:
        """Check that the log and the summary of a finished run have not changed.

        Raises:
            UserError: the log has, which cannot be made again; or the summary has, and there is no checkpoint to make it
                again from.
        """
        final = self.path / "final"
        if not (final / "summary.json").exists():
            return
        anew = "put it back, or delete the folder, and the same command trains anew"
        if told := fault(final, METRICS):
            raise UserError(f"{told}; {anew}")
        if self.summary() is None:
            told = fault(final, "summary.json") or f"{final / 'summary.json'} is damaged"
            if not self.checkpoints():
                raise UserError(f"{told}; {anew}")
            tell(f"{told}; the last epochs are trained again")

    def prune(self, keep: int, bad_from: int | None = None) -> None:
        """Delete all but the newest checkpoints; one that cannot be deleted now is left for the next call.

        Args:
            keep: how many of the newest stay.
            bad_from: number of epochs after which all were bad; the newest checkpoint of fewer epochs stays too.
        """
        spared = None if bad_from is None else self.newest_before(bad_from)
        for folder in self.checkpoints()[:-keep]:
            if folder == spared:
                continue
            try:
                shutil.rmtree(folder)
            except OSError as error:  # another process is reading it, say
                tell(f"{folder} could not be deleted: {error.strerror or error}")

    def checkpoints(self) -> list[Path]:
        """The folders of complete checkpoints, oldest first."""
        return sorted(path for path in (self.path / "checkpoints").glob(EPOCH) if path.is_dir())

    def newest_before(self, epochs: int) -> Path | None:
        """The newest checkpoint of fewer than ``epochs`` epochs, whose weights drew one of these; None if there is none."""
        return next((folder for folder in reversed(self.checkpoints()) if int(folder.name[-6:]) < epochs), None)

    def log(self, line: dict) -> None:
        """Add a line to ``metrics.jsonl``."""
        with self._writing():
            append_jsonl(self.path / "metrics.jsonl", line)

    def metrics(self) -> list[dict]:
        """The logged lines, of each epoch the last; one that was cut off in the middle, or is no epoch's, does not count."""
        lines = read_jsonl(self.path / "metrics.jsonl")
        last = {line["epoch"]: line for line in lines if _is_epoch(line)}
        return [last[epoch] for epoch in sorted(last)]

    def last(self) -> dict | None:
        """The last logged line, None if there is none that this user can read."""
        with suppress(PermissionError):
            return last_of_jsonl(self.path / "metrics.jsonl", _is_epoch)
        return None

    def summary(self) -> dict | None:
        """The summary that a finished training left, or None if the run is not done or the summary is damaged."""
        summary = read_json(self.path / "final" / "summary.json")
        whole = isinstance(summary, dict) and all(
            is_amount(summary.get(name)) for name in ("updates", "images_seen", "seconds")
        )
        return summary if whole and not fault(self.path / "final", "summary.json") else None

    def drop_after(self, epochs: int) -> None:
        """Drop log lines of later epochs, set later checkpoints aside as damaged, and delete incomplete ones."""
        for part in (self.path / "checkpoints").glob(EPOCH + ".part"):
            shutil.rmtree(part, ignore_errors=True)
        with writing(self.path):
            for folder in self.checkpoints():
                if int(folder.name[-6:]) > epochs:
                    aside = folder.with_name(folder.name + ".damaged")
                    shutil.rmtree(aside, ignore_errors=True)
                    os.replace(folder, aside)
            logged = self.metrics()
            kept = [line for line in logged if line["epoch"] <= epochs]
            if logged:
                write_text(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        if missing := sorted(set(range(1, epochs + 1)) - {line["epoch"] for line in kept}):
            few = ", ".join(map(str, missing[:FEW])) + (f" and {len(missing) - FEW:,} more" if len(missing) > FEW else "")
            tell(f"{self.path}/metrics.jsonl has no line of the epochs {few}")

    @contextmanager
    def _whole(self, folder: Path) -> Iterator[Path]:
        """Inside, a new folder to write into, which replaces the given one at the end; raises what :meth:`_writing` does."""
        part = folder.with_name(folder.name + ".part")
        with self._writing():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            yield part
            for file in filter(Path.is_file, part.rglob("*")):
                to_disk(file)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(part, folder)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Inside, files are written into the folder of a run that is under way.

        Raises:
            RunStopped: they cannot be written, or the folder was deleted meanwhile; a new one would have no settings.
        """
        with writing(self.path):
            if not (self.path / "config.yaml").exists():
                raise RunStopped(f"{self.path} was deleted or moved while its run went on")
            yield
