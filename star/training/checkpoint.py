"""Checkpoints from which a training run resumes exactly, and the run's folder."""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from star.common.console import tell
from star.common.errors import RunStopped, UserError
from star.common.files import (
    SUMS,
    append_jsonl,
    check_room,
    fault,
    last_of_jsonl,
    read_json,
    read_jsonl,
    replacing,
    visible,
    write_last,
    write_text,
    writing,
)
from star.records.results import METRICS, ROWS


class Stateful(Protocol):
    """A part of a run whose state a checkpoint holds."""

    def state_dict(self) -> dict:
        """The state."""
        ...

    def load_state_dict(self, state: dict) -> Any:
        """Take the state back."""
        ...


HEADER = "# training settings "
"""The start of a run's ``config.yaml``, which marks its folder as a run's; the run's identity follows."""

BESIDE = re.compile(r"log(-\d+)?\.txt|lock|job|slurm|attempts\.jsonl|\..*")
"""Files that a launcher puts into a run's folder before the run begins, and hidden files."""


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


class RunFolder:
    """The files of one run.

    ``config.yaml`` its settings; ``metrics.jsonl`` a line per epoch; ``checkpoints/epoch-000012/`` with
    ``trained.safetensors``, ``state.pt`` (optimizer, average, scaler), ``lora/`` (the average, for others to load),
    ``progress.json`` and the digests of all; ``best/`` the ``lora/`` that scored highest in the evaluations during training,
    if there were any; ``final/`` the weights of the finished run. All random numbers are keyed, so no generator has to be
    saved.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def started(self) -> bool:
        """Whether the folder holds a checkpoint or a finished run."""
        return bool(self.checkpoints()) or (self.path / "final" / "summary.json").exists()

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

    def open(self, config: str, identity: str) -> None:
        """Make the folder, or check that the run that was started in it is the same.

        Args:
            config: the settings, as YAML.
            identity: a hash of the settings that training depends on; it becomes the first line of ``config.yaml``.

        Raises:
            UserError: the folder holds another run, a finished one that has changed, or something else.
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

    def save(
        self,
        epoch: int,
        trained: Mapping[str, Tensor],
        parts: Mapping[str, Stateful],
        progress: dict,
        export: Callable[[Path], None] | None = None,
    ) -> None:
        """Write a checkpoint; it appears under its name only when it is complete.

        Args:
            epoch: number of finished epochs.
            trained: weights by name.
            parts: the other state that the run resumes from, by name.
            progress: of the run.
            export: writes the weights that the run would be judged by into the folder that it is given, ``lora``.

        Raises:
            RunStopped: the disk is full, or the folder has vanished; likewise in :meth:`log` and :meth:`finish`.
        """
        with self._whole(self.path / "checkpoints" / f"epoch-{epoch:06d}") as part:
            save_file({name: tensor.detach().contiguous() for name, tensor in trained.items()}, part / "trained.safetensors")
            torch.save({name: stateful.state_dict() for name, stateful in parts.items()}, part / "state.pt")
            if export:
                export(part / "lora")
            others = ["trained.safetensors", "state.pt", *_adapters(part)]
            write_last(part / "progress.json", json.dumps({"epoch": epoch} | progress), others)

    def keep_best(self, epoch: int, metric: str, value: float, export: Callable[[Path], None]) -> None:
        """Write the run's current adapters into ``best``, unless an earlier evaluation of the run scored at least as high.

        Args:
            epoch: number of finished epochs.
            metric, value: what is compared, and its value for these weights.
            export: as for :meth:`save`.
        """
        earlier = [line[f"eval/{metric}"] for line in self.metrics() if f"eval/{metric}" in line and line["epoch"] < epoch]
        if value > max(earlier, default=-math.inf):
            with self._whole(self.path / "best") as part:
                export(part / "lora")
                write_last(part / "score.json", json.dumps({"epoch": epoch, metric: value}) + "\n", _adapters(part))

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
        return sorted(path for path in (self.path / "checkpoints").glob("epoch-??????") if path.is_dir())

    def newest_before(self, epochs: int) -> Path | None:
        """The newest checkpoint of fewer than ``epochs`` epochs, whose weights drew one of these; None if there is none."""
        return next((folder for folder in reversed(self.checkpoints()) if int(folder.name[-6:]) < epochs), None)

    def restore(
        self, trained: Mapping[str, Tensor], parts: Mapping[str, Stateful], tell: Callable[[str], None] = tell
    ) -> dict:
        """Load the newest checkpoint that is not damaged into the given tensors and parts.

        Args:
            trained, parts: as for :meth:`save`.
            tell: is given a line for each damaged checkpoint.

        Returns:
            its progress, with the number of finished epochs; ``{"epoch": 0}`` if there is no checkpoint.

        Raises:
            UserError: there are checkpoints, and all are damaged.
            RunStopped: one cannot be read at the moment, or is intact but cannot be loaded.
        """
        for folder in reversed(self.checkpoints()):
            try:
                return _load(folder, trained, parts)
            except Damaged as error:
                tell(f"{folder} is damaged ({error}); the one before it is tried")
        if self.checkpoints():
            raise UserError(f"all checkpoints in {self.path} are damaged; delete the folder, and the run begins anew")
        return {"epoch": 0}

    def log(self, line: dict) -> None:
        """Add a line to ``metrics.jsonl``."""
        with self._writing():
            append_jsonl(self.path / "metrics.jsonl", line)

    def metrics(self) -> list[dict]:
        """The logged lines; a line that was cut off in the middle does not count."""
        return read_jsonl(self.path / "metrics.jsonl")

    def last(self) -> dict | None:
        """The last logged line, None if there is none."""
        return last_of_jsonl(self.path / "metrics.jsonl")

    def finish(self, weights: Mapping[str, Tensor], summary: dict, export: Callable[[Path], None] | None = None) -> None:
        """Write the weights that the run is judged by; ``final/summary.json`` comes last and marks the run as done.

        Args:
            weights: by name.
            summary: of the run.
            export: also writes them as adapters, into the folder that it is given, ``final/lora``.
        """
        final = self.path / "final"
        with self._writing():
            final.mkdir(exist_ok=True)
            if export:
                export(final / "lora")
            with replacing(final / "trained.safetensors") as part:
                save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, part)
            if fault(final, "trained.safetensors"):  # the rows in it were measured on other weights
                for rows in final.rglob(ROWS):
                    rows.unlink()
            others = ["trained.safetensors", *_adapters(final), *([METRICS] if (final / METRICS).exists() else [])]
            write_last(final / "summary.json", json.dumps(summary, indent=2) + "\n", others)

    def summary(self) -> dict | None:
        """The summary that :meth:`finish` wrote, or None if the run is not done or the summary is damaged."""
        summary = read_json(self.path / "final" / "summary.json")
        whole = isinstance(summary, dict) and {"updates", "images_seen", "seconds"} <= summary.keys()
        return summary if whole and not fault(self.path / "final", "summary.json") else None

    def drop_after(self, epochs: int) -> None:
        """Drop log lines of later epochs, set later checkpoints aside as damaged, and delete incomplete ones."""
        for part in (self.path / "checkpoints").glob("epoch-??????.part"):
            shutil.rmtree(part, ignore_errors=True)
        with writing(self.path):
            for folder in self.checkpoints():
                if int(folder.name[-6:]) > epochs:
                    aside = folder.with_name(folder.name + ".damaged")
                    shutil.rmtree(aside, ignore_errors=True)
                    os.replace(folder, aside)
            logged = self.metrics()
            kept = [line for line in logged if line.get("epoch", 0) <= epochs]
            if logged:
                write_text(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        if missing := sorted(set(range(1, epochs + 1)) - {line.get("epoch") for line in kept}):
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


class Damaged(Exception):
    """A checkpoint is not what was written; says how."""


def _load(folder: Path, trained: Mapping[str, Tensor], parts: Mapping[str, Stateful]) -> dict:
    """Load one checkpoint for :meth:`RunFolder.restore`, and return its progress.

    Raises:
        Damaged: the checkpoint is damaged.
        RunStopped: the file system fails, or the checkpoint is intact but does not fit the run or cannot be loaded.
    """
    try:
        if not (folder / SUMS).exists():
            raise Damaged(f"{SUMS} is missing")
        if told := fault(folder, "trained.safetensors", "state.pt", "progress.json"):
            raise Damaged(told)
        _copy(folder / "trained.safetensors", trained)
        state = torch.load(folder / "state.pt", map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return json.loads((folder / "progress.json").read_text()) | {"epoch": int(folder.name[-6:])}
    except (Damaged, torch.OutOfMemoryError):
        raise
    except FileNotFoundError as error:
        raise Damaged(f"{error.filename} is missing") from error
    except OSError as error:
        raise RunStopped(
            f"{error.filename or folder} cannot be read now ({error.strerror or error}); nothing was changed, and the same "
            "command tries again"
        ) from error
    except Exception as error:  # of any kind, but no damage: the digests match
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        versions = (read_json(folder / "progress.json") or {}).get("versions", "unknown versions")
        raise RunStopped(
            f"{folder} is as it was written, by {versions}, and could not be loaded ({reason}); nothing was changed"
        ) from error


def _adapters(folder: Path) -> list[str]:
    """The exported files in a folder, as paths relative to it."""
    return [file.relative_to(folder).as_posix() for file in visible(folder.glob("lora/*.safetensors"))]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """First 12 hexadecimal digits of the sha256 of float32 tensors and their names."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()[:12]


def load_trained(file: Path, trained: Mapping[str, Tensor], cure: str = "put it back, or name other weights") -> None:
    """Load weights into tensors of the same names.

    Args:
        file: of the weights; read twice if its digest is known.
        trained: tensors to load into, by name.
        cure: what to do if the file has changed, for the message.

    Raises:
        UserError: the file is missing, damaged, or holds other weights.
    """
    if told := fault(file.parent, file.name):
        raise UserError(f"{told}; {cure}")
    if not file.exists():
        raise UserError(f"no weights at {file}; train first, or name a folder that holds trained.safetensors")
    _copy(file, trained)


def _copy(file: Path, trained: Mapping[str, Tensor]) -> None:
    """Load weights whose digest was checked; raises what :func:`load_trained` does for damaged or other weights."""
    try:
        saved = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}); delete it or name another one") from None
    if saved.keys() != trained.keys() or any(
        (saved[name].shape, saved[name].dtype) != (trained[name].shape, trained[name].dtype) for name in saved
    ):
        raise UserError(f"{file} holds other weights than this model trains; check model.parameters and model.lora_*")
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(saved[name])
