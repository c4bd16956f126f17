"""What the trainings of the mini world's models share: a work folder, a checkpoint, steps with an ETA, rates, optimizers."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from star.common.errors import UserError
from star.common.files import alone_in, append_jsonl, check_room, replacing
from star.models.sources import reason
from star.training.folder import BESIDE

METRICS = "metrics.jsonl"


@contextmanager
def working_in(folder: Path, own: Sequence[str]) -> Iterator[None]:
    """Inside, a training has its work folder to itself.

    Args:
        folder: the folder; created if need be.
        own: names of what such a training puts there besides its log. The log or the first of them shows that one has begun.

    Raises:
        UserError: the folder cannot be written to, holds something else, or another training works in it.
    """
    check_room(folder, "the work")
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    begun = {METRICS, *own} if {METRICS, own[0]} & there else set()
    if strange := sorted(name for name in there - begun if not BESIDE.fullmatch(name)):
        raise UserError(f"{folder} holds something else than such a training ({strange[0]}); name an empty or new folder")
    with alone_in(folder):
        yield


class Checkpoint:
    """Parts with ``state_dict`` and the step reached, kept in one file, and figures of steps that are not logged yet."""

    def __init__(self, file: Path, parts: dict, start: str = "") -> None:
        """
        Args:
            file: where they are kept.
            parts: by name; if the file is there, they are made as it has them.
            start: what the training starts from, so that it does not go on from a file of another.

        Raises:
            UserError: the file is damaged, or of a training with another start.
        """
        self.file, self.parts, self.start = file, parts, start
        self.step = 0
        self.pending: list[dict] = []
        if file.exists():
            with whole(file):
                saved = torch.load(file)
                self.step, begun = saved["step"], saved.get("start", start)  # older files do not say
                for name, part in parts.items():
                    part.load_state_dict(saved[name])
            if begun != start:
                raise UserError(f"{file} started from other weights; delete it or name another folder")

    def save(self, step: int) -> None:
        """Write all parts as they are after ``step`` steps."""
        save({"step": step, "start": self.start} | {name: part.state_dict() for name, part in self.parts.items()}, self.file)

    def log(self, step: int, **values: Tensor) -> None:
        """Keep the figures of a step until :meth:`take_means`."""
        self.pending.append({"step": step} | {name: value.item() for name, value in values.items()})

    def take_means(self) -> dict:
        """The means of what was logged since the last call."""
        rows, self.pending = self.pending, []
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@contextmanager
def whole(file: Path) -> Iterator[None]:
    """Inside, a file of an earlier training is read; it is refused if it is damaged or does not fit this training."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # reading a damaged file may raise any kind
        raise UserError(
            f"{file} cannot be continued from ({reason(error)}); delete it, and what it holds is made again"
        ) from None


def steps(stage: str, state: Checkpoint, total: int, folder: Path, save_every: int) -> Iterator[int]:
    """The steps that are left; every 50th is printed with an ETA and logged, every ``save_every``-th is saved."""
    started, first = time.monotonic(), state.step
    for step in range(first, total):
        yield step
        done = step + 1
        if done % 50 == 0 or done == total:
            seconds = (time.monotonic() - started) / (done - first)
            means = state.take_means() | {"stage": stage, "step": done, "seconds_per_step": seconds}
            append_jsonl(folder / METRICS, means)
            print(
                f"{stage} {done}/{total} loss {means['loss']:.4f}  {seconds:.2f} s/step  "
                f"ETA {seconds * (total - done) / 60:.0f} min",
                flush=True,
            )
        if done % save_every == 0 or done == total:
            state.save(done)


def set_lr(optimizer: torch.optim.Optimizer, peak: float, step: int, total: int, warmup: int) -> None:
    """Linear warm-up, a plateau, and over the last third a linear decay to a fiftieth."""
    decay = min(1.0, max(0.02, 3 * (1 - step / total)))
    for group in optimizer.param_groups:
        group["lr"] = peak * min((step + 1) / warmup, decay)


def pixels(images: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) images -> float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def optimizers(
    parameters: Mapping[str, nn.Parameter], lr: float, layers: str = r"\.(attn2?|ff|ff_context)\."
) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    """Muon for matrices whose names match ``layers`` (attention, feed-forward), AdamW for the rest; one rate fits both."""
    inner = {name for name, p in parameters.items() if p.ndim == 2 and re.search(layers, name)}
    muon = torch.optim.Muon(
        [parameters[name] for name in sorted(inner)],
        lr=lr,
        weight_decay=0.01,
        adjust_lr_fn="match_rms_adamw",
    )
    rest = [parameters[name] for name in parameters if name not in inner]
    return muon, torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)


def save(state: dict, file: Path) -> None:
    """Write a state whole or not at all."""
    with replacing(file) as part:
        torch.save(state, part)


def loads_in_single(file: Path) -> None:
    """Have transformers load a model in single precision, by its ``config.json``, and not in the precision of its files."""
    file.write_text(file.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
