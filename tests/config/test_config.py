from copy import deepcopy
from dataclasses import asdict, is_dataclass

import pytest
from hydra import compose, initialize_config_module

from star.common.errors import UserError
from star.common.shipped import MINI_BASE, Shipped
from star.config import (
    base_identity,
    cautions,
    config_hash,
    evaluation_changes,
    get,
    identity,
    label,
    load,
    options,
    schema,
    to_yaml,
)
from star.method import attention
from star.method.arms import ARMS, MAPS
from star.models import kernels


@pytest.mark.parametrize("task", options("task"))
@pytest.mark.parametrize("method", options("method"))
@pytest.mark.parametrize("scale", options("scale"))
def test_every_shipped_combination_is_valid(task, method, scale):
    config = load([f"task={task}", f"method={method}", f"scale={scale}"])
    assert (config.task.name, config.method.name, config.scale) == (task, method, scale)
    assert (config.method.arm, config.method.reduction) == (ARMS[method].map, ARMS[method].ratio)
    assert config.run == f"runs/{scale}/{task}/{method}/seed0-{config_hash(identity(config))[:8]}"


@pytest.mark.parametrize("model", [None, *options("model")])
@pytest.mark.parametrize("variant", [None, *options("variant")])
@pytest.mark.parametrize("preset", [None, *options("preset")])
def test_every_change_of_the_paper_scale_is_valid(model, variant, preset):
    given = {"model": model, "variant": variant, "preset": preset}
    config = load(["scale=paper", "method=star", *(f"{group}={name}" for group, name in given.items() if name)])
    assert cautions(config) == []
    changes = "".join(f"+{change}" for change in (model, variant) if change)
    unguided = variant in ("fast", "nocfg")
    assert evaluation_changes(config) == ({"guidance": 1.0} if unguided else {})
    assert label(config, "star") == f"star{changes}"
    assert label(config, "base") == (f"base{changes}" if unguided else "base" + (f"+{model}" if model else ""))
    assert config.run == f"runs/paper/geneval/star{changes}/seed0-{config_hash(identity(config))[:8]}"


def test_presets_differ_in_budget_and_memory_alone():
    one, four, eight = (load(["scale=paper", f"preset={name}"]) for name in ("gpu1", "gpu4", "gpu8"))
    images = [config.train.groups * config.train.group_size for config in (one, four, eight)]
    assert images == [128, 256, 1152]
    assert [config.train.group_size for config in (one, four, eight)] == [16, 16, 24]
    assert [config.model.gradient_checkpointing for config in (one, four, eight)] == [True, True, False]
    for config in (one, four, eight):
        assert config.model.offload is None
        for name in ("train.lr", "train.beta", "train.clip_range", "sampling.guidance", "model.resolution", "model.dtype"):
            assert get(config, name) == get(eight, name)


def test_variants_hold_the_published_settings():
    fast, guard = (load(["scale=paper", f"variant={name}"]) for name in ("fast", "guard"))
    sampling, train = fast.sampling, fast.train
    assert (sampling.kind, sampling.noise_level, sampling.guidance, fast.evaluation.guidance) == ("cps", 0.8, 1.0, 1.0)
    assert (sampling.window, sampling.window_range, train.clip_range, train.beta) == (3, [0, 5], 1e-5, 0.0)
    train = guard.train
    assert (train.guard, train.clip_range, train.lr, train.beta, train.std) == (True, 2e-6, 1e-4, 0.0, "group")
    unguided, cps = (load(["scale=paper", f"variant={name}"]) for name in ("nocfg", "cps"))
    assert (unguided.sampling.guidance, unguided.train.beta) == (1.0, 0.0)
    assert (cps.sampling.kind, cps.sampling.noise_level, cps.train.clip_range, cps.train.beta) == ("cps", 0.8, 1e-5, 0.0)
    assert cps.sampling.guidance == 4.5


def test_the_lower_rate_changes_nothing_else():
    lower = load(["variant=lr1e-3"])
    assert identity(lower) == identity(load(["train.lr=1e-3"])) | {"variant": "lr1e-3"} and lower.train.lr == 1e-3


def test_the_kl_penalty_is_the_tasks():
    betas = {task: load(["scale=paper", f"task={task}"]).train.beta for task in ("geneval", "ocr", "pickscore")}
    assert betas == {"geneval": 0.04, "ocr": 0.04, "pickscore": 0.01}


