"""The gradients are the trainer's, and what is said of them is what the formulas say."""

import csv
import itertools
import math
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_task import RedTask
from safetensors.torch import load_file, save_file

from star import config as settings
from star.bench import gradient, signal
from star.bench.gradient import Gradients
from star.bench.words import weights_file
from star.cli import main
from star.common.errors import RunStopped, UserError
from star.common.machine import machine
from star.common.noise import normal
from star.method.arms import ARMS
from star.method.objective import advantages, log_prob_map
from star.method.sampling import transition
from star.records.code import commit
from star.training.rollout import trained_steps
from star.training.trainer import Trainer

NAMES = ("flow_grpo", "star", "star_shuffled", "oracle")
EXTENDING = Path(__file__).parents[1] / "extending"


class PlacedTask(RedTask):
    """The upper half is judged."""

    def places(self, prompts, images):
        return [np.arange(64)[:, None].repeat(64, 1) < 32] * len(images)


def fill(trainer):
    """Adapters that have an effect, so that both factors have a gradient."""
    for name, parameter in trainer.base.trained.items():
        if "lora_B" in name:
            parameter.data.copy_(0.2 * normal(tuple(parameter.shape), name))
    return trainer


def methods(make_config, *words, names=NAMES):
    return {name: make_config(*words, f"method={name}").method for name in names}


def apart(own, other):
    return ((own - other).norm() / other.norm()).item()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["sampling.same_latent=false", "sampling.guidance=3", "method.mix=1", "method.cap=3", "train.adv_clip=0.5"],
        ["train.guard=true", "sampling.window=0", "model.gradient_checkpointing=true"],
        ["sampling.kind=cps", "method.normalise=step", "method.steps=equal"],
        ["scale=paper", "model.resolution=64", "model.text_length=16", "sampling.window=0", "train.beta=0"],
    ],
    ids=["default", "guidance", "guard", "cps", "paper"],
)
def test_every_arms_gradient_is_what_the_trainer_accumulates(make_config, monkeypatch, words):
    words = [*words, "train.updates_per_epoch=1", "model.kernels=torch"]
    bench = fill(Gradients(make_config(*words, "method=star"), methods(make_config, *words), PlacedTask()))
    bench._scale = bench.scaler.get_scale()  # half precision rounds as the trainer's, whose scale is of an update's loss
    bench.epoch(1)
    for arm in NAMES:
        trainer, grads = Trainer(make_config(*words, f"method={arm}"), PlacedTask(), bench.base), {}

        def step(self, epoch, kept=grads):
            kept.update({name: p.grad / self.scaler.get_scale() for name, p in self.base.trained.items()})
            self.optimizer.zero_grad()
            return 0.0

        monkeypatch.setattr(Trainer, "step", step)
        trainer.epoch(1)
        assert grads.keys() == bench.gradients[arm].keys() and any(value.any() for value in grads.values())
        own = torch.cat([bench.gradients[arm][name].sum(0).flatten() for name in grads])
        assert apart(own, torch.cat([grads[name].flatten() for name in grads])) < 1e-5, arm
    star, flow = (torch.cat([p.flatten() for p in bench.gradients[arm].values()]) for arm in ("star", "flow_grpo"))
    assert apart(star, flow) > 0.01


