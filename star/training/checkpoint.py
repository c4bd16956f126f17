"""Checkpoints of a training run, from which it goes on exactly, and the run's folder."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from star.common.errors import UserError
from star.common.files import append_jsonl, read_jsonl, replacing, write_text


class Stateful(Protocol):
    """A part of a run whose state a checkpoint holds."""

    def state_dict(self) -> dict:
        """The state."""
        ...

    def load_state_dict(self, state: dict) -> Any:
        """Take the state back."""
        ...


class RunFolder:
    """The files of one run.

    ``config.yaml`` its settings; ``metrics.jsonl`` a line per epoch; ``checkpoints/epoch-000012/`` with
    ``trained.safetensors``, ``state.pt`` (optimizer, average) and ``progress.json``; ``final/`` the weights of the finished
    run. All random numbers are keyed, so no generator has to be saved.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def started(self) -> bool:
        """Whether a run got anywhere here."""
        return bool(self.checkpoints() or self.summary())

    def open(self, config: str, identity: str) -> None:
        """Make the folder, or check that the run in it, if it got anywhere, is the same.

        Args:
            config: the settings, as YAML.
            identity: a hash of those that training depends on; it becomes the first line of ``config.yaml``.

        Raises:
            UserError: the folder holds another run.
        """
        file = self.path / "config.yaml"
        text = f"# training settings {identity}\n{config}"
        if self.started and file.read_text().splitlines()[0] != text.splitlines()[0]:
            raise UserError(
                f"{self.path} holds a run with other settings (see its config.yaml); delete it or name another "
                "folder with run=..."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(file, text)

    def save(self, epoch: int, trained: Mapping[str, Tensor], parts: Mapping[str, Stateful], progress: dict) -> None:
        """Write a checkpoint after so many epochs; it appears under its name when it is complete."""
        folder = self.path / "checkpoints" / f"epoch-{epoch:06d}"
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file({name: tensor.detach().contiguous() for name, tensor in trained.items()}, part / "trained.safetensors")
        torch.save({name: stateful.state_dict() for name, stateful in parts.items()}, part / "state.pt")
        (part / "progress.json").write_text(json.dumps({"epoch": epoch} | progress))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)

    def prune(self, keep: int) -> None:
        """Delete all checkpoints but the newest so many."""
        for folder in self.checkpoints()[:-keep]:
            shutil.rmtree(folder)

    def checkpoints(self) -> list[Path]:
        """The folders of complete checkpoints, oldest first."""
        return sorted(path for path in (self.path / "checkpoints").glob("epoch-??????") if path.is_dir())

    def restore(self, trained: Mapping[str, Tensor], parts: Mapping[str, Stateful]) -> dict:
        """Load the newest checkpoint into the given tensors and parts.

        Returns:
            its progress, with the number of finished epochs; ``{"epoch": 0}`` if there is no checkpoint.
        """
        folders = self.checkpoints()
        if not folders:
            return {"epoch": 0}
        load_trained(folders[-1] / "trained.safetensors", trained)
        state = torch.load(folders[-1] / "state.pt", map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return json.loads((folders[-1] / "progress.json").read_text())

    def log(self, line: dict) -> None:
        """Add a line to ``metrics.jsonl``."""
        append_jsonl(self.path / "metrics.jsonl", line)

    def metrics(self) -> list[dict]:
        """The logged lines; a last line that was cut off in the middle does not count."""
        return read_jsonl(self.path / "metrics.jsonl")

    def finish(self, weights: Mapping[str, Tensor], summary: dict) -> None:
        """Write the weights that the run is judged by. A run with ``final/summary.json`` is done."""
        (self.path / "final").mkdir(exist_ok=True)
        with replacing(self.path / "final" / "trained.safetensors") as part:
            save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, part)
        write_text(self.path / "final" / "summary.json", json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict | None:
        """What :meth:`finish` was given, or None if the run is not done."""
        file = self.path / "final" / "summary.json"
        return json.loads(file.read_text()) if file.exists() else None

    def truncate(self, epochs: int) -> None:
        """Drop what was logged of later epochs."""
        write_lines = [json.dumps(line) for line in self.metrics() if line["epoch"] <= epochs]
        write_text(self.path / "metrics.jsonl", "".join(line + "\n" for line in write_lines))


def load_trained(file: Path, trained: Mapping[str, Tensor]) -> None:
    """Load weights into tensors of the same names.

    Raises:
        UserError: the file is missing or holds other weights.
    """
    if not file.exists():
        raise UserError(f"no weights at {file}; train first, or name a folder that holds trained.safetensors")
    saved = load_file(file)
    if saved.keys() != trained.keys() or any(saved[name].shape != trained[name].shape for name in saved):
        raise UserError(f"{file} holds other weights than this model trains; check model.parameters and model.lora_*")
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(saved[name])
