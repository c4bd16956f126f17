import json
import re
import shutil
from contextlib import nullcontext
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import star  # noqa: F401 (a fixture)
from tiny import FAST

from star import cli, models
from star.bench.speed import fill_adapters
from star.common.errors import RunStopped, UserError
from star.common.shipped import MINI_BASE
from star.common.words import take_flag
from star.config import load
from star.doctor import checks, dry_run
from star.models import memory, sources
from star.models import sd3 as pipeline
from star.models.memory import BLOCK_KEEPS, DUAL_BLOCK_KEEPS, needed, trajectory_bytes
from star.models.pipeline import STATED
from star.models.sd3 import SD3
from star.models.shapes import AUTOENCODER, SD35_LARGE, SD35_MEDIUM, TRANSFORMERS, random_pipeline, shape_of

GIB = 2**30
NARROW = {
    **SD35_MEDIUM,
    "num_layers": 3,
    "num_attention_heads": 2,
    "caption_projection_dim": 128,
    "pos_embed_max_size": 64,
    "dual_attention_layers": (0,),
}
SMALL_AUTOENCODER = {**AUTOENCODER, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 8, "layers_per_block": 1}


@pytest.fixture(autouse=True, scope="module")
def counted_once():
    """Parameters are counted once for a shape and its adapters, which takes half a second."""
    count, found = memory._parameters, {}

    def counted(config, shape):
        model = config.model
        key = str(sorted(shape.items())), model.parameters, model.lora_rank, str(model.lora_targets)
        if key not in found:
            found[key] = count(config, shape)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_parameters", counted)
        yield


def by_name(findings) -> dict[str, checks.Finding]:
    return {finding.what: finding for finding in findings}


def test_the_published_size_is_known_without_weights():
    """The figures that others report of SD3.5 Medium and of Flow-GRPO's LoRA: 2.24 B and 18.8 M parameters."""
    need = needed(load(["scale=paper"]), SD35_MEDIUM)
    trained = 18.776e6
    assert need.parameters == pytest.approx(2.243e9 + trained, rel=1e-3)
    assert need.checkpoint == pytest.approx(20 * trained, rel=1e-3)


@pytest.mark.parametrize(("task", "share"), [("geneval", 0.9), ("ocr", 0.9), ("pickscore", 0.97)])
@pytest.mark.parametrize(("preset", "gpus", "memory"), [("gpu1", 1, 24), ("gpu4", 4, 24), ("gpu8", 8, 80)])
def test_presets_fit_the_gpus_they_name(preset, gpus, memory, task, share):
    need = needed(load(["scale=paper", f"preset={preset}", f"task={task}"]), SD35_MEDIUM, processes=gpus)
    assert need.gpu < share * memory * GIB


def test_the_large_model_fits_80_gb_with_any_preset():
    for preset in ("gpu1", "gpu4", "gpu8"):
        need = needed(load(["scale=paper", f"preset={preset}", "model=sd35_large"]), SD35_LARGE)
        assert need.gpu < 0.9 * 80 * GIB


def test_offloading_and_checkpointing_save_memory():
    def gpu(*words: str) -> float:
        return needed(load(["scale=paper", "preset=gpu1", *words]), SD35_MEDIUM).gpu

    assert gpu("model.offload=false") > gpu() < gpu("model.gradient_checkpointing=false")
    assert gpu("sampling.guidance=1", "train.micro_batch=16") <= gpu("train.micro_batch=8")


@pytest.mark.parametrize(("dtype", "half"), [("float32", 0), ("bfloat16", 2)])
def test_full_training_keeps_the_initial_weights_and_copies_in_half_precision(dtype, half):
    one, other = (load(["scale=paper", f"model.dtype={dtype}", f"model.parameters={which}"]) for which in ("lora", "full"))
    lora, full = needed(one, SD35_MEDIUM), needed(other, SD35_MEDIUM)
    frozen, adapters = lora.parameters * (half or 4), 24 * (lora.parameters - full.parameters)
    assert full.gpu - lora.gpu == pytest.approx((24 + 4 + half) * full.parameters - frozen - adapters)


