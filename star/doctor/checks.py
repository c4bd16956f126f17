"""What a configuration needs of this machine: packages, weights, evaluators, memory and disk."""

import platform
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import psutil
import torch
from diffusers import StableDiffusion3Pipeline
from huggingface_hub import constants
from packaging.requirements import Requirement

from star import config as settings
from star.common.errors import RunStopped, UserError
from star.common.files import free_bytes
from star.common.launched import check_launched
from star.common.machine import installed, on_gpu, torch_for_gpu
from star.common.plugins import is_path
from star.config import Config
from star.method.allocation import try_map
from star.method.arms import map_maker, needs
from star.models import find
from star.models.memory import SIZES, Need, left_on_disk, needed
from star.models.pipeline import MODULES, load_pipeline
from star.models.sd3 import CPU_PARAMETERS, SD3
from star.models.shapes import shape_of
from star.models.sources import download, located, source
from star.records.code import commit, is_commit
from star.tasks import load_rewards, load_task, try_evaluator
from star.training.credit import check_evaluator
from star.training.machine import placed

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        what: the thing that was checked.
        found: what is there.
        todo: what to do about it; empty if a run can go on with it.
    """

    what: str
    found: str
    todo: str = ""

    @property
    def fine(self) -> bool:
        """Whether a run can go on with it."""
        return not self.todo


def check(config: Config) -> list[Finding]:
    """Check everything that a run of these settings needs, in the order in which a user would fix it.

    Raises:
        UserError: the shape of the model is not known.
    """
    judges = dict.fromkeys([config.task.name, *settings.other_tasks(config)])
    return [
        packages(),
        _code(),
        *_launch(),
        *(_own_model(config) if config.model.kind else _known_model(config)),
        *(_task(config, name) for name in judges if not is_path(name)),
        *([_rewards(config)] if config.rewards.others else []),
        _arm(config),
        *(Finding("settings", f"caution: {line}") for line in settings.cautions(config)),
    ]


def _known_model(config: Config) -> list[Finding]:
    """Check the device, the model, and the memory and disk space that a run needs."""
    model = source(config.model)
    folder, shape = located(model), shape_of(model)
    if on_gpu():  # decide on offloading as a run here would
        config = replace(config, model=placed(config, torch.device("cuda"), _processes()))
    pipeline, fault = _on_meta(config, folder) if folder else (None, "")
    need = needed(config, shape, None if pipeline is None else _beside(pipeline, config.model.dtype), _processes())
    found = [_device(need), _model(config, folder, pipeline, fault, need)]
    if folder and pipeline is None:  # how large its encoders are is not known
        return found
    return [
        *found,
        _device_memory(config, need),
        _main_memory(need),
        _disk(config, need),
    ]


def _own_model(config: Config) -> list[Finding]:
    """Check that a user-defined model class can be found; how much memory and disk it needs is not known."""
    try:
        find(config.model)
        if on_gpu():
            placed(config, torch.device("cuda"), _processes())
    except UserError as error:
        return [Finding("model", str(config.model.kind), str(error))]
    return [Finding("model", f"{config.model.kind}: of your own, so what it needs of memory and disk is not known here")]


def _arm(config: Config) -> Finding:
    """Check that the method's map can be made and that the evaluator provides what it is made from."""
    arm, train = config.method.arm, config.train
    try:
        maker = map_maker(arm)
        if maker and (needs(maker, "places") or needs(maker, "slopes")):
            check_evaluator(arm, load_task(config, config.task.name))
        if maker:  # on a small token grid, since a user-defined model's is not known here
            try_map(arm, config.sampling.trained, train.groups, train.group_size, (4, 4), config.model.resolution)
    except UserError as error:
        return Finding("method", config.method.name, str(error))
    return Finding("method", f"{config.method.name} (method.arm={arm})")


def packages() -> Finding:
    """Whether the packages that the project requires are installed in matching versions."""
    try:
        wanted = [Requirement(line) for line in requires("star-rl") or []]
    except PackageNotFoundError:
        return Finding("packages", "star-rl is not installed", "pip install -e .")
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [problem for one in wanted if (problem := _problem(one))]
    if wrong:
        return Finding("packages", "; ".join(wrong), "pip install -e .")
    return Finding("packages", f"{len(wanted)}, among them torch {torch.__version__} on Python {platform.python_version()}")


def _code() -> Finding:
    """Say whether results will name a commit that others can check out."""
    at = commit()
    told = f"commit {at}" if is_commit(at) else f"{at}, which is no commit: star publish would refuse its results"
    return Finding("code", told)


def _problem(wanted: Requirement) -> str | None:
    if (found := installed(wanted.name)) is None:
        return f"{wanted.name} is missing"
    return None if wanted.specifier.contains(found, prereleases=True) else f"{wanted} is wanted, {found} is installed"


def _launch() -> list[Finding]:
    """A finding if the environment variables of a distributed launch cannot be used; otherwise none."""
    try:
        check_launched()
    except UserError as error:
        return [Finding("environment", str(error), "unset what is not meant")]
    return []