@pytest.mark.parametrize(
    ("words", "caution"),
    [
        (["scale=paper", "variant=fast", "sampling.guidance=4.5"], "reported to collapse within a few epochs"),
        (["scale=paper", "variant=guard", "sampling.window=3", "sampling.guidance=1"], "reported to collapse on OCR"),
        (["scale=paper", "train.group_size=12", "train.groups=96"], "groups of 12 and 6 collapsed"),
        (["scale=paper", "train.epochs=3"], "6 updates are too few for train.ema_every=8: the average"),
    ],
)
def test_what_is_reported_to_collapse_or_comes_to_nothing_is_said(words, caution):
    (line,) = cautions(load(words))
    assert caution in line


def test_an_average_that_takes_in_one_update_is_no_matter():
    assert not cautions(load(["scale=paper", "train.epochs=7", "train.updates_per_epoch=1"]))


def test_no_change_of_the_scale_is_no_part_of_the_run():
    config = load(["scale=mini"])
    assert cautions(config) == [] and config.run.startswith("runs/mini/geneval/star/seed0-") and config.variant is None


def test_where_the_weights_are_is_no_part_of_the_run():
    whole, shared = (load([f"model.shard={shard}"]) for shard in (False, True))
    assert identity(whole) == identity(shared) and base_identity(whole) == base_identity(shared)


def test_what_only_saves_memory_or_disk_is_no_part_of_the_run():
    for scale in options("scale"):
        plain = load([f"scale={scale}"])
        for word in ("model.offload", "model.gradient_checkpointing"):
            assert identity(load([f"scale={scale}", f"{word}={not get(plain, word)}"])) == identity(plain)
        thrifty = ["train.keep=7", "train.checkpoint_every=3", "train.checkpoint_minutes=1", "train.collapse_epochs=99"]
        assert identity(load([f"scale={scale}", *thrifty])) == identity(plain)
        assert identity(plain)["model"]["offload"] == plain.model.offload


def test_what_the_base_depends_on():
    base = base_identity(load([]))
    words = ["model.lora_rank=4", "model.offload=true", "train.epochs=2", "method=flow_grpo", "evaluation.cross_images=0"]
    for word in (*words, "+rewards.others.pickscore=0.5"):
        assert base_identity(load([word])) == base, word
    for word in ("model.path=other", "model.resolution=32", "task=ocr", "evaluation.steps=4", "evaluators.geneval=mmdet"):
        assert base_identity(load([word])) != base, word


THRIFTY = {
    *("run", "tracker", "model.gradient_checkpointing", "model.offload", "model.decode_batch", "model.kernels", "model.shard"),
    *("train.checkpoint_every", "train.checkpoint_minutes", "train.keep", "train.collapse_epochs", "train.ratio_tolerance"),
}
OF_THE_BASE = {
    *("scale", "evaluators", "task.name", "task.beta", "task.prompts", "model.name", "model.kind", "model.path"),
    *("model.resolution", "model.text_length", "model.dtype"),
    *("evaluation.steps", "evaluation.guidance", "evaluation.seed", "evaluation.images"),
}


def test_every_setting_is_part_of_the_run_but_these():
    """One that joins the first list here makes runs equal that are not, one that leaves it makes shipped results unequal."""
    plain = load(["task=geneval"])
    values = {}
    for group, value in asdict(plain).items():
        inner = is_dataclass(getattr(plain, group))
        values |= {f"{group}.{key}": one for key, one in value.items()} if inner else {group: value}
    others = {"scale": "paper", "evaluators": plain.evaluators | {"geneval": "mmdet"}, "rewards.others": {"ocr": 0.5}}
    parts = {"training": set(), "evaluation": set(), "base": set()}
    for name, value in values.items():
        group, _, key = name.rpartition(".")
        config = deepcopy(plain)
        setattr(get(config, group) if group else config, key, others.get(name, _another(value)))
        parts["training"] |= {name} if identity(config) != identity(plain) else set()
        parts["evaluation"] |= {name} if identity(config, "geneval") != identity(plain, "geneval") else set()
        parts["base"] |= {name} if base_identity(config) != base_identity(plain) else set()
    of_evaluations = {name for name in values if name.startswith("evaluation.")}
    assert values.keys() - parts["training"] == THRIFTY | of_evaluations
    others = {"evaluation.every", "evaluation.every_images", "evaluation.cross_images"}  # of other evaluations
    assert values.keys() - parts["evaluation"] == THRIFTY | others
    assert parts["base"] == OF_THE_BASE


def test_an_evaluation_depends_on_its_own_number_of_images_alone():
    plain = load(["task=geneval"])
    for word in ("evaluation.every=5", "evaluation.every_images=2", "evaluation.images=2"):
        assert identity(load(["task=geneval", word]), "ocr") == identity(plain, "ocr"), word
    assert identity(load(["task=geneval", "evaluation.cross_images=2"]), "ocr") != identity(plain, "ocr")