def test_the_trajectories_of_an_epoch_count():
    """Of 128 images, 10 latents and, where updates need them, 9 means of 16 x 64 x 64 float32 each."""
    one, other = (load(["scale=paper", "preset=gpu1", f"train.groups={groups}"]) for groups in (8, 16))
    assert trajectory_bytes(one, SD35_MEDIUM, 1) == 128 * 10 * 16 * 64 * 64 * 4
    for word in ("variant=guard", "method.clip=kl"):
        with_means = load(["scale=paper", "preset=gpu1", word])
        assert trajectory_bytes(with_means, SD35_MEDIUM, 1) == 128 * 19 * 16 * 64 * 64 * 4
    assert needed(other, SD35_MEDIUM).gpu - needed(one, SD35_MEDIUM).gpu == trajectory_bytes(one, SD35_MEDIUM, 1)
    assert needed(other, SD35_MEDIUM, processes=2).gpu == needed(one, SD35_MEDIUM).gpu


def test_gpus_that_share_the_weights_need_less_memory():
    words = ["scale=paper", "preset=gpu4", "model=sd35_large"]
    whole, shared = (load([*words, f"model.shard={shard}"]) for shard in (False, True))
    assert needed(shared, SD35_LARGE, processes=1) == needed(whole, SD35_LARGE)
    saved = needed(whole, SD35_LARGE, processes=4).gpu - needed(shared, SD35_LARGE, processes=4).gpu
    assert saved == pytest.approx((3 / 4 - 2 / 38) * 2 * needed(whole, SD35_LARGE).parameters)
    assert needed(shared, SD35_LARGE, processes=4).process == needed(whole, SD35_LARGE).process


class FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(context, split):
        context.save_for_backward(split, torch.ones_like(split[..., :1], dtype=torch.float32))
        return split.clone()

    @staticmethod
    def backward(context, grad):
        return grad