def _device(need: Need) -> Finding:
    if on_gpu():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("device", f"{len(names)} GPUs: {', '.join(dict.fromkeys(names))}")
    if need.parameters <= CPU_PARAMETERS:
        return Finding("device", f"no GPU, {psutil.cpu_count()} cores: enough for {need.parameters / 1e6:.1f} M parameters")
    return Finding(
        "device",
        f"no GPU; training {need.parameters / 1e6:,.0f} M parameters needs one",
        f"a machine with an NVIDIA GPU and torch for it: {torch_for_gpu()}; dry_run=true runs here",
    )


def _on_meta(config: Config, folder: Path) -> tuple[StableDiffusion3Pipeline | None, str]:
    """A folder's pipeline on the meta device, without its weights; or None and what is wrong with it."""
    try:
        return load_pipeline(folder, getattr(torch, config.model.dtype), device_map="meta"), ""
    except (OSError, ValueError) as error:
        return None, f"{folder}: {error}"


def _beside(pipeline: StableDiffusion3Pipeline, dtype: str) -> float:
    """Bytes in memory of the text encoders and the autoencoder, whatever precision their files have."""
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3)
    return SIZES[dtype] * sum(part.num_parameters() for part in encoders) + 4 * pipeline.vae.num_parameters()


def _model(config: Config, folder: Path | None, pipeline: StableDiffusion3Pipeline | None, fault: str, need: Need) -> Finding:
    """Check that the model is present, complete and trainable with these settings, without loading its weights."""
    model = source(config.model)
    get = f"{download(model)} (after hf auth login, if it is gated)"
    if Path(model).is_dir():
        get = "put whole files back, or name another folder"
    if folder is None:
        return Finding("model", f"{model} is not on this machine: {_gib(need.pipeline)}", get)
    if pipeline is None:
        return Finding("model", fault, get)
    try:
        base = SD3(replace(config.model, offload=False, compile=False), torch.device("meta"), config.seed, pipeline)
        base.relevance(config.relevance, torch.ones(1, 1, dtype=torch.bool))
    except UserError as error:
        return Finding("model", str(error), "choose what this model has, or another model")
    return Finding("model", f"{model}: {_gib(_bytes(folder))} of weights")


def _bytes(folder: Path) -> int:
    """The size of a pipeline's weights, without copies in half precision."""
    files = [file for name in MODULES for kind in ("safetensors", "bin") for file in (folder / name).glob(f"*.{kind}")]
    return sum(file.stat().st_size for file in files if ".fp16" not in file.name)


def _task(config: Config, name: str) -> Finding:
    what = f"task {name}"
    try:
        task = load_task(config, name)
        training = f"{len(task.train):,} training prompts, " if name == config.task.name else ""
        prompts = f"{training}{len(task.test):,} test prompts"
        try_evaluator(config, task)
    except (UserError, RunStopped) as error:
        return Finding(what, f"evaluator {config.evaluators[name]}", str(error))
    return Finding(what, f"{task.evaluator.protocol}, {prompts}")


def _rewards(config: Config) -> Finding:
    """Whether the rewards that are mixed in can judge the task's images."""
    names = ", ".join(config.rewards.others)
    try:
        load_rewards(config, load_task(config, config.task.name))
    except (UserError, RunStopped) as error:
        return Finding("rewards", names, str(error))
    return Finding("rewards", f"{names} beside {config.task.name}")


def _device_memory(config: Config, need: Need) -> Finding:
    if not on_gpu():
        return Finding("GPU memory", f"no GPU; {_gib(need.gpu)} of one would be needed (estimate)")
    have = _gpu_bytes()
    found = f"{_gib(have)} per GPU, {_gib(need.gpu)} needed (estimate)"
    if need.gpu <= have:
        return Finding("GPU memory", found)
    return Finding("GPU memory", found, " or ".join(settings.ways_to_save_memory(config, _processes())))


def _gpu_bytes() -> int:
    """The memory of the smallest GPU."""
    return min(torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count()))


def _processes() -> int:
    """How many processes a run would have on this machine: one per GPU, and at least one."""
    return max(1, torch.cuda.device_count())


def _main_memory(need: Need) -> Finding:
    processes = _processes()
    have, wanted = psutil.virtual_memory().available, processes * need.process
    found = f"{_gib(have)} available, {_gib(wanted)} needed by {processes} process{'es' * (processes > 1)} (estimate)"
    larger = f"a machine with {_gib(wanted)} that are free" + (", or fewer processes" if processes > 1 else "")
    return Finding("main memory", found, "" if wanted <= have else larger)


def _disk(config: Config, need: Need) -> Finding:
    have, wanted = free_bytes(Path(config.run)), left_on_disk(config, need)
    found = f"{_gib(have)} free for {config.run}, {_gib(wanted)} needed (estimate); weights lie in {constants.HF_HUB_CACHE}"
    return Finding("disk", found, "" if wanted <= have else "free some, or lower train.keep")


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
