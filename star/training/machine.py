"""Settings that are left to the machine: decided once per run, announced, and written into its ``config.yaml``."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from star import models
from star.common.errors import UserError
from star.common.files import write_text, writing
from star.common.machine import on_gpu
from star.common.processes import gather, joined
from star.config import Config, read_config
from star.config.schema import ModelConfig
from star.method.arms import map_maker, needs
from star.models import kernels
from star.models.interface import BaseModel
from star.models.memory import must_offload
from star.models.shapes import shape_of
from star.models.sources import source
from star.training.folder import RunFolder


def settled(config: Config, folder: RunFolder, accelerator: Accelerator) -> Config:
    """The settings, with what they leave to the machine decided.

    Args:
        config: the settings of a run.
        folder: the run's, which records the kernels that it was begun with.
        accelerator: the device and the processes, all of which decide alike.

    Raises:
        UserError: the run was begun with other kernels than the settings ask for.
    """
    model, device = config.model, accelerator.device
    if device.type == "cpu":
        model = replace(model, kernels=gather(accelerator, [_kernels(config, folder)])[0])
    return replace(config, model=replace(model, offload=placed(config, device, accelerator.num_processes).offload))


def placed(config: Config, device: torch.device, processes: int) -> ModelConfig:
    """The model's settings, with ``offload`` decided as for a training: where text encoders and autoencoder are kept.

    Args:
        config: the settings.
        device: the one that a process computes on.
        processes: number of processes of a run.

    Raises:
        UserError: it is not known how much memory the model takes.
    """
    model = config.model
    if model.offload is not None:
        return model
    if model.kind and device.type == "cuda":
        raise UserError(f"model.offload=null: how much memory a {model.kind} takes is not known here; say true or false")
    if device.type != "cuda":
        return replace(model, offload=False)
    total = torch.cuda.get_device_properties(device).total_memory
    return replace(model, offload=must_offload(config, shape_of(source(model)), total, processes))


def loaded(config: Config) -> BaseModel:
    """The base model on this process's device, where a training would place its parts."""
    accelerator = joined()
    return models.load(placed(config, accelerator.device, accelerator.num_processes), accelerator.device, config.seed)


def as_begun(config: Config, folder: Path) -> Config:
    """The settings with the kernels that a measurement was begun with, so that one that was cut off goes on with them.

    Args:
        config: the settings.
        folder: where partial results lie, and where the kernels are recorded.

    Raises:
        UserError: the settings ask for other kernels.
    """
    accelerator, file = joined(), folder / "kernels.txt"
    if accelerator.device.type != "cpu":
        return config
    noted = file.read_text().strip() if file.exists() else ""
    begun = noted if noted in kernels.KERNELS else "auto"
    chosen = gather(accelerator, [_alike(config.model.kernels, begun, folder, "delete the folder")])[0]
    if chosen != begun and accelerator.is_main_process:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(file, chosen + "\n")
    return replace(config, model=replace(config.model, kernels=chosen))


def decisions(asked: Config, config: Config) -> list[str]:
    """A line for each thing that was left to the machine, with the setting that pins it.

    Args:
        asked: the settings.
        config: the same after :func:`settled`.
    """
    lines, model = [], config.model
    if asked.model.kernels != model.kernels:
        lines.append(f"matrix products with frozen weights by {model.kernels} (model.kernels={model.kernels})")
    if asked.model.offload is None and on_gpu():
        where = "rest in main memory" if model.offload else "stay on the GPU"
        lines.append(f"text encoders and autoencoder {where} (model.offload={str(model.offload).lower()})")
    return lines


def compute_deterministically() -> None:
    """Let the process use only kernels that give the same digits every time; where there is none, torch raises an error."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def check_deterministic(config: Config, device: torch.device) -> None:
    """Refuse what has no deterministic version on a GPU, if ``train.deterministic`` is set.

    Raises:
        UserError: the arm or the attention kernel has none.
    """
    if not config.train.deterministic or device.type != "cuda":
        return
    if config.model.attention == "cudnn":  # called by itself, it does not look at torch's switch
        raise UserError(
            "train.deterministic=true: model.attention=cudnn adds up gradients in any order; use flash or efficient, or leave "
            "train.deterministic out"
        )
    maker = map_maker(config.method.arm)
    if maker and needs(maker, "slopes"):
        raise UserError(
            f"train.deterministic=true: method.arm={config.method.arm} needs gradients through bicubic resizing, which GPUs "
            "add up in any order; leave train.deterministic out, or use another method"
        )


def _kernels(config: Config, folder: RunFolder) -> str:
    begun = read_config(folder.path / "config.yaml").model.kernels if folder.started else "auto"
    return _alike(config.model.kernels, begun, folder.path, "name another folder with run=...")


def _alike(wanted: str, begun: str, folder: Path, anew: str) -> str:
    if begun != "auto" and wanted not in ("auto", begun):
        raise UserError(
            f"{folder} was begun with model.kernels={begun}, and would end with other digits with {wanted}; leave it out "
            f"or {anew}"
        )
    if wanted != "auto":
        return wanted
    return kernels.faster() if begun == "auto" else begun
