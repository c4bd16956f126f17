"""Signal and noise in policy gradients, measured by cosines between the gradients of different epochs.

An epoch's gradient is a signal, a direction in which the expected reward grows, plus the noise of its rollouts, which is
independent between epochs. So two epochs' gradients agree as far as they hold signal, and how an arm's maps change that can be
measured at fixed weights, without training. Every figure is made from the inner products of all gradients. They are summed
parameter by parameter, so that a model's gradients are never in memory all at once.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from star.common.statistics import jackknife
from star.method.arms import REFERENCE

METRICS = ("self_cosine", "cosine", "ratio", "direction", "effective_images")
"""The metrics that :func:`figures` returns, in its order."""

ADAM = "all, Adam's metric"
EPOCHS_FOR_ADAM = 4
"""With fewer epochs the mean square is so noisy, and so dependent on the gradients that it scales, that ratios come out far
too low. With twelve, self-cosines in Adam's metric are still about a tenth too low, but their ratios are right."""

BY_BLOCK = ("flow_grpo", "star")
"""The arms whose gradients are also reported block by block."""

PAIRS = (
    ("star", "star_shifted"),
    ("star", "star_shuffled"),
    ("star", "spatial"),
    ("oracle", "star"),
    ("oracle_twins", "star"),
    ("star", "flow_grpo"),
    ("background", "flow_grpo"),
)
"""The arms whose figures are subtracted where both were measured, and so are those of an arm as it is from those of the same
with a setting of its own, ``star@mix=1``; the jackknife leaves out the same epoch of both."""


class Figure(NamedTuple):
    """One number.

    Attributes:
        arm: its name, or ``A - B``.
        part: of the gradient: ``all``; ``A`` and ``B``, the factors of LoRA; ``step 0`` and so on; ``block 0`` and so on.
        metric: one of :data:`METRICS`, with the prefix ``adam_`` in Adam's metric.
        value: of the metric.
        stderr: by the jackknife over epochs; NaN where there are too few.
    """

    arm: str
    part: str
    metric: str
    value: float
    stderr: float


def parts_of(name: str) -> list[str]:
    """The parts of a gradient that a parameter of this name belongs to: ``all``, its LoRA factor and its block."""
    factor, block = re.search(r"\blora_([AB])\b", name), re.search(r"\btransformer_blocks\.(\d+)\.", name)
    return ["all", *([factor[1]] if factor else []), *([f"block {block[1]}"] if block else [])]


def inner_products(files: Sequence[Sequence[Path]], reference: int) -> dict[str, np.ndarray]:
    """The inner products of all pairs of gradients, float64 (arms, epochs, arms, epochs), for each part of them.

    In Adam's metric every element is divided by its root mean square over the reference's epochs, which stands for the root of
    Adam's second moment; it is left out if there are fewer epochs than :data:`EPOCHS_FOR_ADAM`.

    Args:
        files: for each arm the files of its epochs, in the same order: name of a parameter -> gradient (steps, ...), with the
            ``steps`` in the metadata, separated by commas. A gradient that is missing is 0.
        reference: index of the arm that defines Adam's metric.

    Returns:
        Part, as in :class:`Figure` or :data:`ADAM`, -> inner products. Parts whose gradients are all 0 are left out.
    """
    arms, epochs = len(files), len(files[0])
    own = slice(reference * epochs, (reference + 1) * epochs)
    sums: dict[str, Tensor] = {}
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for row in files for file in row]
        held = [set(file.keys()) for file in opened]
        steps = sorted({step for file in opened for step in _steps(file)})
        for name in sorted(set.union(*held)):
            found = [_spread(file, name, steps) if name in names else None for file, names in zip(opened, held, strict=True)]
            nothing = torch.zeros_like(next(rows for rows in found if rows is not None))
            by_step = torch.stack([nothing if rows is None else rows for rows in found])
            whole = by_step.sum(1)
            size = whole[own].square().mean(0).sqrt()
            vectors = {part: whole for part in parts_of(name)}
            vectors |= {f"step {step}": by_step[:, place] for place, step in enumerate(steps)}
            if epochs >= EPOCHS_FOR_ADAM:
                vectors[ADAM] = torch.where(size > 0, whole / size, 0)
            for part, rows in vectors.items():
                sums[part] = sums.get(part, 0) + rows @ rows.T
    return {part: total.view(arms, epochs, arms, epochs).numpy() for part, total in sums.items() if total.any()}


def _steps(file: Any) -> list[int]:
    return [int(step) for step in file.metadata()["steps"].split(",")]


def _spread(file: Any, name: str, steps: Sequence[int]) -> Tensor:
    """A parameter's gradient at each of the steps, float64 (steps, elements); 0 at steps that only other epochs trained."""
    found = file.get_tensor(name).flatten(1).double()
    whole = torch.zeros(len(steps), found.shape[1], dtype=torch.float64)
    whole[[steps.index(step) for step in _steps(file)]] = found
    return whole