def _another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, 1] if isinstance(value, list) else f"{value}x"


def test_only_evaluators_that_give_rewards_are_part_of_a_training():
    config, other = load(["task=geneval"]), load(["task=geneval", "evaluators.ocr=paddleocr", "evaluation.images=1"])
    assert identity(config) == identity(other) and identity(config)["evaluators"] == {"geneval": "mini"}
    assert identity(config, "geneval") != identity(other, "geneval")  # another number of images
    assert set(identity(config, "ocr")["evaluators"]) == {"geneval", "ocr"}
    assert set(identity(load(["task=geneval", "+rewards.others.ocr=0.5"]))["evaluators"]) == {"geneval", "ocr"}
    assert identity(config) != identity(load(["task=geneval", "evaluators.geneval=mmdet"]))


def test_shipped_weights_are_part_of_the_run_and_a_folder_goes_by_its_name(tmp_path):
    config = load(["scale=mini"])
    assert identity(config)["model"]["path"] == base_identity(config)["model"]["path"] == MINI_BASE.identity
    assert identity(load(["model.path=elsewhere"]))["model"]["path"] == "elsewhere"
    (tmp_path / "weights" / "transformer").mkdir(parents=True)
    file = tmp_path / "weights" / "transformer" / "some.safetensors"
    names = set()
    for content in (b"one", b"two"):
        file.write_bytes(content)
        names.add(Shipped(tmp_path / "weights", "weights").identity)
    assert len(names) == 2 and all(name.startswith("weights@") for name in names)


