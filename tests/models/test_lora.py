"""A trained LoRA loads elsewhere and draws the same pictures; one that was trained elsewhere loads here."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from fake_task import RedTask
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_cli import star  # noqa: F401 (a fixture)
from tiny import FAST
from torch.utils._python_dispatch import TorchDispatchMode

from star.calibrate import calibrate
from star.common import files
from star.common.errors import UserError
from star.common.noise import normal
from star.config import label, load
from star.models import lora
from star.models.sd3 import SD3
from star.models.sources import pipeline_class
from star.records.names import family
from star.records.results import read
from star.training.rollout import generate
from star.training.trainer import Trainer

TEXT = "a photo of a ring"
NOT_PLAIN = {
    "use_dora": True,
    "use_rslora": True,
    "rank_pattern": {"to_q": 4},
    "alpha_pattern": {"to_q": 4},
    "bias": "all",
    "lora_bias": True,
    "modules_to_save": ["proj_out"],
    "init_lora_weights": "pissa",
    "peft_type": "LOHA",
    "fan_in_fan_out": True,
    "use_what_comes_later": True,
}
CPU = torch.device("cpu")


def test_adapters_are_folded_into_the_weights_while_sampling(make_config):
    base = SD3(make_config().model, CPU, 0)
    torch.manual_seed(1)
    for name, parameter in base.trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    before = {name: tensor.clone() for name, tensor in base.transformer.state_dict().items()}
    x = torch.randn(2, *base.latent_shape)

    def velocity():
        with torch.no_grad():
            return base.velocity(x, torch.tensor(0.5), [TEXT, "a star"], 1.0)

    expected = velocity()
    calls = []
    for module in base.transformer.modules():
        if isinstance(module, torch.nn.Linear) and module.weight.requires_grad:
            module.register_forward_hook(lambda *_: calls.append(1))
    with base.sampling():
        torch.testing.assert_close(velocity(), expected, rtol=1e-4, atol=1e-5)
        assert not calls
    with base.reference():
        untrained = velocity()
        with base.sampling():
            assert torch.equal(velocity(), untrained)
        assert not torch.allclose(untrained, expected, atol=1e-2)
    assert torch.equal(velocity(), expected) and calls
    assert all(torch.equal(before[name], tensor) for name, tensor in base.transformer.state_dict().items())
    assert all(parameter.requires_grad for parameter in base.trained.values())


def test_adapters_begin_as_gaussians_of_the_seed_with_a_std_of_1_over_the_rank_and_have_no_effect(make_config):
    one, same, other = (SD3(make_config().model, CPU, seed).trained for seed in (0, 0, 1))
    down, up = ([name for name in one if part in name] for part in ("lora_A", "lora_B"))
    assert len(down) == len(up) > 0 and not any(one[name].any() for name in up)
    values = torch.cat([one[name].detach().flatten() for name in down])
    assert abs(values.mean()) < 0.02 and values.std().item() == pytest.approx(1 / 4, rel=0.05)
    assert values.abs().max() > 0.7  # beyond three std, where a uniform distribution of this std has none
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in down)


@pytest.mark.parametrize("words", [["model.dtype=bfloat16"], ["model.parameters=full"]], ids=str)
def test_where_folding_would_round_adapters_away_they_stay(make_config, words):
    base = SD3(make_config(*words).model, CPU, 0)
    before = [parameter.data_ptr() for parameter in base.transformer.parameters()]
    with base.sampling():
        assert [parameter.data_ptr() for parameter in base.transformer.parameters()] == before


@pytest.fixture
def released(pipeline_folder, tmp_path):
    """A LoRA as Flow-GRPO releases them: peft's own files of a wrapped transformer; and the wrapped transformer."""
    torch.manual_seed(5)
    transformer = StableDiffusion3Pipeline.from_pretrained(pipeline_folder).transformer
    targets = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.to_add_out"]
    model = get_peft_model(transformer, LoraConfig(r=3, lora_alpha=12, init_lora_weights="gaussian", target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "released")
    return tmp_path / "released", model.eval()


def test_a_trained_lora_draws_the_same_picture_in_plain_diffusers(make_config, pipeline_folder):
    config = make_config("train.epochs=1", "train.lr=2e-2")
    trainer = Trainer(config, RedTask())
    trainer.run()
    key = (3, "test", TEXT, 0)
    with trainer.base.weights(trainer.ema.values):
        ours = generate(trainer.base, [TEXT], [key], 4, 3.0)[0].numpy()
    with trainer.base.reference():
        untrained = generate(trainer.base, [TEXT], [key], 4, 3.0)[0].numpy()

    pipe = StableDiffusion3Pipeline.from_pretrained(pipeline_folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(Path(config.run, "final", "lora"))
    images = pipe(
        TEXT,
        negative_prompt="",
        guidance_scale=3.0,
        num_inference_steps=4,
        height=64,
        width=64,
        max_sequence_length=config.model.text_length,
        latents=normal(trainer.base.latent_shape, *key)[None],
        output_type="np",
    ).images
    theirs = (images[0] * 255).round().astype(np.uint8)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.abs(ours.astype(int) - untrained).max() > 10


@pytest.fixture
def base(make_config):
    """The tiny model with adapters that have some effect, as if trained."""
    base = SD3(make_config().model, CPU, 0)
    for name, parameter in base.trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return base


def test_what_is_written_is_read_again(base, tmp_path):
    lora.write(tmp_path / "lora", base.trained, base.config)
    again = lora.read(tmp_path / "lora")
    assert (again.rank, again.alpha) == (4, 8)
    values = again.values(SD3(again.model_config(base.config), CPU, 1))
    assert values.keys() == base.trained.keys()
    assert all(torch.equal(values[name], base.trained[name]) for name in values)


def test_a_file_is_as_good_as_its_folder(base, released, tmp_path):
    lora.write(tmp_path / "own", base.trained, base.config)
    for folder, name in ((tmp_path / "own", lora.DIFFUSERS_FILE), (released[0], lora.PEFT_FILES[1])):
        one, other = (lora.read(lora.locate(str(place))) for place in (folder, folder / name))
        assert (one.rank, one.alpha, one.digest) == (other.rank, other.alpha, other.digest)
        assert all(torch.equal(one.weights[key], other.weights[key]) for key in one.weights)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("weights.safetensors", "it is a file: name the diffusers folder that it belongs to"),
        ("sub", "name a diffusers folder"),
        ("/nowhere/model", "there is no such folder: name a diffusers folder, or a repository like OWNER/NAME"),
        ("./owner/model", "there is no such folder"),
        ("missing", "there is no such folder"),
        ("owner/model", r"download it with `hf download owner/model` \(gated"),
    ],
)
@pytest.mark.filterwarnings("error")  # they would be lines of their own
def test_what_to_do_about_a_model_that_is_not_there(make_config, tmp_path, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("weights.safetensors").write_bytes(b"weights")
    Path("sub").mkdir()
    with pytest.raises(
        UserError, match=rf"^model.path={name}: no SD3 pipeline could be loaded \([^.]*[^)]*\); {told}"
    ) as error:
        pipeline_class(replace(make_config().model, path=name))
    assert "\n" not in str(error.value) and ". " not in str(error.value)


def test_what_a_run_has_learnt_so_far_can_be_judged(make_config):
    config = make_config(
        "train.ema_every=1", "train.ema_decay=0.5", "train.checkpoint_every=1", "train.epochs=3", "train.keep=9"
    )
    trainer, averages = Trainer(config, RedTask()), []
    save = trainer.folder.save

    def saved(*given):
        averages.append({name: value.cpu().clone() for name, value in trainer.ema.values.items()})
        save(*given)

    trainer.folder.save = saved
    trainer.run()
    run = Path(config.run)
    places = [*trainer.folder.checkpoints(), run]
    assert len(places) == 3
    for place, average in zip(places, [*averages, load_file(run / "final" / "trained.safetensors")], strict=True):
        own = {name: value.cpu() for name, value in lora.read(lora.locate(str(place))).values(trainer.base).items()}
        assert own.keys() == average.keys() and all(torch.equal(own[name], average[name]) for name in own)
    assert not all(torch.equal(averages[0][name], load_file(places[0] / "trained.safetensors")[name]) for name in averages[0])
    (adapters,) = (places[0] / "lora").iterdir()
    assert not files.fault(places[0])
    adapters.write_bytes(b"")
    assert "lora/" in files.fault(places[0])


def test_a_released_lora_computes_what_it_did_where_it_was_trained(make_config, released):
    folder, model = released
    read_lora = lora.read(folder)
    assert (read_lora.rank, read_lora.alpha) == (3, 12)
    base = SD3(read_lora.model_config(make_config().model), CPU, 0)
    latents, sigma = normal((2, *base.latent_shape), 1), torch.tensor(0.6)
    embeds, pooled = base.encode([TEXT] * 2)
    with torch.no_grad():
        with base.weights(read_lora.values(base)):
            ours = base.velocity(latents, sigma, [TEXT] * 2, 1.0)
        theirs = model(latents, embeds, pooled, (1000 * sigma).expand(2), return_dict=False)[0]
        plain = base.velocity(latents, sigma, [TEXT] * 2, 1.0)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert (ours - plain).abs().max() > 0.01


def test_calibrate_puts_a_row_beside_the_others(star, few_prompts, released, pipeline_folder, monkeypatch):  # noqa: F811
    folder, _ = released
    fast = [*FAST.split(), f"model.path={pipeline_folder}", "scale=mini", "task=geneval"]
    code, out, err = star("calibrate", *fast, f"lora={folder}", "name=flow_grpo@released")
    assert code == 0, err
    assert "flow_grpo@released, geneval-v1/mini-2/mini" in out and "0.9408" not in out  # of another model
    rows = read(Path("runs/results/mini/geneval.csv"))
    assert {row.method for row in rows} == {"flow_grpo@released"}
    assert {(row.updates, row.seed) for row in rows} == {(0, 1000)}
    monkeypatch.setattr("star.calibrate.is_mini", lambda protocol: False)  # as of the published model
    code, out, _ = star("calibrate", *fast, f"lora={folder}")
    assert code == 0 and "0.9408" in out and "0.95" in out
    assert {row.method for row in read(Path("runs/results/mini/geneval.csv"))} == {"flow_grpo@released", "lora@released"}


def test_what_is_no_lora_is_one_line(released, make_config, tmp_path, monkeypatch):
    folder, _ = released
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="download it with `hf download jieliu/nothing`"):
        lora.locate("jieliu/nothing")
    with pytest.raises(UserError, match="holds no LoRA"):
        lora.read(tmp_path)
    other = lora.read(folder)
    with pytest.raises(UserError, match="does not fit .*: it has other modules, another rank, or is of another base model"):
        other.values(SD3(make_config().model, CPU, 0))
    base = SD3(other.model_config(make_config().model), CPU, 0)
    assert other.values(base).keys() == base.trained.keys()
    wider = replace(other, weights={name: value.repeat(1, 2) for name, value in other.weights.items()})  # of a wider base
    with pytest.raises(UserError, match="does not fit"):
        wider.values(base)
    settings = json.loads((folder / "adapter_config.json").read_text())
    for name, value in NOT_PLAIN.items():
        (folder / "adapter_config.json").write_text(json.dumps(settings | {name: value}))
        with pytest.raises(UserError, match=f"it has {name}; only plain LoRA"):
            lora.read(folder)
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"r": 4}))
    with pytest.raises(UserError, match=r"has an adapter of shape \(3, \d+\), but its settings say rank 4"):
        lora.read(folder)
    for alpha in (22.6, 0, None):
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": alpha}))
        with pytest.raises(UserError, match=f"its rank and alpha are 3 and {alpha}, not whole numbers"):
            lora.read(folder)
    for content in (
        "version https://git-lfs.github.com/spec/v1",
        "[" * 100_000,
        '[["r", 3]]',
        '{"r": 3, "r": 3, "lora_alpha": 4}',
    ):
        (folder / "adapter_config.json").write_text(content)
        with pytest.raises(UserError, match="its settings are not a JSON object"):
            lora.read(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="no adapter_config.json"):
        lora.read(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        lora.read(folder)


def test_adapters_of_zeros_are_refused(released):
    """As where a download broke off and was filled up with zeros; only some B may be zeros, where no gradient came."""
    file = released[0] / lora.PEFT_FILES[1]
    weights = load_file(file)
    down, *up = [next(name for name in weights if "lora_A" in name), *[name for name in weights if "lora_B" in name]]
    for empty, told in (([down], "lora_A"), (up, "lora_B"), (up[1:], "")):
        save_file({name: value * (name not in empty) for name, value in weights.items()}, file)
        if told:
            with pytest.raises(UserError, match=f"has nothing but zeros in .*{told}"):
                lora.read(file)
        else:
            assert lora.read(file).rank == 3
    save_file({**weights, down.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(3)}, file)
    with pytest.raises(UserError, match="lora_magnitude_vector; expected adapters of an SD3 transformer alone"):
        lora.read(file)


def test_equal_adapters_are_equal_bytes_whatever_order_the_writer_takes(base, tmp_path):
    """Its maps have an order that changes from call to call."""
    files = []
    for number in range(8):
        base.export(tmp_path / str(number), base.trained)
        files.append(tmp_path / str(number) / lora.DIFFUSERS_FILE)
    assert len({file.read_bytes() for file in files}) == 1
    assert len({lora.read(file.parent).digest for file in files}) == 1
    read_again = lora.read(files[0].parent).values(base)
    assert all(torch.equal(read_again[name], value) for name, value in base.trained.items())


def test_two_loras_of_one_name_do_not_replace_each_other(star, few_prompts, released, pipeline_folder, tmp_path):  # noqa: F811
    for name in ("one", "two"):
        shutil.copytree(released[0], tmp_path / name / "lora")
    weights = tmp_path / "two" / "lora" / "adapter_model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(weights).items()}, weights)
    words = ["calibrate", "scale=mini", "task=geneval", *FAST.split(), f"model.path={pipeline_folder}"]
    assert star(*words, "lora=one/lora")[0] == 0
    before = Path("runs/results/mini/geneval.csv").read_bytes()
    code, _, told = star(*words, "lora=two/lora")
    assert code == 2 and "has rows of lora@lora already, of another LoRA or other settings; choose another name" in told
    assert Path("runs/results/mini/geneval.csv").read_bytes() == before
    assert star(*words, "lora=one/lora")[0] == 0
    assert star(*words, "lora=two/lora", "name=second")[0] == 0
    names = {row.method for row in read(Path("runs/results/mini/geneval.csv"))}
    assert names == {"lora@lora", "second"}
    code, _, told = star(*words, "lora=one/lora", "name=second")
    assert code == 2 and "has rows of second already" in told, "a name that was chosen, too"
    assert star(*words, "lora=one/lora", "name=flow_grpo@released")[0] == 0
    code, _, told = star(*words, "lora=two/lora", "name=flow_grpo@released")
    assert code == 2 and "has rows of flow_grpo@released already" in told
    trained = "is what this project trains"
    for name, fault in (("base", "is no name for results"), ("star", trained), ("Flow_GRPO+x", trained)):
        code, _, told = star(*words, "lora=one/lora", f"name={name}")
        assert code == 2 and f"name={name} {fault}" in told
    assert {row.method for row in read(Path("runs/results/mini/geneval.csv"))} == names | {"flow_grpo@released"}


def test_a_lora_of_another_base_is_named_as_its_base_is(tmp_path, monkeypatch):
    """Or it would be compared with the base of SD3.5 Medium."""
    named = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lora, "locate", lambda source: source)
    monkeypatch.setattr(lora, "read", lambda place: SimpleNamespace(digest="0"))
    monkeypatch.setattr("star.calibrate.runs.released", lambda config, adapters, method: named.append(method) or [])
    for words, name in ((["model=sd35_large"], None), (["model=sd35_large"], "mine+sd35_large"), (["variant=nocfg"], "mine")):
        calibrate(["task=geneval", *words], "some/Z.safetensors", name)
        assert family(named[-1]) == family(label(load(["scale=paper", *words]), "base")) != ""
    calibrate(["task=geneval"], "some/Z.safetensors")
    assert named == ["lora@Z+sd35_large", "mine+sd35_large", "mine+nocfg", "lora@Z"]


class Products(TorchDispatchMode):
    """Counts the operators that multiply matrices, by name."""

    def __init__(self):
        super().__init__()
        self.made = Counter()

    def __torch_dispatch__(self, called, types, args=(), kwargs=None):
        if called.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.made[called.overloadpacket.__name__] += 1
        return called(*args, **(kwargs or {}))


def test_rollouts_and_updates_make_the_same_products_in_half_precision(make_config, monkeypatch):
    """On a GPU another operator is another kernel, whose digits may differ, and ratios would not be 1.

    Without its cache autocast's copies of adapters need no gradient in rollouts.
    """
    monkeypatch.setattr(torch, "is_autocast_cache_enabled", lambda: False)
    base, texts, made = SD3(make_config("model.dtype=bfloat16").model, CPU, 0), ["a red circle", "a blue ring"], []
    base.prepare(texts, 1.0)
    latents = normal((2, *base.latent_shape), "latents")
    for learns in (False, True):
        with torch.set_grad_enabled(learns), Products() as products:
            base.velocity(latents, torch.tensor(0.5), texts, 1.0)
        made.append(products.made)
    assert made[0] == made[1] and made[0]["mm"] > 0