@pytest.mark.parametrize(("dual", "keeps"), [((), BLOCK_KEEPS), ((0, 1, 2), DUAL_BLOCK_KEEPS)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_block_keeps_is_what_the_estimate_says(dual, keeps, checkpointing, monkeypatch):
    """With a norm that keeps what a GPU's does: its input, and a number for each head of a token."""
    monkeypatch.setattr("star.method.attention.normalised", lambda split, norm: FusedNorm.apply(split))
    config = load(["scale=paper", "model.dtype=bfloat16", f"model.gradient_checkpointing={checkpointing}"])

    def kept(layers: int) -> int:
        shape = {**NARROW, "num_layers": layers, "dual_attention_layers": dual[:layers]}
        base = SD3(config.model, torch.device("cpu"), 0, random_pipeline(shape, torch.bfloat16, SMALL_AUTOENCODER))
        own = {tensor.untyped_storage().data_ptr() for tensor in base.transformer.state_dict().values()}
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            velocity = base.velocity(torch.zeros(1, *base.latent_shape), torch.tensor(0.5), ["a ring"], 1.0)
        assert velocity.requires_grad
        return sum(sizes.values())

    hidden = (32 * 32 + 77 + 128) * 128 * 2
    assert (kept(3) - kept(2)) / hidden == pytest.approx(1 if checkpointing else keeps, rel=0.03)


def test_a_dry_run_measures_a_rollout_and_an_update(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "SECONDS", 0.0)
    monkeypatch.setattr(dry_run, "shape_of", lambda model: NARROW)
    monkeypatch.setattr(dry_run, "autoencoder_of", lambda model: SMALL_AUTOENCODER)
    filled = []
    monkeypatch.setattr(dry_run, "fill_adapters", lambda base, seed: filled.append(fill_adapters(base, seed) or base))
    run = dry_run.dry_run(["scale=paper", "relevance.blocks=[1]", "model.resolution=128"])
    assert all(value.any() for value in filled[0].trained.values())
    assert run.trained == 2 * 128 * 32 * (3 * 8 - 1)
    assert run.ratio_error <= run.tolerance
    assert 0 < run.maps < run.captured and 0 < run.share < 1
    assert run.rollout.seconds > 0 and run.update.seconds > 0 and run.update.memory > 0
    assert run.wanted.train.group_size == 24 and run.epoch_seconds > 1152 * run.update.seconds
    file, rows = dry_run.report(run)
    text = file.read_text()
    assert file == Path("runs/results/paper/dry_run.md")
    for part in (
        "commit: ",
        "torch 2",
        "0.188 M parameters",
        "goal: at most 1 %",
        "ratio off 1 by",
        "a run of STAR goes on: in bfloat16 up to 1.0e-04 is rounding",
        "for 9 rollouts at once",
        "update on 1 step, with KL",
        "M parameters (LoRA, rank 32), float32",
    ):
        assert part in text
    most = needed(load(["scale=paper", "model.resolution=128", "model.offload=false"]), NARROW).gpu / 2**30
    assert f"{most:.1f} GiB at most" in text  # as on a GPU with room for all
    assert all(name in text for name, _ in rows)


def test_a_dry_run_needs_no_weights_of_rewards_and_says_what_it_ran(monkeypatch, tmp_path, pipeline_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "SECONDS", 0.0)
    words = ["task=ocr", f"model.path={pipeline_folder}", "relevance.blocks=[1]", "train.beta=0", "model.parameters=full"]
    _, rows = dry_run.report(dry_run.dry_run([*words, "+rewards.others.geneval=0.5"]))
    assert "update on 1 step, without KL" in dict(rows) and "M parameters (all), float32" in dict(rows)["trained"]


def test_memory_is_counted_in_the_precision_of_the_run(make_config, pipeline_folder, tmp_path):
    """Not in that of the files: encoders ship in half precision, say."""
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    for part in (folder / name for name in ("text_encoder", "text_encoder_3")):
        file = part / "model.safetensors"
        save_file({name: value.half() for name, value in load_file(file).items()}, file, {"format": "pt"})
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        config = make_config(f"model.path={folder}", f"model.dtype={dtype}")
        pipeline, _ = checks._on_meta(config, folder)
        encoders = sum(part.num_parameters() for name, part in pipeline.components.items() if "text_encoder" in name)
        assert checks._beside(pipeline, dtype) == size * encoders + 4 * pipeline.vae.num_parameters() > size * encoders > 0


@pytest.mark.parametrize("compiled", [False, True])
def test_clocks_are_set_into_the_maps_only_where_blocks_are_not_compiled(monkeypatch, compiled):
    """A compiled block with a clock in it is compiled anew in every pass."""
    taken = iter([9.0, 9.0, 1.0, 3.0])  # two passes that warm up, then one without maps and one with

    class Clocked(list):
        def clear(self):
            """What was measured in the warm-up is the same here."""

    monkeypatch.setattr(dry_run, "SECONDS", 0.0)
    monkeypatch.setattr(dry_run, "capture_for", lambda *given: nullcontext())
    monkeypatch.setattr(dry_run, "_timed", lambda capture: Clocked([0.5]))
    monkeypatch.setattr(dry_run, "_measuring", lambda device: nullcontext(dry_run.Measured(next(taken), 0.0)))
    config = load(["scale=mini", f"model.compile={compiled}"])
    base = SimpleNamespace(latent_shape=(1, 2, 2), device=torch.device("cpu"), velocity=lambda *given: None)
    trainer = SimpleNamespace(config=config, schedule=[1.0])
    assert dry_run._rollout_steps(trainer, base) == (1.0, 3.0, 2.0 if compiled else 0.5)


def test_an_update_is_timed_on_all_rows_and_when_warm(monkeypatch, pipeline_folder, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "SECONDS", 0.0)
    seen = []
    update = dry_run.Trainer.update
    monkeypatch.setattr(dry_run.Trainer, "update", lambda self, *given: seen.append(given[0]) or update(self, *given))
    run = dry_run.dry_run([f"model.path={pipeline_folder}", "relevance.blocks=[0]", "sampling.same_latent=true"])
    assert len(seen) == 2 and seen[0][0].trajectory.alike is None
    assert not run.config.sampling.same_latent and run.wanted.sampling.same_latent


def test_a_dry_run_without_memory_says_what_to_lower(monkeypatch, pipeline_folder, tmp_path):
    monkeypatch.chdir(tmp_path)

    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB. GPU 0 has 80 GiB")

    monkeypatch.setattr(dry_run, "_rollout_steps", full)
    with pytest.raises(RunStopped, match="Tried to allocate 1 GiB; set .*train.micro_batch below"):
        dry_run.dry_run([f"model.path={pipeline_folder}", "relevance.blocks=[0]"])


def test_the_dry_run_of_an_unknown_model_is_one_line():
    with pytest.raises(UserError, match="model.path=some/model: its shape is not known .*stabilityai"):
        shape_of("some/model")


def test_the_shape_of_the_mini_base_is_that_of_its_folder():
    assert shape_of(str(MINI_BASE.folder))["num_layers"] == 6


def test_a_dry_run_tells_of_a_ratio_that_would_stop_a_run(monkeypatch, tmp_path):
    """Sampling and update that differ are a figure here: that is what a dry run is for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "SECONDS", 0.0)
    monkeypatch.setattr(dry_run, "shape_of", lambda model: NARROW)
    monkeypatch.setattr(dry_run, "autoencoder_of", lambda model: SMALL_AUTOENCODER)
    draw = dry_run.sample

    def disturbed(*given, **named):
        trajectory = draw(*given, **named)
        trajectory.log_probs = trajectory.log_probs + 0.01
        return trajectory

    monkeypatch.setattr(dry_run, "sample", disturbed)
    words = ["scale=paper", "relevance.blocks=[1]", "model.resolution=128", "variant=guard"]
    _, rows = dry_run.report(dry_run.dry_run(words))
    assert "a run of STAR STOPS: in bfloat16 up to 2.0e-06 is rounding" in dict(rows)["first update on policy"]


def test_configurations_of_older_diffusers_lack_what_came_later(tmp_path, pipeline_folder):
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    left_out = without(folder / "transformer" / "config.json", "dual_attention_layers", "qk_norm", "_diffusers_version")
    shape = shape_of(str(folder))
    assert left_out == 3 and (shape["dual_attention_layers"], shape["qk_norm"]) == ((), None)
    assert needed(load([f"model.path={folder}", "relevance.blocks=[0]"]), shape).parameters > 0


def without(file, *names):
    """Takes settings out of a file, and gives how many there were."""
    config = json.loads(file.read_text())
    found = [config.pop(name) for name in names if name in config]
    file.write_text(json.dumps(config))
    return len(found)


@pytest.mark.parametrize(
    ("file", "setting"), [(file, name) for file, names in STATED.items() for name in (min(names), max(names))]
)
def test_what_a_pipeline_leaves_open_is_not_filled_in_silently(make_config, pipeline_folder, tmp_path, file, setting):
    """A scheduler without its shift would sample with another one, and weights would be scored that nobody trained so."""
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    assert without(folder / file, setting) == 1
    model = make_config(f"model.path={folder}").model
    for use in (lambda: models.load(model, torch.device("cpu"), 0), lambda: shape_of(str(folder))):
        with pytest.raises(UserError, match=f"^model.path={folder}.*{file} does not say {setting}"):
            use()
    with pytest.raises(UserError, match="does not say"):
        checks.check(load([f"model.path={folder}"]))


def test_the_small_base_is_run_dry_with_its_own_autoencoder(monkeypatch, tmp_path, pipeline_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "SECONDS", 0.0)
    run = dry_run.dry_run([f"model.path={pipeline_folder}", "relevance.blocks=[1]"])
    assert run.rollout.seconds > 0 and run.ratio_error <= run.tolerance


def test_a_gpu_runs_dry_in_the_precision_of_the_run(monkeypatch):
    """Whose rounding is what the first update is to tell."""
    for gpu, dtype in ((True, "float16"), (False, "bfloat16")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        wanted = load(["scale=paper"])
        assert wanted.model.dtype == "float16"
        assert dry_run._settings(["scale=paper"], wanted).model.dtype == dtype


def test_a_model_is_told_by_the_files_of_its_parts(pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "model")
    known = sources.fingerprint(str(folder))
    (folder / "text_encoders").mkdir()
    for beside in ("sd3.5_medium.safetensors", "text_encoders/t5.safetensors", "transformer/model.fp16.safetensors"):
        (folder / beside).write_bytes(b"not loaded")
    assert sources.fingerprint(str(folder)) == known
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + " ")
    assert sources.fingerprint(str(folder)) != known


def test_published_models_are_meant_at_a_commit(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(sources, "cached", lambda name, revision: asked.append((name, revision)) or tmp_path)
    for name in TRANSFORMERS:
        assert sources.located(name) == tmp_path and asked[-1] == (name, sources.REVISIONS[name])
        assert re.fullmatch(f"hf download {name} --revision [0-9a-f]{{40}}", sources.download(name))
    sources.located("some/model")
    assert asked[-1] == ("some/model", None) and sources.download("some/model") == "hf download some/model"


def test_a_large_model_is_not_run_without_a_gpu(tmp_path, pipeline_folder, monkeypatch):
    monkeypatch.setattr(pipeline, "CPU_PARAMETERS", 1e4)
    with pytest.raises(UserError, match="no GPU: with 0 M parameters a step takes minutes here.*STAR_TORCH=torch-gpu.txt"):
        SD3(load([f"model.path={pipeline_folder}"]).model, torch.device("cpu"), 0)


def test_a_reward_of_another_task_and_models_that_load_late_are_looked_at(monkeypatch, pipeline_folder):
    class Silent:
        protocol, train, test = "none", ["a"], ["b"]
        name = "silent"

        @property
        def evaluator(self):
            return self

        def lacks(self, prompt):
            return ""

        def submit(self, prompts, images):
            raise RunStopped("nor can it read a blank image")

    monkeypatch.setattr(checks, "load_task", lambda config, name: Silent())
    monkeypatch.setattr("star.tasks.registry.create", lambda name, engine: Silent())
    words = [*FAST.split(), f"model.path={pipeline_folder}", "+rewards.others.ocr=0.5"]
    found = by_name(checks.check(load(words)))
    assert not found["task geneval"].fine and "blank image" in found["rewards"].todo
    # FAST leaves out the scores on other tasks, and a reward that is mixed in needs no prompts of its own.
    assert "task ocr" not in found and "task pickscore" not in found


def test_the_arm_is_looked_at(pipeline_folder, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "extending")

    def found(*words):
        config = load([*FAST.split(), f"model.path={pipeline_folder}", *words])
        return by_name(checks.check(config))["method"]

    assert found("method=oracle").fine and found("method=flow_grpo").found == "flow_grpo (method.arm=uniform)"
    missing = found("method=star", "method.name=mine", "method.arm=no_module:map")
    assert not missing.fine and "there is no module 'no_module'" in missing.todo
    blind = found("task=pickscore", "evaluators.pickscore=own_reward:Brightness", "method=oracle")
    assert not blind.fine and "which brightness-v1 does not tell" in blind.todo


def test_a_small_model_on_this_machine_is_fine(monkeypatch, capsys, tmp_path, pipeline_folder):
    monkeypatch.chdir(tmp_path)
    words = [word for word in FAST.split() if "group_size" not in word]
    found = by_name(checks.check(load([*words, f"model.path={pipeline_folder}"])))
    assert all(finding.fine for finding in found.values()), found
    assert "of weights" in found["model"].found and "test prompts" in found["task geneval"].found


def test_what_is_missing_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = load(["scale=paper", "task=ocr", "train.group_size=12"])
    found = by_name(checks.check(config))
    assert not found["model"].fine and "hf download stabilityai/stable-diffusion-3.5-medium" in found["model"].todo
    assert not found["device"].fine and "dry_run=true" in found["device"].todo
    assert not found["task ocr"].fine and found["task ocr"].todo
    assert "groups of 12 and 6 collapsed" in found["settings"].found
    assert all(finding.todo for finding in found.values() if not finding.fine)
    # A GPU that runs are forbidden to use is none.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assert by_name(checks.check(config))["device"] == found["device"]


def sharded(part):
    """Replaces a part's weights by two shards and their index."""
    (file,) = part.glob("*.safetensors")
    weights = load_file(file)
    file.unlink()
    names = [f"{file.stem}-{number}-of-2.safetensors" for number in (1, 2)]
    of = {name: names[place % 2] for place, name in enumerate(weights)}
    for shard in names:
        save_file({name: weights[name] for name in weights if of[name] == shard}, part / shard, {"format": "pt"})
    (part / f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": of}))


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_a_pipeline_without_all_of_its_weights_is_not_fine(make_config, pipeline_folder, tmp_path, part):
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    config = make_config(f"model.path={folder}")

    def found():
        return by_name(checks.check(config))["model"]

    size = found().found
    (file,) = (folder / part).glob("*.safetensors")
    whole = file.read_bytes()
    for content in (None, b"", whole[: len(whole) // 2]):
        file.unlink() if content is None else file.write_bytes(content)
        assert not found().fine and part in found().found and "put whole files back" in found().todo
    file.write_bytes(whole)
    sharded(folder / part)
    assert found().fine and found().found == size
    next((folder / part).glob("*-2-of-2.safetensors")).unlink()
    assert not found().fine and f"{part}: " in found().found and "-2-of-2.safetensors" in found().found
    stem = "diffusion_pytorch_model" if part == "transformer" else "pytorch_model"
    shutil.rmtree(folder / part)
    shutil.copytree(pipeline_folder / part, folder / part)
    torch.save(load_file(folder / part / file.name), folder / part / f"{stem}.bin")
    (folder / part / file.name).unlink()
    assert found().fine and found().found == size


def test_packages_are_those_that_the_project_requires(monkeypatch):
    assert checks.packages().fine
    monkeypatch.setattr(checks, "requires", lambda name: requires(f"no-such-{name}"))
    finding = checks.packages()
    assert finding.found == "star-rl is not installed" and not finding.fine and finding.todo == "pip install -e ."


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["a=1", "dry_run=true"], (("a=1",), True)), (["dry_run=False"], ((), False)), ([], ((), False))],
)
def test_a_flag_may_be_written_as_a_setting(words, expected):
    assert take_flag(words, "dry_run") == expected
    with pytest.raises(UserError, match="dry_run=maybe must be true or false"):
        take_flag(["dry_run=maybe"], "dry_run")


def test_the_command_says_what_is_fine_and_what_to_do(star, pipeline_folder):  # noqa: F811
    code, out, _ = star("doctor", *FAST.split(), f"model.path={pipeline_folder}")
    assert code == 0 and "fine" in out and "caution" in out
    code, out, _ = star("doctor", "scale=paper", "task=ocr")
    assert code == 1 and "hf download" in out and "what to do" in out
    code, _, err = star("doctor", "dry_run=perhaps")
    assert code == 2 and "dry_run=perhaps must be true or false" in err


def test_help_names_presets_and_variants():
    assert re.search(r"preset=gpu1.*variant=fast", cli.DOCTOR_HELP)


BROKEN = {
    "model_index.json": ["", "[]", '{"a": [[]]}', "[" * 100_000, '{"_class_name": 1}'],
    "transformer/config.json": ["{", "3"],
    "transformer/diffusion_pytorch_model.safetensors.index.json": ["[]", '{"weight_map": 1}'],
}


@pytest.mark.parametrize(("file", "content"), [(file, content) for file, contents in BROKEN.items() for content in contents])
def test_a_model_folder_with_broken_or_foreign_json_is_named(make_config, pipeline_folder, tmp_path, file, content):
    """By what looks at it and by what would load it."""
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    (folder / file).write_text(content)
    assert checks._on_meta(make_config(f"model.path={folder}"), folder)[1]
    if file == "transformer/config.json":
        with pytest.raises(UserError, match=f"^model.path={folder}"):
            shape_of(str(folder))
    with pytest.raises(UserError, match=f"^model.path={folder}") as caught:
        models.load(make_config(f"model.path={folder}").model, torch.device("cpu"), 0)
    assert "\n" not in str(caught.value)


def changed(folder, file, **values):
    """Changes settings of a JSON file of a model."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


SHAPE, AUTO, INDEX, SHIFT = "transformer/config.json", "vae/config.json", "model_index.json", "scheduler/scheduler_config.json"
UNLOADABLE = [
    ((SHAPE, {"num_layers": "x"}), "num_layers must be a whole number"),
    ((SHAPE, {"num_layers": 99}), "transformer lacks weights"),
    ((SHAPE, {"patch_size": 0}), "patch_size must be a whole number above 0"),
    ((SHAPE, {"patch_size": 1.5}), "patch_size must be a whole number above 0, not 1.5"),
    ((AUTO, {"block_out_channels": 4}), "block_out_channels must be whole numbers"),
    ((AUTO, {"scaling_factor": "1"}), "scaling_factor must be a number above 0"),
    ((SHAPE, {"qk_norm": None}), "transformer has weights that its config.json has no place for"),
    ((AUTO, {"layers_per_block": 3}), "vae lacks weights .*, in all 96"),
    (("text_encoder_3/config.json", {"num_layers": 5}), "text_encoder_3 lacks weights"),
    (("text_encoder/config.json", {"hidden_size": 32}), "text_encoder lacks weights"),
    ((SHAPE, {"dual_attention_layers": "x"}), "transformer"),
    ((SHAPE, {"pos_embed_max_size": 33}), "transformer lacks weights .*: pos_embed.pos_embed, in all 1"),
    ((INDEX, {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}), "for text_encoder_3, not T5EncoderModel"),
    ((SHAPE, {"qk_norm": 5}), "transformer"),
    ((AUTO, {"norm_num_groups": 0}), "vae/config.json: norm_num_groups must be a whole number above 0, not 0"),
    (("text_encoder/config.json", {"eos_token_id": 7}), "tokenizer ends texts with token 1, but its encoder looks for 7"),
    (("text_encoder_2/config.json", {"hidden_act": None}), "text_encoder_2/config.json: hidden_act must be a word"),
    (("text_encoder_3/config.json", {"num_layers": 1}), "text_encoder_3 has weights that its config.json has no place for"),
    ((AUTO, {"up_block_types": ["Nothing"]}), "vae"),
    ((SHIFT, {"shift": 0}), "shift must be a number"),
    ((SHIFT, {"use_dynamic_shifting": True}), "its scheduler shifts by resolution"),
    ((SHIFT, {"use_karras_sigmas": True}), r"FlowMatchEulerDiscreteScheduler\) has other noise levels than a shift of 3.0"),
    ((SHIFT, {"num_train_timesteps": 500}), "has other noise levels"),
    ((SHIFT, {"shift_terminal": 0.1}), "has other noise levels"),
    ((SHIFT, {"invert_sigmas": True}), "has other noise levels"),
    (
        (INDEX, {"scheduler": ["diffusers", "FlowMatchHeunDiscreteScheduler"]}),
        "HeunDiscreteScheduler.* has other noise levels",
    ),
    ((INDEX, {"transformer": ["diffusers", "FluxTransformer2DModel"]}), "FluxTransformer2DModel.* not SD3Transformer2DModel"),
    ((INDEX, {"transformer": [None, None]}), "for transformer, not SD3Transformer2DModel"),
    (("tokenizer_3/tokenizer.json", None), "tokenizer_3 has 4 tokens"),
    (("tokenizer_3/tokenizer.json", {"model": {"vocab": "none"}}), "tokenizers and scheduler: "),
]
"""A file and what is changed in it, None for the whole; the fault that is told."""


@pytest.mark.parametrize(("change", "fault"), UNLOADABLE)
def test_what_cannot_be_loaded_is_known_without_loading(make_config, pipeline_folder, tmp_path, change, fault):
    """One line from what would load it, and from what looks at it before; nothing is filled in with random weights."""
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    file, values = change
    if values is None:
        (folder / file).unlink()
    else:
        changed(folder, file, **values)
    config = make_config(f"model.path={folder}")
    with pytest.raises(UserError, match=f"^model.path={folder}.*{fault}") as caught:
        models.load(config.model, torch.device("cpu"), 0)
    assert "\n" not in str(caught.value)
    try:
        found = by_name(checks.check(config))["model"]
    except UserError as error:  # without a shape there is nothing to work out
        assert re.search(fault, str(error))
    else:
        assert not found.fine and re.search(fault, found.found)


@pytest.mark.parametrize("words", [["model.resolution=30"], ["model.resolution=4096"], ["relevance.blocks=[7]"]])
def test_settings_that_the_model_does_not_have_are_known_without_loading(make_config, words):
    config = make_config(*words)
    found = by_name(checks.check(config))["model"]
    name = words[0].partition("=")[0].removesuffix("s")
    assert not found.fine and name.split(".")[1] in found.found and "choose what this model has" in found.todo