def test_paper_scale_holds_flow_grpos_published_settings():
    config = load(["scale=paper", "method=flow_grpo"])
    expected = {
        "model.resolution": 512,
        "model.text_length": 128,
        "model.lora_rank": 32,
        "model.lora_alpha": 64,
        "model.dtype": "float16",
        "sampling.steps": 10,
        "sampling.kind": "sde",
        "sampling.noise_level": 0.7,
        "sampling.guidance": 4.5,
        "sampling.window": 0,
        "sampling.same_latent": False,
        "train.groups": 48,
        "train.group_size": 24,
        "train.updates_per_epoch": 2,
        "train.lr": 3e-4,
        "train.clip_range": 1e-4,
        "train.adv_clip": 5.0,
        "train.std": "batch",
        "train.beta": 0.04,
        "train.kl": "flow_grpo",
        "train.ema_decay": 0.9,
        "train.ema_every": 8,
        "train.max_grad_norm": 1.0,
        "train.weight_decay": 1e-4,
        "train.betas": [0.9, 0.999],
        "train.schedule": "constant",
        "train.micro_batch": 9,
        "relevance.blocks": [9],
        "relevance.columns": "both",
        "relevance.softmax_over": "joint",
        "evaluation.images": 4,
        "evaluation.steps": 40,
        "evaluation.guidance": 4.5,
        "method.reduction": "image",
        "method.arm": "uniform",
    }
    assert {name: get(config, name) for name in expected} == expected
    assert len(config.model.lora_targets) == 8
    engines = {"geneval": "mask2former", "ocr": "paddleocr_flow_grpo_compat", "pickscore": "pickscore"}
    assert config.evaluators == engines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=foo"], "no method 'foo'; there are: background, dense_uniform, flow_dppo, flow_grpo"),
        (["scale=huge"], "no scale 'huge'; there are: mini, paper"),
        (["train.lrr=3"], r"train.lrr is no setting; did you mean train.lr\? train has: .*lr"),
        (["nothing=3"], "nothing is no setting; there are: .*train"),
        (["train.lr=abc"], "train.lr: Value 'abc'"),
        (["relevance.blocks=[[0]]"], r"relevance.blocks=\[\[0\]\] must be a list of whole numbers"),
        (["relevance.heads=[0,{a:1}]"], "relevance.heads=.* must be a list of whole numbers"),
        (["train.betas=[0,[1]]"], "train.betas=.* must be a list of numbers"),
        (["sampling.window_range=[0,[1]]"], "sampling.window_range=.* must be a list of whole numbers"),
        (["model.lora_targets=[[x]]"], "model.lora_targets=.* must be a list of words"),
        (["relevance.blocks=[9223372036854775808]"], "relevance.blocks=9223372036854775808 must be less than 2.63"),
        (["model.decode_batch=9223372036854775808"], "model.decode_batch=9223372036854775808 must be less than 2.63"),
        (["model.compile=2"], "model.compile=2 must be true or false"),
        (["model.offload=-1"], "model.offload=-1 must be true or false"),
        (["sampling.window_range=${seed}"], "write the value itself, without"),
        (["rewards.others='${seed}'"], "write the value itself, without"),
        (["model.name='a\nb'"], "write the value itself, without"),
        (["relevance.blocks=9"], "settings: relevance.blocks is a list; write 'KEY="),
        (["train"], "'train' is no setting; write key=value"),
        (["sampling.kind=ddim"], "sampling.kind=ddim is not known; it is one of sde, cps"),
        (["train.groups=7", "train.micro_batch=48"], "must divide the 112 rollouts of an epoch; e.g. train.micro_batch=28"),
        (["train.groups=3"], "an epoch has only 1 micro-batch; lower train.micro_batch, e.g. train.micro_batch=24"),
        (["train.group_size=1"], "at least 2"),
        (["train.lr=0"], "train.lr=0.0 must be greater than 0"),
        (["train.max_grad_norm=inf"], "train.max_grad_norm=inf must be a finite number"),
        (["sampling.guidance=nan"], "sampling.guidance=nan must be a finite number"),
        (["train.betas=[0.9,nan]"], "train.betas=.*must be a finite number"),
        (["+rewards.others.ocr=inf"], "rewards.others.ocr=inf must be a finite number"),
        (["rewards.others.ocr=1"], "rewards.others.ocr is not set yet; write [+]rewards.others.ocr=... to add it"),
        (["rewards.others={ocr:1}"], "rewards.others.ocr is not set yet; write [+]rewards.others.ocr=... to add it"),
        (["evaluators.vivid=mini"], "evaluators.vivid is not set yet; write [+]evaluators.vivid=... to add it"),
        (["model.lora_targets.x=1"], "model.lora_targets.x is no setting; model.lora_targets is one, and has no parts"),
        (["+evaluators.a.b=mini"], "[+]evaluators.a.b is no setting; evaluators.a is one, and has no parts"),
        (["train.ema_decay=-1"], "train.ema_decay=-1.0 must lie in \\[0, 1\\]"),
        (["model.lora_alpha=0"], "model.lora_alpha=0 must be greater than 0"),
        (["train.weight_decay=-1"], "train.weight_decay=-1.0 must not be negative"),
        (["train.betas=[0.9]"], "train.betas=\\[0.9\\] must be two numbers"),
        (["train.betas=[0.9, 1.0]"], "must lie in \\[0, 1\\)"),
        (["train.collapse_epochs=0"], "train.collapse_epochs=0 must be greater than 0"),
        (["method.clip=kl", "sampling.kind=cps"], "method.clip=kl limits log-ratios of sde steps"),
        (["method.clip=kl", "variant=guard"], "method.clip=kl limits log-ratios of sde steps"),
        (
            ["method=tempflow", "variant=guard"],
            "method.steps=equal divides by the size of the scores",
        ),
        (["method=star_random", "method.normalise=step"], "method.normalise=step would scale the values .* STAR's; use"),
        (["method=temporal", "method.normalise=step"], "method.normalise=step leaves nothing of method.arm=temporal"),
        (["seed=-1"], "seed=-1 must not be negative"),
        (["evaluation.images=1000000000"], "evaluation.images=1000000000 must lie between 1 and 10,000"),
        (["evaluation.cross_images=1000000000"], "must lie between 0 and 10,000"),
        (["train.group_size=1000000000"], "train.group_size=1000000000 must lie between 1 and 10,000"),
        (["model.lora_rank=1000000000"], "must lie between 1 and 10,000"),
        (["sampling.steps=0"], "sampling.steps=0 must lie between 1 and 10,000"),
        (["method.name=con"], "method.name=con is no name for results"),
        (["model.name=NUL.2"], "model.name=NUL.2 must be a word"),
        (["sampling.window=-1"], "sampling.window=-1 must not be negative"),
        (["sampling.window_range=[0]"], "sampling.window_range=\\[0\\] must be two numbers"),
        (["sampling.noise_level=0"], "sampling.noise_level=0.0 must be at least 1e-6"),
        (["sampling.noise_level=1e-30"], "sampling.noise_level=1e-30 must be at least 1e-6"),
        (["train.adv_clip=1e300"], "train.adv_clip=1e.300 must be at most 1e.38, which float32 holds"),
        (["sampling.guidance=-1e39"], "sampling.guidance=-1e.39 must be at most 1e.38"),
        (["sampling.kind=cps", "sampling.noise_level=2"], "must be at most 1 for sampling.kind=cps"),
        (["sampling.window=0", "sampling.steps=1"], "sampling.steps=1 must be at least 2"),
        (["method.clip_range=0"], "method.clip_range=0.0 must be above 0"),
        (["sampling.window=9"], "must fit into sampling.window_range"),
        (["train.updates_per_epoch=100"], "only .* micro-batches"),
        (["sampling.kind=cps", "train.beta=0.1"], "use train.kl=paper"),
        (["method.mix=2"], "method.mix=2.0"),
        (["method.cap=0.5"], "method.cap=0.5"),
        (["method.exponent=0"], "method.exponent=0.0"),
        (["seed=0..2"], "seed=0..2: a training has one seed; star matrix takes several"),
        (["method=star,flow_grpo"], "star matrix takes several, as method=star,flow_grpo"),
        (["epochs=2"], r"epochs is no setting; did you mean train.epochs\?"),
        (["out=x"], "out is no setting; a run.s folder is run=FOLDER, that of a page --out FOLDER; there are: "),
        (["variant=quick"], "no variant 'quick'; there are: cps, fast, guard, lr1e-3, nocfg"),
        (["preset=gpu3"], "no preset 'gpu3'; there are: gpu1, gpu4, gpu8"),
        (["model=flux"], "no model 'flux'; there are: sd35_large, sd3_medium"),
        (["variant=guard", "sampling.kind=cps"], "train.guard normalises log-ratios of densities"),
        (["model.parameters=full", "model.shard=true"], "use model.parameters=lora or model.shard=false"),
    ],
)
def test_wrong_settings_are_one_clear_line(words, message):
    with pytest.raises(UserError, match=message) as caught:
        load(words)
    assert "\n" not in str(caught.value)


