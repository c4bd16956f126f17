"""Whether the maps lie on the objects that the prompt names, per block and step, on pictures of held-out prompts.

The figure is a concentration: the share of relevance inside the masks of the detected objects, over the masks' share of
the area. 1 means that the map says nothing about where the objects are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from evaluators.geneval.detector import Detector
from evaluators.geneval.evaluator import GenEval
from evaluators.geneval.rules import filter_detections
from star.bench.table import Shown
from star.common.errors import UserError
from star.common.launched import check_alone
from star.common.noise import normal
from star.common.numbers import number, with_error
from star.common.progress import track
from star.config import Config, load
from star.models.interface import BaseModel
from star.tasks import Prompt, load_task
from star.training.machine import loaded
from star.training.rollout import capture_for, denoise, keyed_noise

SHOWN = 8
BELOW = "1: the map does not say where the objects are; more: it lies on them"


@dataclass
class Localisation:
    """Concentrations of the pictures that show all their objects.

    Attributes:
        concentration: (pictures, blocks, steps).
        images: uint8 (pictures, H, W, 3).
        maps: (pictures, blocks, steps, h, w), mean 1 over (h, w).
        prompts: of the pictures.
        blocks: those that the settings choose.
    """

    concentration: np.ndarray
    images: np.ndarray
    maps: np.ndarray
    prompts: list[str]
    blocks: list[int]

    def mean(self) -> np.ndarray:
        """The mean over pictures, (blocks, steps)."""
        return self.concentration.mean(0)

    def stderr(self) -> np.ndarray:
        """The standard error over pictures, (blocks, steps)."""
        return self.concentration.std(0, ddof=1) / len(self.concentration) ** 0.5


def measure(overrides: Sequence[str], drawn: bool = False) -> Localisation:
    """One rollout of the base for every GenEval test prompt, with the relevance of all blocks at all steps.

    Only pictures in which all objects were found count; the others lack masks to compare with. Sampling is that of the
    rollouts, with every step stochastic but the last.

    Args:
        overrides: settings.
        drawn: whether the chosen blocks' maps will be drawn, so that the model must have these blocks.

    Raises:
        UserError: the task has no object masks, no picture was right, or a block to draw does not exist; or there are several
            processes.
    """
    check_alone("star bench localisation")
    config = load(overrides, own_folder=False)
    task = load_task(config, config.task.name)
    if not isinstance(task.evaluator, GenEval):
        raise UserError("localisation is measured against the masks of detected objects; use task=geneval")
    base = loaded(config)
    if drawn:
        base.relevance(config.relevance, torch.ones(1, 1, dtype=torch.bool))
    size = config.train.micro_batch
    prompts = list(task.test)
    parts = [
        _measured(base, task.evaluator.detector, config, prompts[start : start + size])
        for start in track(range(0, len(prompts), size), "maps of all blocks")
    ]
    concentration, images, maps = (np.concatenate([part[i] for part in parts]) for i in range(3))
    if not len(images):
        raise UserError("no picture shows the objects of its prompt, so there is nothing to compare the maps with")
    return Localisation(concentration, images, maps, [text for part in parts for text in part[3]], config.relevance.blocks)


def shown(result: Localisation) -> Shown:
    """The concentrations as a table."""
    mean, stderr = result.mean(), result.stderr()
    rows = [
        (
            str(block),
            *(with_error(value, error, 2, "±") for value, error in zip(*found, strict=True)),
            number(found[0].mean(), 2),
        )
        for block, found in enumerate(zip(mean, stderr, strict=True))
    ]
    title = f"concentration on the objects ± standard error, {len(result.images)} pictures"
    return Shown(title, ("block", *(f"step {step}" for step in range(mean.shape[1])), "all steps"), rows, BELOW)


@torch.no_grad()
def _measured(base: BaseModel, detector: Detector, config: Config, prompts: Sequence[Prompt]) -> tuple:
    texts, sampling = [prompt.text for prompt in prompts], config.sampling
    capture = capture_for(base, prompts, replace(config.relevance, blocks=list(range(base.blocks))))
    x = torch.stack([normal(base.latent_shape, config.seed, "maps", text) for text in texts]).to(base.device)
    noise = keyed_noise(base, [(config.seed, "maps steps", text) for text in texts])
    # The last step adds no noise, because the pictures are judged.
    kinds = [sampling.kind] * (sampling.steps - 1) + ["ode"]
    steps = []
    for step in denoise(base, x, texts, sampling.guidance, kinds, sampling.noise_level, noise, capture, per_block=True):
        assert step.relevance is not None
        steps.append(step.relevance)
        x = step.following
    images = base.decode(x).cpu().numpy()
    maps = torch.stack(steps, dim=2).transpose(0, 1).cpu()
    maps = maps / maps.mean((-2, -1), keepdim=True)

    kept, areas = [], []
    for row, (prompt, found) in enumerate(zip(prompts, detector(list(images)), strict=True)):
        objects = filter_detections(found, prompt.target["tag"])
        masks = [d.mask for c in prompt.target["include"] for d in objects.get(c["class"], [])[: c["count"]]]
        drawn = [mask for mask in masks if mask is not None]
        if len(drawn) == sum(c["count"] for c in prompt.target["include"]):
            kept.append(row)
            areas.append(np.any(drawn, axis=0))
    if not kept:
        return np.empty((0, *maps.shape[1:3])), images[:0], maps[:0].numpy(), []
    chosen = maps[kept]
    inside = torch.from_numpy(np.stack(areas)).float()
    height, width = chosen.shape[-2:]
    inside = adaptive_avg_pool2d(inside, (height, width))[:, None, None]
    concentration = (chosen * inside).mean((-2, -1)) / inside.mean((-2, -1))
    return concentration.numpy(), images[kept], chosen.numpy(), [texts[row] for row in kept]


def picture(result: Localisation, file: Path) -> None:
    """Save the first pictures, each with the mean map of the chosen blocks at every step, as a PNG."""
    steps = result.maps.shape[2]
    shown = min(SHOWN, len(result.images))
    figure, axes = plt.subplots(shown, steps + 1, figsize=(1.1 * (steps + 1), 1.25 * shown), squeeze=False)
    for row in range(shown):
        axes[row, 0].imshow(result.images[row])
        axes[row, 0].set_title(result.prompts[row].removeprefix("a photo of "), fontsize=6, loc="left", parse_math=False)
        for step in range(steps):
            axes[row, step + 1].imshow(result.maps[row, result.blocks, step].mean(0), cmap="magma", vmin=0)
            if row == 0:
                axes[0, step + 1].set_title(f"step {step}", fontsize=6)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
