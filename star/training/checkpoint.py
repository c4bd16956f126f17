"""Checkpoints from which a training run resumes exactly, and the weights that it leaves."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from star.common.console import tell
from star.common.errors import RunStopped, UserError, first_line
from star.common.files import SUMS, fault, read_json, replacing, visible, write_last
from star.records.results import METRICS, ROWS
from star.training.folder import SAVED, RunFolder

EVALUATED_BY = "eval/by"
"""The name of an evaluation's hash in the log, beside its figures."""


class Stateful(Protocol):
    """A part of a run whose state a checkpoint holds."""

    def state_dict(self) -> dict:
        """The state."""
        ...

    def load_state_dict(self, state: dict) -> Any:
        """Take the state back."""
        ...


class TrainingFolder(RunFolder):
    """A :class:`star.training.folder.RunFolder` that a training writes its checkpoints into and goes on from."""

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
        with self._writing():
            (self.path / SAVED).touch()

    def keep_best(self, epoch: int, metric: str, value: float, by: str, export: Callable[[Path], None]) -> None:
        """Write the run's current adapters into ``best``, unless an earlier evaluation of the run scored at least as high.

        Args:
            epoch: number of finished epochs.
            metric, value: what is compared, and its value for these weights.
            by: a hash of how they were evaluated; other evaluations do not count, but for those of older versions, which did
                not log theirs.
            export: as for :meth:`save`.
        """
        alike = [line for line in self.metrics() if line["epoch"] < epoch and line.get(EVALUATED_BY, by) == by]
        earlier = [line[f"eval/{metric}"] for line in alike if f"eval/{metric}" in line]
        if value > max(earlier, default=-math.inf):
            with self._whole(self.path / "best") as part:
                export(part / "lora")
                write_last(part / "score.json", json.dumps({"epoch": epoch, metric: value}) + "\n", _adapters(part))

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
            UserError: there are checkpoints, and all are damaged; or the newest was renamed.
            RunStopped: one cannot be read at the moment, or is intact but cannot be loaded.
        """
        for folder in reversed(self.checkpoints()):
            try:
                progress = _load(folder, trained, parts)
            except Damaged as error:
                tell(f"{folder} is damaged ({error}); the one before it is tried")
                continue
            if progress["epoch"] != int(folder.name[-6:]):  # epochs would be left out, or trained twice
                raise UserError(f"{folder} was renamed: it is of epoch {progress['epoch']}; give it that name again")
            return progress
        if self.checkpoints():
            raise UserError(f"all checkpoints in {self.path} are damaged; delete the folder, and the run begins anew")
        return {"epoch": 0}

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


class Damaged(Exception):
    """A checkpoint is not what was written; says how."""


def _load(folder: Path, trained: Mapping[str, Tensor], parts: Mapping[str, Stateful]) -> dict:
    """Load one checkpoint for :meth:`TrainingFolder.restore`, and return its progress.

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
        return json.loads((folder / "progress.json").read_text())
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
        versions = (read_json(folder / "progress.json") or {}).get("versions", "unknown versions")
        raise RunStopped(
            f"{folder} is as it was written, by {versions}, and could not be loaded ({first_line(error)}); nothing was changed"
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
