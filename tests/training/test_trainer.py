import json
import math
import re
import threading
import time
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import combinations, count
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pytest
import torch
from fake_task import RedTask
from safetensors.torch import load_file

from star.common.errors import RunStopped, UserError
from star.config import to_yaml
from star.method.objective import policy_loss
from star.models.sd3 import SD3
from star.tasks import Prompt
from star.training import credit, guards, judging, learner, rollout
from star.training.judging import Beside
from star.training.learner import Learner
from star.training.rollout import MicroBatch, Sample, Trajectory, plan, sample, starts, thumbnails, trained_steps
from star.training.trainer import Trainer

ARMS = ("flow_grpo", "dense_uniform", "spatial", "temporal", "star", "star_shuffled", "star_random")


def lines(config) -> list[dict]:
    return [json.loads(line) for line in Path(config.run, "metrics.jsonl").read_text().splitlines()]


def weights(config) -> dict[str, torch.Tensor]:
    return load_file(Path(config.run, "final", "trained.safetensors"))


@pytest.mark.parametrize("method", ARMS)
def test_first_update_is_on_policy_and_second_is_not(make_config, method):
    config = make_config(f"method={method}", "train.epochs=1")
    trainer = Trainer(config, RedTask())
    before = {name: value.detach().clone() for name, value in trainer.base.trained.items()}
    trainer.run()
    (line,) = lines(config)
    assert line["ratio_error"] <= 1e-6
    assert line["approx_kl"] > 0
    assert line["updates"] == 2
    assert any(not torch.equal(before[name], value) for name, value in trainer.base.trained.items())


@pytest.mark.parametrize("method", ["flow_grpo", "star"])
def test_the_page_on_results_explains_every_logged_figure(make_config, method):
    page = (Path(__file__).parents[2] / "results" / "README.md").read_text()
    table = page.partition("`metrics.jsonl` in a run folder")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    explained = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    config = make_config(f"method={method}", "train.epochs=1")
    Trainer(config, RedTask()).run()
    (line,) = lines(config)
    not_here = {"reward/NAME", "eval/METRIC", "kl", "skipped_updates"}
    if method == "flow_grpo":
        not_here |= {"effective_share", "uniform_share", "weight_max", "overlap"}
        assert line["image_kl"] == line["approx_kl"]
    assert explained - not_here == set(line) and line["image_kl"] > 0


@pytest.mark.parametrize("same_latent", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["flow_grpo", "star"])
def test_a_trained_policy_is_on_policy_up_to_rounding(make_config, method, dtype, same_latent):
    """Adapters that are not 0, folded into the weights while sampling where that is in float32: other sums, one policy."""
    config = make_config(f"method={method}", f"model.dtype={dtype}", f"sampling.same_latent={same_latent}", "train.epochs=1")
    trainer = Trainer(config, RedTask())
    fill(trainer)
    figures = trainer.epoch(0)
    assert 0 <= figures["ratio_error"] <= trainer.ratio_tolerance
    assert figures["approx_kl"] > 0


@pytest.mark.parametrize("method", ["flow_grpo", "star"])
def test_a_rollout_of_the_untrained_policy_is_off_policy(make_config, monkeypatch, method):
    trainer = Trainer(make_config(f"method={method}"), RedTask())
    fill(trainer)
    monkeypatch.setattr(trainer.base, "sampling", trainer.base.reference)
    with pytest.raises(RunStopped, match="first update of epoch 1 .* 100.0% of them by more than rounding"):
        trainer.epoch(0)


@pytest.mark.parametrize(
    ("error", "beyond", "stops"),
    [(9e-5, 0.0, False), (3e-4, 0.01, False), (3e-4, 0.02, True), (1.1e-3, 0.001, True)],
)
def test_rounding_has_a_tail(error, beyond, stops):
    """Of millions of ratios a few are further off than rounding makes most; another policy moves many, or one far."""
    with pytest.raises(RunStopped, match=rf"up to {error:.2g} off 1, {beyond:.1%} of") if stops else nullcontext():
        guards.check_update({"loss": [0.1], "ratio_error": [1e-6, error]}, beyond, 1e-4, 3)