def cosines(products: np.ndarray) -> np.ndarray:
    """Inner products (arms, epochs, arms, epochs) -> cosines; NaN for a gradient that is 0."""
    arms, epochs = products.shape[:2]
    lengths = np.sqrt(products.reshape(arms * epochs, -1).diagonal()).reshape(arms, epochs)
    with np.errstate(invalid="ignore"):
        shared: np.ndarray = products / lengths[:, :, None, None] / lengths
    return shared


def pairs_used(shared: np.ndarray, arms: Sequence[str]) -> Iterator[tuple[str, str, int, int, float]]:
    """The cosines that :func:`figures` uses: of every arm with itself, each pair of epochs once, and with the reference.

    Args:
        shared: cosines (arms, epochs, arms, epochs).
        arms: their names.

    Returns:
        (arm, other arm, epoch, other arm's epoch, cosine).
    """
    reference, epochs = arms.index(REFERENCE), range(shared.shape[1])
    for number, arm in enumerate(arms):
        for other in dict.fromkeys((number, reference)):
            for one, two in product(epochs, epochs):
                if one < two or (one > two and other != number):
                    yield arm, arms[other], one, two, float(shared[number, one, other, two])


def figures(shared: np.ndarray, reference: int) -> np.ndarray:
    """The metrics of every arm, from the cosines of different epochs' gradients: (arms, metrics), as in :data:`METRICS`.

    With g(a, i) the gradient of arm a in epoch i, and f the reference arm (Flow-GRPO):

    * ``self_cosine(a)``: mean of cos(g(a, i), g(a, j)) over pairs of different epochs. If a gradient is a signal s plus
      independent noise of mean square n, it is about ``s^2 / (s^2 + n)``: 1 without noise, 0 without signal.
    * ``cosine(a)``: mean of cos(g(a, i), g(f, j)) over different epochs, whose rollouts share no noise, so that only the
      signals agree: how steeply the reward that Flow-GRPO climbs rises along the arm's gradient.
    * ``ratio(a)`` = cosine(a) / self_cosine(f): the reward gained by a small step of fixed length along the arm's gradient,
      relative to a step along Flow-GRPO's.
    * ``direction(a)`` = cosine(a) / sqrt(self_cosine(a) self_cosine(f)): the cosine of the two signals without their noise.
      Below 1 the arm also pulls elsewhere.
    * ``effective_images(a)`` = c / (1 - c) of the arm over that of Flow-GRPO, with c the self_cosine: noise falls as images
      are added, so it says how many times as many images Flow-GRPO would need to match the arm.

    Args:
        shared: cosines (arms, epochs, arms, epochs); pairs whose cosine is NaN are ignored.
        reference: index of f.
    """
    epochs = shared.shape[1]
    others = ~np.eye(epochs, dtype=bool)
    own = np.array([_mean(shared[arm, :, arm][others]) for arm in range(len(shared))])
    cross = np.array([_mean(shared[arm, :, reference][others]) for arm in range(len(shared))])
    base = own[reference]
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = [own, cross, cross / base, cross / np.sqrt(own * base), own / (1 - own) / (base / (1 - base))]
    return np.stack(columns, axis=1)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def told(products: Mapping[str, np.ndarray], arms: Sequence[str]) -> list[Figure]:
    """All figures of all parts: of every arm, then of the differences of :data:`PAIRS`, with errors of the differences.

    Args:
        products: the result of :func:`inner_products`, with :data:`star.method.arms.REFERENCE` as the reference.
        arms: their names, in the same order.
    """
    return [figure for part, found in products.items() for figure in _of_part(part, cosines(found), arms)]


def _of_part(part: str, shared: np.ndarray, arms: Sequence[str]) -> Iterator[Figure]:
    own_settings = [(arm, arm.partition("@")[0]) for arm in arms if "@" in arm]
    pairs = [(arms.index(a), arms.index(b)) for a, b in (*PAIRS, *own_settings) if a in arms and b in arms]

    def statistic(kept: np.ndarray) -> np.ndarray:
        own = figures(shared[:, kept][..., kept], arms.index(REFERENCE))
        return np.concatenate([own, *(own[[a]] - own[[b]] for a, b in pairs)])

    values, errors = jackknife(statistic, shared.shape[1])
    labels = [(arm,) for arm in arms] + [(arms[a], arms[b]) for a, b in pairs]
    name, prefix = ("all", "adam_") if part == ADAM else (part, "")
    for label, row, error in zip(labels, values, errors, strict=True):
        if part.startswith("block") and not set(label) <= set(BY_BLOCK):
            continue
        for metric, value, stderr in zip(METRICS, row.tolist(), error.tolist(), strict=True):
            if np.isfinite(value):
                yield Figure(" - ".join(label), name, prefix + metric, value, stderr)