def test_another_published_model_needs_its_name_and_a_folder_may_be_a_copy_of_the_scales_own():
    large = "model.path=stabilityai/stable-diffusion-3.5-large"
    with pytest.raises(UserError, match=f"^{large} is not the scale's own model, .*; write model=sd35_large$"):
        load(["scale=paper", large])
    assert load(["scale=paper", large, "model.name=large"]).model.name == "large"
    assert label(load(["scale=paper", "model.path=/copy/of/sd35"]), "star") == "star"


def test_on_and_off_may_be_said_as_numbers():
    assert load(["model.compile=1"]).model.compile is True and load(["model.offload=0"]).model.offload is False


def test_a_method_of_ones_own_changes_what_the_scale_says(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("name: mine\narm: star\nmix: 1.0\ncap: 3.0\n")
    with initialize_config_module("star.config.files", version_base=None):
        composed = compose("config", ["method=mine", f"hydra.searchpath=[file://{tmp_path}]"])
    assert (composed.method.mix, composed.method.cap) == (1.0, 3.0) != (load([]).method.mix, load([]).method.cap)


def test_choices_are_those_of_the_code():
    assert all(map(schema.ARM.allows, [*MAPS, *(arm.map for arm in ARMS.values()), "my_module:my_map"]))
    names = ["auto", *kernels.KERNELS]
    assert schema.KERNELS.text == schema.one_of(*names).text and all(map(schema.KERNELS.allows, names))
    # A CPU's own attention is what null means there.
    assert [name for name in attention.KERNELS if schema.ATTENTION.allows(name)] == [
        n for n in attention.KERNELS if n != "cpu"
    ]


def test_settings_survive_yaml():
    config = load(["method=star", "method.cap=4", "seed=3"])
    text = to_yaml(config)
    assert "cap: 4.0" in text and "seed: 3" in text and "runs/mini/geneval/star/seed3" in text


def test_no_variant_preset_or_model_can_be_said():
    plain = load([])
    assert load(["variant=null", "preset=null", "model=null"]) == plain
    assert load(["scale=paper", "variant=fast", "variant=null"]) == load(["scale=paper"])
    with pytest.raises(UserError, match="no scale 'null'; there are: mini, paper"):
        load(["scale=null"])


def test_every_training_has_a_folder_of_its_own_and_evaluating_it_otherwise_has_not():
    plain = load([]).run
    for word in ("train.lr=3e-3", "method.mix=1", "relevance.blocks=[4]", "seed=1", "+rewards.others.pickscore=0.5"):
        assert load([word]).run != plain, word
    for word in ("evaluation.images=1", "train.checkpoint_every=1", "tracker=tensorboard", "model.offload=true"):
        assert load([word]).run == plain, word
    assert load(["run=elsewhere"]).run == "elsewhere"