def test_the_share_of_ratios_off_by_more_than_rounding_is_counted(make_config, monkeypatch):
    trainer, asked = Trainer(make_config("method=flow_grpo"), RedTask()), []
    trainer.ratio_tolerance = -1.0  # which every ratio exceeds, but not those of the second update
    monkeypatch.setattr(guards, "check_update", lambda figures, beyond, *given: asked.append(beyond))
    assert "beyond" not in trainer.epoch(0) and asked == [1.0, 0.0]


def fill(trainer):
    """Give the adapters values of a size that shows."""
    torch.manual_seed(3)
    for name, parameter in trainer.base.trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize("guidance", [1, 3])
def test_rows_that_are_alike_give_the_gradient_of_all_of_them(make_config, monkeypatch, tmp_path, guidance):
    gradients = []
    for shared in (True, False):
        config = make_config(
            "sampling.same_latent=true", f"sampling.guidance={guidance}", "train.beta=0.1", f"run={tmp_path / str(shared)}"
        )
        if not shared:
            monkeypatch.setattr(rollout, "alike_runs", lambda samples, same_latent: None)
        trainer = Trainer(config, RedTask())
        fill(trainer)
        monkeypatch.setattr(trainer, "step", lambda epoch: 0.0)
        trainer.epoch(0)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.base.trained.values()]))
    assert gradients[0].norm() > 1e-6
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