def test_each_steps_gradient_is_that_of_the_weighted_log_probabilities(make_config):
    """By the formula: at ratio 1 the loss of a step has the gradient of - mean A W log p, rollout by rollout."""
    config = make_config("method=star", "sampling.guidance=2")
    bench, kept = fill(Gradients(config, methods(make_config), PlacedTask())), []
    drawn = bench.rollouts
    bench.rollouts = lambda *given: kept.append(drawn(*given)) or kept[0]
    bench.epoch(0)
    rewards = torch.cat([torch.tensor([v["reward"] for v in batch.verdicts["geneval"]()]) for batch in kept[0]])
    samples = [s for batch in kept[0] for s in batch.trajectory.samples]
    gains = advantages(rewards, [s.prompt for s in samples], "batch")
    assert bench.steps == trained_steps(config.sampling, 0, 0) and len(bench.steps) == 2
    for arm in ("star", "flow_grpo"):
        for row, step in enumerate(bench.steps):
            total = 0
            for batch in kept[0]:
                trajectory, weights = batch.trajectory, bench._weights[arm][batch.number]
                for i, s in enumerate(trajectory.samples):
                    x, following = trajectory.latents[row, i : i + 1], trajectory.latents[row + 1, i : i + 1]
                    v = bench.base.velocity(x, bench.schedule[step], [bench.task.train[s.prompt].text], 2.0)
                    moved = transition(x, v, bench.schedule, step, "sde", config.sampling.noise_level)
                    logp = log_prob_map(following, moved.mean, moved.std, "sde", "position")[0]
                    w = torch.ones(8, 8) if weights is None else weights[row, i]
                    wide = torch.stack([w[y // 2, u // 2] for y in range(16) for u in range(16)]).view(16, 16)
                    total = total - gains[samples.index(s)] * (wide * logp).mean() / (len(samples) * 2)
            expected = torch.autograd.grad(total, list(bench.base.trained.values()))
            own = torch.cat([part[row].flatten() for part in bench.gradients[arm].values()])
            assert apart(own, torch.cat([part.flatten() for part in expected])) < 1e-4, (arm, step)


def test_a_map_that_cannot_be_made_is_refused_before_any_rollout(make_config, monkeypatch):
    """Of an arm that is not the one whose settings draw the rollouts, too."""
    monkeypatch.syspath_prepend(EXTENDING)
    monkeypatch.setattr("own_arm.peaks", lambda relevance, rollouts: relevance[:, :1])
    own = make_config("method.name=own", "method.arm=own_arm:peaks").method
    with pytest.raises(UserError, match="own_arm:peaks"):
        Gradients(make_config("method=star"), methods(make_config) | {"own_arm:peaks": own}, PlacedTask())


def test_arms_share_rollouts_and_learn_nothing(make_config):
    config = make_config("method=star")
    bench = fill(Gradients(config, methods(make_config), PlacedTask()))
    before = {name: p.detach().clone() for name, p in bench.base.trained.items()}
    figures = bench.epoch(2)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in bench.base.trained.items())
    assert figures["reward"] == Trainer(config, PlacedTask(), bench.base).epoch(2)["reward"]
    assert bench.config.method.arm == "star"
    assert bench._weights["flow_grpo"] == {0: None, 1: None}


def test_a_steps_graph_is_gone_before_the_next_is_made(make_config, monkeypatch):
    """Two of them do not fit into a GPU."""
    bench = fill(Gradients(make_config("method=star"), methods(make_config), PlacedTask()))
    losses, made = Gradients._losses, []

    def watched(self, *given):
        assert not any(loss() is not None for loss in made)
        found = losses(self, *given)
        made.extend(weakref.ref(loss) for loss in found.values())
        return found

    monkeypatch.setattr(Gradients, "_losses", watched)
    bench.epoch(0)
    assert len(made) > 2 * len(NAMES)


def test_a_scale_that_is_too_large_is_halved(make_config, monkeypatch):
    bench = fill(Gradients(make_config("method=star"), methods(make_config, names=["star"]), PlacedTask()))
    bench.epoch(0)
    plain, bench._scale = bench.gradients, 2.0**140
    bench.epoch(0)
    assert 1 < bench._scale < 2.0**140
    for name, value in plain["star"].items():
        torch.testing.assert_close(bench.gradients["star"][name], value)
    bench._scale = 1.0
    losses = Gradients._losses
    monkeypatch.setattr(Gradients, "_losses", lambda *given: {arm: loss * math.nan for arm, loss in losses(*given).items()})
    with pytest.raises(RunStopped, match="the gradient is not finite in epoch 1"):
        bench.epoch(0)


# What is said of them.

PARAMETERS = {
    "transformer_blocks.0.attn.to_q.lora_A.default.weight": (2, 3),
    "transformer_blocks.0.attn.to_q.lora_B.default.weight": (3, 2),
    "transformer_blocks.11.attn.to_q.lora_A.default.weight": (2, 2),
    "proj_out.weight": (4,),
}


def made(folder, arms=3, epochs=4, signal_size=1.0):
    """Files of gradients of two steps each, the first of which is 0 or 1: arm -> epoch -> name -> step -> values."""
    files, values = [], []
    for arm in range(arms):
        files.append([])
        values.append([])
        for epoch in range(epochs):
            own, first = {}, epoch % 2
            for name, shape in PARAMETERS.items():
                noise = normal((2, *shape), arm, epoch, name)
                own[name] = signal_size * (1 + arm * normal((2, *shape), "bias", name) / 4) + noise
            file = folder / f"{arm}-{epoch}.safetensors"
            held = {name: value for name, value in own.items() if (epoch, name) != (1, "proj_out.weight")}
            save_file(held, file, {"steps": f"{first},{first + 1}"})
            files[-1].append(file)
            values[-1].append({name: {first: v[0].double(), first + 1: v[1].double()} for name, v in held.items()})
    return files, values


def flat(own, names=PARAMETERS, steps=(0, 1, 2)):
    """The sum over steps, with 0 for what is not there."""
    parts = []
    for name in names:
        nothing = torch.zeros(PARAMETERS[name], dtype=torch.float64)
        parts.append(sum((own.get(name, {}).get(step, nothing) for step in steps), nothing).flatten())
    return torch.cat(parts).numpy()


def test_inner_products_are_those_of_the_parts(tmp_path):
    files, values = made(tmp_path)
    found = signal.inner_products(files, 1)
    a, b = ([name for name in PARAMETERS if f"lora_{factor}" in name] for factor in "AB")
    parts = {"all": [*PARAMETERS], "A": a, "B": b, "block 0": [*PARAMETERS][:2], "block 11": [*PARAMETERS][2:3]}
    expected = {part: lambda own, names=names: flat(own, names) for part, names in parts.items()}
    expected |= {f"step {step}": lambda own, step=step: flat(own, steps=[step]) for step in range(3)}
    sizes = np.sqrt(np.mean([flat(own) ** 2 for own in values[1]], axis=0))
    expected[signal.ADAM] = lambda own: flat(own) / sizes
    assert found.keys() == expected.keys()
    for part, vector in expected.items():
        assert found[part].shape == (3, 4, 3, 4)
        for i, j, k, m in itertools.product(range(3), range(4), range(3), range(4)):
            assert found[part][i, j, k, m] == pytest.approx(vector(values[i][j]) @ vector(values[k][m]), abs=1e-9), part


def test_parts_without_a_gradient_are_left_out_and_where_it_is_0_there_is_no_metric_of_adams(tmp_path):
    files, values = made(tmp_path)
    for file in itertools.chain(*files):
        held = load_file(file)
        save_file({name: value * ("lora_B" in name) for name, value in held.items()}, file, {"steps": "0,1"})
    found = signal.inner_products(files, 0)
    assert set(found) == {"all", "B", "block 0", "step 0", "step 1", signal.ADAM}
    assert np.array_equal(found["all"], found["B"]) and np.isfinite(found[signal.ADAM]).all()


def test_few_epochs_have_no_metric_of_adams(tmp_path):
    files, _ = made(tmp_path, epochs=signal.EPOCHS_FOR_ADAM - 1)
    assert signal.ADAM not in signal.inner_products(files, 0)


def naive_figures(gradients, reference, kept):
    """Every metric of every arm by loops, from gradients[arm][epoch]."""

    def cosine(x, y):
        return float(x @ y / math.sqrt(x @ x) / math.sqrt(y @ y))

    def mean(arm, other):
        pairs = [(i, j) for i in kept for j in kept if i != j]
        return sum(cosine(gradients[arm][i], gradients[other][j]) for i, j in pairs) / len(pairs)

    base, rows = mean(reference, reference), []
    for arm in range(len(gradients)):
        own, cross = mean(arm, arm), mean(arm, reference)
        images = own / (1 - own) / (base / (1 - base))
        rows.append([own, cross, cross / base, cross / math.sqrt(own * base), images])
    return np.array(rows)


def test_figures_are_those_of_loops(tmp_path):
    files, values = made(tmp_path)
    shared = signal.cosines(signal.inner_products(files, 0)["all"])
    gradients = [[flat(own) for own in row] for row in values]
    for reference in (0, 2):
        np.testing.assert_allclose(signal.figures(shared, reference), naive_figures(gradients, reference, range(4)))
    assert signal.figures(shared, 0)[0, 2:].tolist() == pytest.approx([1, 1, 1])


def test_signal_and_noise_are_told_apart():
    """Arms of one signal: the second has a quarter of the noise's mean square, the third another direction beside."""
    size, epochs = 400, 60
    rng = np.random.default_rng(0)
    common, aside = np.linalg.qr(rng.normal(size=(size, 2)))[0].T * 20
    noise = rng.normal(size=(3, epochs, size)) * np.sqrt(np.array([4, 1, 4]))[:, None, None]
    rows = (np.array([common, common, 0.6 * common + 0.8 * aside])[:, None] + noise).reshape(3 * epochs, size)
    found = signal.figures(signal.cosines((rows @ rows.T).reshape(3, epochs, 3, epochs)), 0)
    # s^2 = 400, noise 1600, 400 and 1600: cosines 1/5, 1/2, 1/5
    assert found[:, 0] == pytest.approx([0.2, 0.5, 0.2], abs=0.02)
    assert found[:, 2] == pytest.approx([1, math.sqrt(0.5 / 0.2), 0.6], abs=0.1)
    assert found[:, 3] == pytest.approx([1, 1, 0.6], abs=0.05)
    assert found[:, 4] == pytest.approx([1, 4, 1], abs=0.5)


def test_errors_and_differences_are_of_epochs_left_out(tmp_path):
    arms = ("flow_grpo", "star", "star_shifted")
    files, values = made(tmp_path, epochs=5)
    found = {figure[:3]: figure[3:] for figure in signal.told(signal.inner_products(files, 0), arms)}
    gradients = [[flat(own) for own in row] for row in values]
    whole = naive_figures(gradients, 0, range(5))
    without = np.stack([naive_figures(gradients, 0, [i for i in range(5) if i != k]) for k in range(5)])
    stderr = np.sqrt(4 / 5 * ((without - without.mean(0)) ** 2).sum(0))
    for place, metric in enumerate(signal.METRICS):
        for i, arm in enumerate(arms):
            assert found[arm, "all", metric] == pytest.approx((whole[i, place], stderr[i, place]))
        for label, i, j in (("star - star_shifted", 1, 2), ("star - flow_grpo", 1, 0)):
            apart = without[:, i, place] - without[:, j, place]
            error = math.sqrt(4 / 5 * ((apart - apart.mean()) ** 2).sum())
            assert found[label, "all", metric] == pytest.approx((whole[i, place] - whole[j, place], error))
        assert ("star", "all", f"adam_{metric}") in found
    by_block = {arm for arm, part, _ in found if part.startswith("block")}
    assert by_block == {"flow_grpo", "star", "star - flow_grpo"}
    assert {part for _, part, _ in found} == {"all", "A", "B", "block 0", "block 11", "step 0", "step 1", "step 2"}


def test_epochs_without_a_gradient_do_not_count():
    rows = np.random.default_rng(1).normal(size=(2, 5, 30)) + 1
    rows[:, 2] = 0
    shared = signal.cosines(np.einsum("aix,bjx->aibj", rows, rows))
    np.testing.assert_allclose(signal.figures(shared, 0), naive_figures(rows, 0, [0, 1, 3, 4]))


# The command.


COMMAND, WORDS = gradient, ("task=pickscore", "arms=flow_grpo,star,oracle", "epochs=3")


def table(file="runs/results/mini/gradient.csv"):
    with open(file) as lines:
        return list(csv.DictReader(lines))


def test_the_table_says_what_was_measured(measured):
    shown = gradient.run(measured)
    rows = table()
    assert list(rows[0]) == [*gradient.COLUMNS, "machine"] and {row["machine"] for row in rows} == {machine()}
    assert {row["task"] for row in rows} == {"pickscore"} and {row["weights"] for row in rows} == {"initial"}
    assert {(row["epochs"], row["images"], row["commit"]) for row in rows} == {("3", "48", commit())}
    assert {row["arm"] for row in rows} == {"flow_grpo", "star", "oracle", "oracle - star", "star - flow_grpo"}
    parts = {row["part"] for row in rows}
    assert {"all", "B", "block 0", "block 2", "step 0"} <= parts and "A" not in parts  # A has no gradient while B is 0
    found = {(row["arm"], row["part"], row["metric"]): (float(row["value"]), row["stderr"]) for row in rows}
    assert found["flow_grpo", "all", "ratio"] == (1.0, "0")
    assert found["star", "all", "self_cosine"] == found["star", "B", "self_cosine"]
    assert -1 < found["star", "all", "self_cosine"][0] < 1 and float(found["star", "all", "self_cosine"][1]) > 0
    assert shown.title.startswith("pickscore, weights: initial; 3 epochs, 48 images") and "gradient.csv" in shown.below
    assert [row[0] for row in shown.rows] == ["flow_grpo", "star", "oracle", "oracle - star", "star - flow_grpo"]
    assert re.fullmatch(r"−?\d\.\d{3}±\d\.\d{3}", shown.rows[1][1]) and len(shown.rows[0]) == len(shown.columns) == 5
    # Beside it are the cosines that it is made of: three pairs of epochs of an arm, and six with the reference.
    raw = pd.read_csv("runs/results/mini/gradient_cosines.csv.gz", dtype={"config_hash": str})  # some are digits alone
    assert raw.groupby(["arm", "other"]).size().to_dict() == {
        **{(arm, arm): 3 for arm in ("flow_grpo", "star", "oracle")},
        **{(arm, "flow_grpo"): 6 for arm in ("star", "oracle")},
    }
    means = raw.groupby(["arm", "other"])["cosine"].mean()
    assert found["star", "all", "self_cosine"][0] == pytest.approx(means["star", "star"], abs=2e-6)
    assert found["oracle", "all", "cosine"][0] == pytest.approx(means["oracle", "flow_grpo"], abs=2e-6)
    assert set(raw["config_hash"]) == {rows[0]["config_hash"]} and not raw.duplicated(list(raw)[:7]).any()


def test_what_was_interrupted_goes_on_and_arms_and_epochs_are_added(measured, monkeypatch):
    whole = [*measured, "out=whole.csv"]
    files = {f.relative_to("runs"): load_file(f) for f in Path("runs").rglob("*.safetensors")}
    assert len(files) == 9
    for file in Path("runs").rglob("epoch-*/*.safetensors"):
        file.unlink()
    epoch, begun = Gradients.epoch, []

    def counted(self, number, *given):
        begun.append((number, *self.methods))
        if len(begun) == 2:
            raise KeyboardInterrupt
        return epoch(self, number, *given)

    monkeypatch.setattr(Gradients, "epoch", counted)
    some = [word.replace("oracle", "star_shifted").replace("whole.csv", "some.csv") for word in whole]
    with pytest.raises(KeyboardInterrupt):
        gradient.run([*some, "epochs=2"])
    gradient.run([*some, "epochs=2"])
    gradient.run(whole)
    some, all = ("flow_grpo", "star", "star_shifted"), ("flow_grpo", "star", "oracle")
    assert begun == [(0, *some), (1, *some), (1, *some), (0, "oracle"), (1, "oracle"), (2, *all)]
    for file, values in files.items():
        again = load_file("runs" / file)
        assert again.keys() == values.keys() and all_close(again, values)
    begun.clear()
    monkeypatch.setattr(gradient, "Gradients", lambda *given: pytest.fail("loaded"))
    gradient.run(whole)
    next(iter(Path("runs").rglob("epoch-0001/star.safetensors"))).write_bytes(b"")
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        gradient.run(whole)


def test_gradients_that_would_fill_the_disk_are_not_begun(words, kept, monkeypatch):
    free, asked = [0], [*words[:-2], "arms=flow_grpo,star", "epochs=2"]
    monkeypatch.setattr(gradient, "free_bytes", lambda folder: free[0])
    with pytest.raises(UserError, match=r"4 gradients take .* GiB in .*gradient.*, where 0.0 are free; make room"):
        gradient.run(asked)
    assert not list(Path("runs").rglob("*.safetensors"))
    files = [file for epoch in (0, 1) for arm in ("flow_grpo", "star") for file in kept.rglob(f"epoch-000{epoch}/{arm}.*")]
    written = sum(value.nbytes for file in files for value in load_file(file).values())
    free[0] = written - 1
    with pytest.raises(UserError, match="make room"):
        gradient.run(asked)
    free[0] = int(1.25 * written)  # some parameters of B have no gradient either
    gradient.run(asked)
    assert written == sum(v.nbytes for file in Path("runs").rglob("*.safetensors") for v in load_file(file).values())


def all_close(own, other):
    return all(torch.allclose(own[name], value, rtol=1e-5, atol=1e-9) for name, value in other.items())


def test_other_settings_have_rows_beside_and_the_same_ones_replace_theirs(measured, monkeypatch):
    words = [*measured, "arms=flow_grpo,star"]
    gradient.run([*words, "epochs=2"])
    two = table()
    gradient.run(words)
    three = table()
    assert {row["epochs"] for row in three} == {"3"} and {row["config_hash"] for row in three} == {two[0]["config_hash"]}
    assert any(row["stderr"] for row in three) and not any(row["stderr"] for row in two)  # two leave one: no pair
    gradient.run([word for word in words if not word.startswith("arms=")] + ["arms=flow_grpo,spatial"])
    assert {tuple(row.values()) for row in table()} > {tuple(row.values()) for row in three}  # an arm more
    assert {row["arm"] for row in table()} == {row["arm"] for row in three} | {"spatial"}
    three = table()
    # No arm's figures become those of fewer epochs than they were, or than the others'.
    with pytest.raises(UserError, match=r"epochs=2: .*gradient.csv has figures of 3 with these settings; say epochs=3"):
        gradient.run([*words, "epochs=2"])
    with pytest.raises(
        UserError, match="epochs=4: .* has fewer of other arms .*; measure them too, arms=flow_grpo,star,spatial"
    ):
        gradient.run([*words, "epochs=4"])
    assert table() == three
    gradient.run([*words, "epochs=2", "method.mix=1"])
    both = table()
    assert both[: len(three)] == three and len({row["config_hash"] for row in both}) == 2
    lines = Path("runs/results/mini/gradient.csv").read_text().replace(two[0]["config_hash"], "12345e678901")
    Path("runs/results/mini/gradient.csv").write_text(lines)
    gradient.run([*words, "epochs=2"])
    assert {row["config_hash"] for row in table()} > {"12345e678901", two[0]["config_hash"]}
    Path("other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"other.csv is no table of star bench gradient; name another file with out=\.\.\."):
        gradient.run([*words, "out=other.csv"])
    Path("more_cosines.csv.gz").write_text("a,b\n1,2\n")
    monkeypatch.setattr(gradient, "measure", lambda *given: pytest.fail("measured"))
    with pytest.raises(UserError, match=r"more_cosines.csv.gz is no table of star bench gradient"):
        gradient.run([*words, "out=more.csv"])


def test_at_other_weights_both_factors_are_told(words, monkeypatch):
    trainer = fill(Trainer(settings.load([word for word in words if not word.startswith(("arms", "epochs"))])))
    run = Path("runs/mine")
    trainer.folder.path = run
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    trainer.folder.save(3, trainer.base.trained, {}, {})
    words = [*words, "epochs=2", "arms=flow_grpo,star"]
    gradient.run([*words, f"weights={run}"])
    rows = table()
    assert {row["weights"] for row in rows} == {"runs/mine/checkpoints/epoch-000003/trained.safetensors"}
    assert {"all", "A", "B"} <= {row["part"] for row in rows}
    (run / "final").mkdir()
    (run / "checkpoints/epoch-000003/trained.safetensors").rename(run / "final/trained.safetensors")
    assert weights_file(str(run)) == run / "final/trained.safetensors"
    assert weights_file(str(run / "final")) == weights_file(str(run / "final/trained.safetensors"))
    monkeypatch.setattr(Gradients, "epoch", lambda *given: pytest.fail("measured"))
    gradient.run([*words, f"weights={run}"])  # the same weights elsewhere
    save_file({"other": torch.ones(1)}, "other.safetensors")
    with pytest.raises(UserError, match="other.safetensors holds other weights than this model trains"):
        gradient.run([*words, "weights=other.safetensors"])


def test_a_map_of_ones_own_and_an_arm_with_a_setting_of_its_own_are_measured(words, monkeypatch):
    monkeypatch.syspath_prepend(EXTENDING)
    arms = ("flow_grpo", "own_arm:peaks", "star", "star@mix=0", "star@mix=1")
    gradient.run([*words, f"arms={','.join(arms)}", "epochs=2"])
    rows = table()
    differences = {"star - flow_grpo", "star@mix=0 - star", "star@mix=1 - star"}
    assert {row["arm"] for row in rows} == {*arms, *differences}
    found = [float(next(r["value"] for r in rows if r["arm"] == arm and r["metric"] == "self_cosine")) for arm in arms]
    assert found[3] == pytest.approx(found[0]) and len({round(value, 6) for value in found}) == 4  # without its map


def test_what_was_measured_before_is_of_the_code_and_machine_of_then(words, monkeypatch, tmp_path):
    """And a map of one's own that has changed since is another one."""
    monkeypatch.syspath_prepend(tmp_path)
    Path("mine.py").write_text("def peaks(relevance, rollouts):\n    return relevance.square()\n")
    monkeypatch.setattr("star.training.trainer.commit", lambda: "first")
    gradient.run([*words, "arms=flow_grpo,star,mine:peaks", "epochs=2"])
    before = {row["value"] for row in table() if row["arm"] == "mine:peaks"}
    monkeypatch.setattr("star.training.trainer.commit", lambda: "second")
    monkeypatch.setattr("star.training.trainer.machine", lambda processes: "GPU")
    Path("mine.py").write_text("def peaks(relevance, rollouts):\n    return relevance.sqrt()\n")
    monkeypatch.delitem(sys.modules, "mine")
    gradient.run([*words, "arms=flow_grpo,star,mine:peaks,spatial", "epochs=2"])
    by = {row["arm"]: (row["commit"], row["machine"]) for row in table()}
    assert by["star"] == by["star - flow_grpo"] == ("first", machine())
    assert by["spatial"] == by["mine:peaks"] == ("second", "GPU")
    assert {row["value"] for row in table() if row["arm"] == "mine:peaks"} != before
    gradient.run([*words, "arms=flow_grpo,star,mine:peaks,spatial", "epochs=3"])
    assert {row["commit"] for row in table() if row["arm"] == "star"} == {"first and second"}


def test_rewards_that_are_all_equal_have_no_gradient(words, monkeypatch):
    monkeypatch.setattr(gradient, "load_task", lambda config, name: RedTask(lambda images: [0.5] * len(images)))
    with pytest.raises(RunStopped, match="no epoch has a gradient: in every group all rewards are equal"):
        gradient.run([*words, "arms=flow_grpo,star", "epochs=2"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("epochs=1", "epochs=1 must be a number from 2 to 1,000"),
        ("epochs=many", "epochs=many must be a number"),
        ("arms=star", "arms=star: flow_grpo is missing"),
        ("arms=flow_grpo,star@mix", "arms=flow_grpo,star@mix: 'star@mix' has 'mix' behind '@'; write .* as star@mix=1"),
        ("arms=flow_grpo,star@mix=1@", "'star@mix=1@' has '' behind '@'; write a setting of the method, as star@mix=1"),
        ("arms=flow_grpo,star@=1", "'star@=1' has '=1' behind '@'"),
        ("arms=flow_grpo,moon", "no arm 'moon'; there are: flow_grpo, dense_uniform, .* and functions as my_module:my_map"),
        ("arms=flow_grpo,star@much=1", "method.much is no setting"),
        ("arms=flow_grpo,no_module:map", "there is no module 'no_module'"),
        ("method=star", "method=star: arms=A,B says which arms"),
        ("run=here", "gradients are kept in runs/gradient"),
        ("weights=missing", "weights=missing: there is no trained.safetensors"),
        ("train.lr=fast", "train.lr"),
        ("epoch=3", "epoch is no setting"),
        ("evaluators.pickscore=own_reward:Brightness", "method.arm=oracle needs to know .* brightness-v1 does not tell"),
    ],
)
def test_bad_words_are_one_line_before_a_model_is_loaded(words, word, message, monkeypatch):
    monkeypatch.syspath_prepend(EXTENDING)
    monkeypatch.setattr("star.models.load", lambda *given: pytest.fail("loaded"))
    with pytest.raises(UserError, match=message) as caught:
        gradient.run([*words, word])
    assert "\n" not in str(caught.value) and not Path("runs").exists()


def test_the_default_arms_are_in_the_table_and_so_are_the_pairs():
    assert set(gradient.ARMS_OF_INTEREST) <= set(ARMS)
    assert {arm for pair in signal.PAIRS for arm in pair} <= set(gradient.ARMS_OF_INTEREST)


def test_the_command_prints_its_table_and_errors_in_one_line(measured, monkeypatch, capsys):
    words = measured

    def call(*given):
        monkeypatch.setattr(sys, "argv", ["star", "bench", "gradient", *given])
        with pytest.raises(SystemExit) as exit:
            main()
        return exit.value.code, *capsys.readouterr()

    code, out, _ = call(*words, "epochs=2", "arms=flow_grpo,star")
    assert not code and "2 epochs, 32 images" in out and "star - flow_grpo" in out and "results/mini/gradient.csv" in out
    code, _, err = call(*(word for word in words if not word.startswith("epochs=")), "epochs=0")
    assert code == 2 and err.startswith("star: epochs=0 must be") and err.count("\n") == 1
    monkeypatch.setattr(Gradients, "epoch", interrupt)
    assert call(*words, "seed=1")[0] == 130
    code, out, _ = call("--help")
    assert not code and "Example: star bench gradient" in out and "weights=" in out


def interrupt(*given):
    raise KeyboardInterrupt