def test_verdicts_are_made_beside_the_rollouts_of_a_gpu(make_config, monkeypatch):
    """In one thread, in the order of the micro-batches; and an evaluator's error comes up where its verdicts are wanted.

    And on one stream, which waits for what the rollouts' has been given so far and for nothing that it is given later.
    """
    seen, streams, gone = [], [], []

    class Watched(RedTask):
        def judge(self, *given):
            seen.append(threading.current_thread())
            gone.append(streams and list(streams))
            return super().judge(*given)

    class Stream:
        def record_event(self):
            return f"event {next(events)}"

        def wait_event(self, event):
            streams.append((self, event))

    @contextmanager
    def on(stream):
        streams[:] = [stream]
        yield
        streams.clear()

    trainer = Trainer(make_config("train.epochs=1"), Watched())
    trainer.beside = Beside(torch.device("cpu"))
    expected = trainer.epoch(0)["reward"]
    assert set(seen) == {threading.main_thread()}
    seen.clear()
    placed = []
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    monkeypatch.setattr("torch.cuda.set_device", lambda own: placed.append((threading.current_thread(), own)))
    events, rollouts = count(), Stream()
    monkeypatch.setattr("torch.cuda.current_stream", lambda: rollouts)
    monkeypatch.setattr("torch.cuda.Stream", Stream)
    monkeypatch.setattr("torch.cuda.stream", on)
    monkeypatch.setattr(judging, "_stream", cache(judging._stream.__wrapped__))  # as in a new process
    gone.clear()
    trainer.beside = Beside(torch.device("cuda"))
    assert trainer.epoch(0)["reward"] == pytest.approx(expected, abs=0.05)
    assert len(set(seen)) == 1 and threading.main_thread() not in seen
    assert placed == [(seen[0], 3)]  # before the first verdict, or the thread's GPU would be the first
    own = gone[0][0]
    assert Beside(torch.device("cuda"))._stream is own  # an evaluation's on the way: each would keep memory for good
    assert own is not rollouts and gone == [[own, (own, f"event {number}")] for number in range(len(seen))]
    judged = []
    trainer.task = RedTask(lambda images: judged.append(images) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.epoch(1)
    trainer.beside._thread.shutdown()
    assert len(judged) == 1  # the process ends, and would wait for what stands behind it


def test_half_precision_goes_on_where_no_sample_has_an_advantage(make_config):
    """As a process may have it whose samples are of a group with equal rewards."""
    config = make_config("model.dtype=float16", "train.epochs=1", "train.beta=0", "train.ratio_tolerance=1")
    Trainer(config, RedTask(lambda images: [1.0] * len(images))).run()
    (line,) = lines(config)
    assert line["grad_norm"] == 0 and line["zero_std_share"] == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_loss_is_scaled_in_float16_alone(make_config, dtype):
    assert Trainer(make_config(f"model.dtype={dtype}"), RedTask()).scaler.is_enabled() == (dtype == "float16")


def test_the_scale_of_the_loss_is_not_that_of_the_gradient(make_config, tmp_path):
    norms = []
    for scale in (1.0, 1024.0):
        config = make_config("train.groups=2", "train.updates_per_epoch=1", f"run={tmp_path / str(scale)}")
        trainer = Trainer(config, RedTask())
        trainer.scaler = torch.amp.GradScaler(trainer.base.device.type, init_scale=scale)
        norms.append(trainer.epoch(0)["grad_norm"])
    assert 0 < norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_weights_of_the_allocation_reach_the_gradient(make_config, tmp_path):
    """Arms differ in nothing but the weights, and that shows in the first gradient."""
    norms = {}
    for method in ("dense_uniform", "spatial", "temporal", "star", "star_shuffled", "star_random"):
        config = make_config(f"method={method}", "train.epochs=1", f"run={tmp_path / method}")
        Trainer(config, RedTask()).run()
        norms[method] = lines(config)[0]["grad_norm"]
        assert lines(config)[0]["reward"] == lines(make_config(f"run={tmp_path / 'dense_uniform'}"))[0]["reward"]
    assert len(set(norms.values())) == len(norms)


def test_an_arm_without_any_of_its_map_trains_and_has_no_overlap(make_config):
    figures = Trainer(make_config("method=star", "method.mix=0"), RedTask()).epoch(0)
    assert (figures["uniform_share"], figures["effective_share"]) == (1, 1) and "overlap" not in figures


def test_rollouts_whose_map_found_nothing_are_counted(make_config, monkeypatch):
    def weigh(batches, *given):
        for batch in batches:
            batch.weights = torch.ones(2, 4, 8, 8)
        batches[0].weights[0, 1:, 0, 0] = 1.5

    monkeypatch.setattr(learner, "weigh", weigh)
    monkeypatch.setattr(learner, "overlaps", lambda *given: [1.0])
    figures = Trainer(make_config("method=star", "train.micro_batch=4"), RedTask()).epoch(0)
    assert figures["uniform_share"] == pytest.approx(13 / 16)


def test_a_random_map_is_another_one_in_every_epoch_and_for_every_rollout(make_config, monkeypatch):
    made = []
    real = credit.allocate

    def of_equal_maps(relevance, arm, **known):
        """So that nothing but the field tells rollouts and epochs apart."""
        one = torch.linspace(1, 2, relevance[0, 0].numel()).view(relevance[0, 0].shape)
        weights = real(one.expand_as(relevance), arm, **known)
        if arm == "star_random":  # the others are for the overlap with STAR's own
            made.append(weights)
        return weights

    monkeypatch.setattr(credit, "allocate", of_equal_maps)
    trainer = Trainer(make_config("method=star_random"), RedTask())
    trainer.epoch(0)
    first = torch.cat(made, dim=1)
    made.clear()
    trainer.epoch(1)
    second = torch.cat(made, dim=1)
    assert first.shape == second.shape
    fields = [weights[:, row] for weights in (first, second) for row in range(weights.shape[1])]
    assert not any(torch.allclose(one, other) for one, other in combinations(fields, 2))


def test_a_random_map_is_of_the_runs_seed_and_does_not_depend_on_what_else_its_process_has(make_config):
    samples = [Sample(prompt, index) for prompt in range(4) for index in range(4)]

    def weighed(seed, *numbers):
        config = make_config("method=star_random", "train.micro_batch=4", f"seed={seed}")
        batches = [MicroBatch(number, trajectory) for number, trajectory in enumerate(with_maps(samples)) if number in numbers]
        credit.weigh(batches, [s.prompt for s in samples], 0, config, RedTask(), list)
        return batches[-1].weights

    assert torch.equal(weighed(0, 2), weighed(0, 0, 1, 2))
    assert not torch.allclose(weighed(0, 2), weighed(1, 2))


def test_draws_of_one_text_are_one_group(make_config, monkeypatch):
    """As in Flow-GRPO: a text that the prompts hold twice has one mean and one deviation in an epoch."""
    seen = []
    real = learner.advantages
    monkeypatch.setattr(learner, "advantages", lambda *given: seen.append(given[1]) or real(*given))
    task = RedTask()
    task.train = [task.train[0], task.train[0], *task.train[1:3]]
    Trainer(make_config(), task).epoch(0)
    (groups,) = seen
    assert sorted(map(groups.count, set(groups))) == [4, 4, 8]


@pytest.mark.parametrize("schedule, rates", [("constant", [0.3] * 6), ("linear", [0.3, 0.3, 0.2, 0.2, 0.1, 0.1])])
def test_learning_rate_of_every_update(make_config, monkeypatch, schedule, rates):
    trainer = Trainer(make_config("train.lr=0.3", f"train.schedule={schedule}"), RedTask())
    seen = []
    monkeypatch.setattr(trainer.optimizer, "step", lambda: seen.append(trainer.optimizer.param_groups[0]["lr"]))
    trainer.run()
    assert seen == pytest.approx(rates)


def test_the_optimizer_and_the_average_are_as_configured(make_config):
    words = ("train.betas=[0.8,0.95]", "train.weight_decay=0.5", "train.ema_decay=0.35", "train.ema_every=2")
    trainer = Trainer(make_config(*words), RedTask())
    (group,) = trainer.optimizer.param_groups
    assert (tuple(group["betas"]), group["weight_decay"]) == ((0.8, 0.95), 0.5)
    assert (trainer.ema.decay, trainer.ema.every) == (0.35, 2)


def test_core_words_that_no_encoder_sees_are_told_before_the_work(make_config):
    """And not in the epoch that draws their prompt, where a resumed run would come to the same end."""
    task = RedTask()
    text = "very " * 200 + "red circle"
    task.train = [*task.train, Prompt(text, ((len(text) - 6, len(text)),))]
    config = make_config("method=star")
    with pytest.raises(UserError, match=r"no token of its core words \('circle'\) is among the columns"):
        Trainer(config, task)
    assert not Path(config.run).exists()
    Trainer(make_config("method=flow_grpo"), task)  # which asks nothing of them


def test_training_raises_the_reward(make_config):
    config = make_config("train.epochs=12", "train.lr=2e-2", "method=flow_grpo", "train.clip_range=0.05")
    Trainer(config, RedTask()).run()
    rewards = [line["reward"] for line in lines(config)]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.01


def test_killed_and_resumed_run_ends_with_the_same_bits(make_config, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    # A GPU's usual kernels add in any order.
    words = ("train.epochs=4", f"train.deterministic={str(torch.cuda.is_available()).lower()}")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    whole, cut = (make_config(*words, f"run={tmp_path / name}") for name in ("whole", "cut"))
    Trainer(whole, RedTask()).run()
    program = tmp_path / "train.py"
    overrides = tmp_path / "config.yaml"
    overrides.write_text(to_yaml(cut))
    program.write_text(
        "import time\n"
        "from omegaconf import OmegaConf\n"
        "from star.config import Config\n"
        "from star.training.trainer import Trainer\n"
        "from fake_task import RedTask\n"
        f"config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load({str(overrides)!r})))\n"
        "class Slow(RedTask):\n"
        "    def judge(self, *given):\n"
        "        time.sleep(0.2)\n"
        "        return super().judge(*given)\n"
        "Trainer(config, Slow()).run()\n"
    )
    process = forked.start("train", [], tmp_path / "log.txt")
    log = Path(cut.run, "metrics.jsonl")
    while not (log.exists() and len(log.read_text().splitlines()) >= 2):
        assert process.is_alive(), Path(tmp_path, "log.txt").read_text()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert Trainer(cut, RedTask()).folder.summary() is None
    summary = Trainer(cut, RedTask()).run()
    assert summary["updates"] == 8
    one, other = weights(whole), weights(cut)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    timed = ("sampling_seconds", "update_seconds", "seconds")
    strip = [[{k: v for k, v in line.items() if k not in timed} for line in lines(config)] for config in (whole, cut)]
    assert strip[0] == strip[1]


def test_finished_run_is_not_run_again_and_other_settings_are_refused(make_config):
    config = make_config("train.epochs=1")
    summary = Trainer(config, RedTask()).run()
    again = Trainer(config, RedTask(lambda images: 1 / 0)).run()
    assert again == summary
    with pytest.raises(UserError, match="other settings"):
        Trainer(make_config("train.epochs=1", "seed=1"), RedTask()).run()


@pytest.mark.parametrize("parameters", ["lora", "full"])
@pytest.mark.parametrize("kl", ["flow_grpo", "paper"])
def test_kl_is_against_the_untrained_model(make_config, parameters, kl, tmp_path):
    config = make_config(
        f"model.parameters={parameters}", f"train.kl={kl}", "train.beta=0.1", "train.epochs=1", "train.lr=1e-3"
    )
    trainer = Trainer(config, RedTask())
    latents = torch.randn(2, *trainer.base.latent_shape).to(trainer.base.device)
    sigma = torch.tensor(0.5)
    texts = ["a photo of a circle"] * 2
    with torch.no_grad():
        before = trainer.base.velocity(latents, sigma, texts, 1.0)
    trainer.run()
    with torch.no_grad():
        after = trainer.base.velocity(latents, sigma, texts, 1.0)
        with trainer.base.reference():
            reference = trainer.base.velocity(latents, sigma, texts, 1.0)
    assert torch.equal(before, reference)
    assert not torch.equal(before, after)
    assert lines(config)[0]["kl"] > 0


@pytest.mark.parametrize("method", ["flow_grpo", "star", "dense_uniform"])
def test_updates_may_be_bounded_by_the_divergence_from_the_policy_that_sampled(make_config, monkeypatch, method):
    trainer, seen = Trainer(make_config(f"method={method}", "method.clip=kl", "train.clip_range=1e-3"), RedTask()), []
    monkeypatch.setattr("star.training.learner.policy_loss", lambda *given: seen.append(given[-1]) or policy_loss(*given))
    trainer.epoch(0)
    channels, height, width = trainer.base.latent_shape
    first, last = seen[0], seen[-1]
    image = method != "dense_uniform"
    assert first.divergence.shape == last.divergence.shape == ((8,) if image else (8, height, width))
    assert first.divergence.max() < 1e-9 < last.divergence.min()  # before the first step, and after it
    elements, clip_range = (channels * height * width, 1e-3) if image else (channels, 1e-3 * height * width)
    assert last.limit == pytest.approx(elements * clip_range**2 / 2)


def test_noise_is_keyed_by_sample_not_by_place(make_config):
    config = make_config("method.reduction=position")
    base = SD3(config.model, torch.device("cpu"), 0)
    task = RedTask()
    first, second = [Sample(0, 0), Sample(1, 3)], [Sample(1, 3), Sample(2, 1)]
    draw = [sample(base, s, task.train, config, [0, 1], epoch=5) for s in (first, second)]
    assert torch.allclose(draw[0].latents[:, 1], draw[1].latents[:, 0], atol=1e-5)
    assert not torch.allclose(draw[0].latents[:, 0], draw[1].latents[:, 0], atol=1e-2)


@pytest.mark.parametrize("same", [True, False])
def test_same_latent_shares_the_start_within_a_group_only(make_config, same):
    config = make_config(f"sampling.same_latent={same}")
    base = SD3(config.model, torch.device("cpu"), 0)
    samples = [Sample(0, 0), Sample(0, 1), Sample(1, 0)]
    latents = sample(base, samples, RedTask().train, config, [0], epoch=0).latents
    assert torch.equal(latents[0, 0], latents[0, 1]) == same
    assert not torch.equal(latents[1, 0], latents[1, 1])
    assert not torch.equal(latents[0, 0], latents[0, 2])


def test_relevance_does_not_change_the_rollout(make_config):
    config = make_config("method.reduction=position")
    base = SD3(config.model, torch.device("cpu"), 0)
    samples, task = [Sample(0, 0), Sample(1, 1)], RedTask()
    plain, captured = (
        sample(base, samples, task.train, config, [0, 1], 0, relevance) for relevance in (None, config.relevance)
    )
    assert torch.equal(plain.images, captured.images)
    assert torch.equal(plain.log_probs, captured.log_probs)
    assert captured.relevance.shape == (2, 2, 8, 8)
    assert (captured.relevance > 0).all() and (captured.relevance < 1).all()


def test_guidance_mixes_the_two_branches(make_config):
    config = make_config()
    base = SD3(config.model, torch.device("cpu"), 0)
    latents, sigma = torch.randn(1, *base.latent_shape), torch.tensor(0.7)
    with torch.no_grad():
        plain = base.velocity(latents, sigma, ["a photo of a ring"], 1.0)
        empty = base.velocity(latents, sigma, [""], 1.0)
        guided = base.velocity(latents, sigma, ["a photo of a ring"], 4.5)
    assert torch.allclose(guided, empty + 4.5 * (plain - empty), atol=1e-4)


def test_plan_is_keyed_and_holds_whole_groups():
    samples = plan(prompts=10, groups=4, group_size=3, seed=1, epoch=2)
    assert samples == plan(10, 4, 3, 1, 2)
    assert samples != plan(10, 4, 3, 1, 3) and samples != plan(10, 4, 3, 2, 2)
    assert [s.index for s in samples] == [0, 1, 2] * 4
    assert len({s.prompt for s in samples}) == 4
    again = plan(prompts=2, groups=5, group_size=2, seed=0, epoch=0)
    assert len(set(again)) == len(again) == 10, "a prompt that comes again has other noise"
    assert all({s.index for s in again if s.prompt == prompt} in ({0, 1, 2, 3}, set(range(6))) for prompt in (0, 1))


def test_trained_steps(make_config):
    whole = make_config("sampling.window=0").sampling
    assert trained_steps(whole, 0, 0) == [0, 1, 2]
    window = make_config("sampling.window=2").sampling
    assert {trained_steps(window, 0, epoch)[0] for epoch in range(40)} == {0, 1}
    assert {trained_steps(window, seed, 0)[0] for seed in range(40)} == {0, 1}
    assert all(len(trained_steps(window, 0, epoch)) == 2 for epoch in range(5))


def test_all_that_an_epoch_draws_is_of_the_runs_seed_and_of_its_number(make_config, monkeypatch):
    trainer, drawn = Trainer(make_config("seed=4"), RedTask()), []
    draw, sampling = trainer.rollouts, trainer.config.sampling
    monkeypatch.setattr(trainer, "rollouts", lambda *given: drawn.append((*given, draw(*given))) or drawn[0][-1])
    initial = SD3(trainer.config.model, torch.device("cpu"), 4).trained
    assert all(torch.equal(initial[name], value.cpu()) for name, value in trainer.base.trained.items())
    trainer.epoch(3)
    ((samples, steps, _, _, batches),) = drawn
    assert samples == plan(4, 4, 4, 4, 3)
    assert steps == trained_steps(sampling, 4, 3) == [0, 1]
    assert trained_steps(sampling, 0, 3) == trained_steps(sampling, 4, 0) == [1, 2]
    for trajectory in (batch.trajectory for batch in batches):
        assert torch.equal(trajectory.latents[0], starts(trainer.base, trajectory.samples, sampling.same_latent, 4, 3))


def test_micro_batches_come_in_an_order_of_the_seed_and_of_the_epoch(make_config):
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        learning = SimpleNamespace(config=make_config(f"seed={seed}"))
        shares = Learner.shares(learning, 16, epoch)
        assert shares == Learner.shares(learning, 16, epoch) and sorted(sum(shares, [])) == list(range(16))
        orders.append(shares)
    assert not any(one == other for one, other in combinations(orders, 2))


def test_collapse_and_divergence_stop_the_run(make_config, tmp_path):
    epochs = iter(range(100))

    def falling(images):
        return np.full(len(images), 1.0 if next(epochs) < 2 else 0.1) + np.arange(len(images)) * 1e-3

    config = make_config("train.epochs=9", "train.collapse_epochs=2", f"run={tmp_path / 'falling'}")
    with pytest.raises(RunStopped, match="collapsed: for 2 epochs the reward is 0.1"):
        Trainer(config, RedTask(falling)).run()
    config = make_config("train.lr=1e30", f"run={tmp_path / 'diverging'}")
    with pytest.raises(RunStopped, match="not finite"):
        Trainer(config, RedTask()).run()


def test_a_collapsed_run_keeps_what_it_had_before(make_config):
    """Twice as many epochs are bad as checkpoints are kept; the one whose own rollouts were the last good ones stays."""
    epochs = iter(range(100))

    def falling(images):
        return np.full(len(images), 1.0 if next(epochs) < 8 else 0.1) + np.arange(len(images)) * 1e-3

    words = ("train.epochs=12", "train.collapse_epochs=4", "train.keep=2", "train.checkpoint_every=1")
    config = make_config(*words)
    trainer = Trainer(config, RedTask(falling))
    calls = config.train.groups * config.train.group_size // config.train.micro_batch
    good = 8 // calls
    last = Path(config.run) / "checkpoints" / f"epoch-{good - 1:06d}"
    with pytest.raises(RunStopped, match=f"collapsed: for 4 epochs .* its weights before that are kept in {last}"):
        trainer.run()
    assert [int(folder.name[-6:]) for folder in trainer.folder.checkpoints()] == [good - 1, good + 2, good + 3]


def test_off_policy_first_update_stops_the_run(make_config, monkeypatch):
    original = rollout.log_prob_map
    monkeypatch.setattr(rollout, "log_prob_map", lambda *given: original(*given) + 1e-3)
    with pytest.raises(RunStopped, match="first update"):
        Trainer(make_config(), RedTask()).run()


def test_half_precision_stops_when_no_scale_is_small_enough(make_config):
    """An overflow halves the scale and skips the update; at the smallest scale the gradient itself is not finite."""
    trainer = Trainer(make_config(), RedTask())
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = {name: value.detach().clone() for name, value in trainer.base.trained.items()}

    def overflow():
        for parameter in trainer.base.trained.values():
            parameter.grad = torch.full_like(parameter, math.inf)
        trainer.step(0)

    overflow()
    assert trainer.scaler.get_scale() == 2
    overflow()
    assert trainer.scaler.get_scale() == 1
    assert all(torch.equal(before[name], value) for name, value in trainer.base.trained.items())
    with pytest.raises(RunStopped, match="the gradient is not finite in epoch 1"):
        overflow()


def test_a_policy_that_draws_one_picture_stops_the_run(make_config, monkeypatch):
    spreads = iter([1.0, 0.04, 0.06, 0.04, 0.04, 0.04])
    monkeypatch.setattr("star.training.learner.diversity", lambda rows, groups: next(spreads))
    config = make_config("train.epochs=9", "train.collapse_epochs=2", "train.micro_batch=16", "train.updates_per_epoch=1")
    with pytest.raises(RunStopped, match="collapsed: for 2 epochs the diversity within groups is 0.04, at the start 1"):
        Trainer(config, RedTask()).run()
    assert len(lines(config)) == 4


MAPS = torch.tensor([0.1, 0.3, 0.6, 1.0]).repeat(16).view(8, 8)


def with_maps(samples):
    """Trajectories of one micro-batch each four samples, whose map tells the prompt: a pattern plus its number."""
    made = []
    for start in range(0, len(samples), 4):
        part = samples[start : start + 4]
        relevance = torch.stack([(MAPS + s.prompt).repeat(2, 1, 1) for s in part], dim=1)
        made.append(Trajectory(part, [0, 1], *[torch.empty(0)] * 3, relevance, torch.empty(0)))
    return made


def test_the_allocation_gets_the_settings_and_the_groups(make_config):
    words = ["method.cap=1.5", "method.mix=0.25", "method.exponent=2", "train.micro_batch=4"]
    trainer = Trainer(make_config(*words), RedTask())
    samples = [Sample(prompt, index) for prompt in range(4) for index in range(4)]
    trajectories = with_maps(samples)
    batches = [MicroBatch(number, trajectory) for number, trajectory in enumerate(trajectories)]
    trainer.allocate(batches, [s.prompt for s in samples], 0)
    first = batches[0].weights[0, 0].double().cpu()
    power = MAPS.double() ** 2
    scaled, scale = power / power.mean(), 1.0
    while ((scale * scaled).clamp(max=1.5).mean() - 1).abs() > 1e-9:  # what the cap takes goes to the others
        scale /= (scale * scaled).clamp(max=1.5).mean().item()
    assert torch.allclose(first, 0.25 * (scale * scaled).clamp(max=1.5) + 0.75, atol=1e-5)

    shuffled = Trainer(
        make_config("method=star_shuffled", "method.mix=1", "method.cap=null", "train.micro_batch=4"), RedTask()
    )
    shuffled.allocate(batches, [s.prompt for s in samples], 0)
    got = torch.cat([batch.weights for batch in batches], dim=1).cpu()
    own = torch.stack([(MAPS + s.prompt) / (MAPS + s.prompt).mean() for s in samples])
    nearest = (got[0][:, None] - own[None, ::4]).abs().amax((2, 3)).argmin(1).tolist()
    assert all(given != s.prompt for given, s in zip(nearest, samples, strict=True))


def test_equal_rewards_teach_nothing(make_config):
    config = make_config("train.epochs=1", "train.weight_decay=0.5")
    trainer = Trainer(config, RedTask(lambda images: [0.5] * len(images)))
    before = {name: value.detach().clone() for name, value in trainer.base.trained.items()}
    trainer.run()
    (line,) = lines(config)
    assert line["zero_std_share"] == 1 and line["grad_norm"] == 0
    decay = 1 - config.train.lr * config.train.weight_decay  # AdamW's decay is all that moves a weight without a gradient
    for name, value in trainer.base.trained.items():
        torch.testing.assert_close(value, before[name] * decay**2, rtol=1e-6, atol=0)


def test_where_rewards_are_equal_the_penalty_is_trained(make_config):
    trainer = Trainer(make_config("train.beta=0.1"), RedTask(lambda images: [0.5] * len(images)))
    fill(trainer)
    figures = trainer.epoch(0)
    assert figures["kl"] > 0 and figures["grad_norm"] > 0


@pytest.mark.parametrize("normalise, cancels, differs", [(True, 1.0, 0.5), (False, 0.5, 1.0)])
def test_an_opposite_reward_of_another_task_cancels_the_own(make_config, monkeypatch, tmp_path, normalise, cancels, differs):
    """The other is twice as large, unless both are standardised."""
    red, blue = (
        RedTask(lambda images, size=size: [size * float(i[..., 0].mean() - i[..., 2].mean()) for i in images])
        for size in (1e3, -2e3)
    )
    monkeypatch.setattr("star.training.trainer.load_rewards", lambda config, task: {"ocr": blue})
    norms = {}
    for weight in (1.0, 0.5):
        words = (f"+rewards.others.ocr={weight}", f"rewards.normalise={normalise}", f"run={tmp_path / str(weight)}")
        figures = Trainer(make_config(*words), red).epoch(0)
        assert 2 * figures["reward"] == -figures["reward/ocr"] != 0
        norms[weight] = figures["grad_norm"]
    assert norms[cancels] < 0.01 * norms[differs]


def test_evaluation_does_not_depend_on_the_batch(make_config):
    task = RedTask()
    values = []
    for batch in (2, 8):
        config = make_config(f"train.micro_batch={batch}", "evaluation.images=3")
        trainer = Trainer(config, task)
        values.append(trainer.evaluate(3)[0].value)
    assert math.isclose(*values, abs_tol=1e-4)


def test_diversity_is_that_of_whole_groups_whatever_the_micro_batch(make_config, tmp_path):
    spreads = {}
    for size in (1, 2, 4, 8, 16):
        config = make_config(
            f"train.micro_batch={size}", "train.epochs=1", "train.updates_per_epoch=1", f"run={tmp_path / str(size)}"
        )
        Trainer(config, RedTask()).run()
        (line,) = lines(config)
        spreads[size] = line["diversity"]
    assert min(spreads.values()) > 0.01 and all(math.isclose(s, spreads[16], rel_tol=1e-4) for s in spreads.values())


def test_a_policy_that_draws_one_picture_is_seen_with_micro_batches_of_one(make_config, monkeypatch):
    """Pictures of a group become the same after the first epoch."""
    drawn = []

    def same(images):
        drawn.append(images)
        rows = thumbnails(images)
        return rows if len(drawn) <= 16 else torch.zeros_like(rows)

    monkeypatch.setattr("star.training.learner.thumbnails", same)
    config = make_config("train.epochs=9", "train.collapse_epochs=2", "train.micro_batch=1")
    with pytest.raises(RunStopped, match="collapsed: for 2 epochs the diversity within groups is 0, at the start 0"):
        Trainer(config, RedTask()).run()


@pytest.mark.parametrize(
    ("method", "gathered"), [("flow_grpo", False), ("star", False), ("star_random", False), ("star_shuffled", True)]
)
def test_maps_leave_their_process_only_for_the_arm_that_needs_others(make_config, monkeypatch, method, gathered):
    trainer, items = Trainer(make_config(f"method={method}", "train.epochs=1"), RedTask()), []
    monkeypatch.setattr(trainer, "_gather", lambda given: items.extend(given) or given)
    trainer.epoch(0)
    maps = [item for item in items if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], torch.Tensor)]
    assert len(maps) == (2 if gathered else 0)  # one of each micro-batch


def test_shuffled_maps_need_more_groups_where_texts_repeat(make_config):
    task = RedTask()
    task.train = [*task.train, task.train[0]]
    Trainer(make_config("method=star_shuffled", "train.groups=4"), task)
    with pytest.raises(
        UserError, match="^train.groups=3: some training texts are listed more than once.*takes 4 groups or more$"
    ):
        Trainer(make_config("method=star_shuffled", "train.groups=3", "train.micro_batch=4"), task)
    Trainer(make_config("method=star", "train.groups=3", "train.micro_batch=4"), task)
