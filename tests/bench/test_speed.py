"""Our epochs and those of the published loop in turn."""

import re

import pytest
import torch
from tiny import FAST

from star.bench import speed
from star.common.errors import RunStopped, UserError
from star.training.trainer import Trainer

PHASES = ("rollouts", "update", "epoch")
RESULTS = ("latents", "log-probabilities", "images", "gradients", "parameters")


@pytest.fixture
def words(pipeline_folder):
    return [*FAST.split(), f"model.path={pipeline_folder}", "train.groups=2", "train.micro_batch=4"]


def test_rows_tell_both_times_their_ratio_and_how_equal_results_are(words):
    rows = speed.measure([*words, "sampling.window=0", "sampling.guidance=2", "train.beta=0.1"], rounds=1)
    found = {what: mean.value for what, mean in rows}
    sides = ("seconds, ours", "seconds, published", "ratio ours / published")
    assert list(found) == [
        *(f"{phase}, {side}" for phase in PHASES for side in sides),
        "images per second, ours",
        "images per second, published",
        *(f"{what} apart, millionths" for what in RESULTS),
    ]
    assert all(mean.interval is None for _, mean in rows)  # one round says nothing of their spread
    for phase in PHASES:
        own, other, ratio = (found[f"{phase}, {side}"] for side in sides)
        assert own > 0 and ratio == pytest.approx(own / other)
    assert found["images per second, ours"] == pytest.approx(8 / found["epoch, seconds, ours"])
    assert max(found[f"{what} apart, millionths"] for what in RESULTS[:3]) < 100


def test_sides_take_turns_and_ratios_are_of_rounds(words, monkeypatch):
    taken = {
        "Ours": {"rollouts": [1.0, 3.0], "update": [2.0, 4.0]},
        "Published": {"rollouts": [2.0, 4.0], "update": [4.0, 4.0]},
    }
    order = []

    def seconds(action, device):
        side, phase = type(action.func.__self__).__name__, action.func.__name__
        order.append((side, phase))
        return taken[side][phase].pop(0)

    monkeypatch.setattr(speed, "measured", seconds)
    rows = {what: (mean.value, mean.stderr) for what, mean in speed.measure(words, rounds=2)}
    assert [side for side, _ in order] == ["Ours", "Published"] * 2 + ["Published", "Ours"] * 2
    assert [phase for _, phase in order] == ["rollouts", "rollouts", "update", "update"] * 2
    assert rows["rollouts, ratio ours / published"] == pytest.approx((0.625, 0.125))
    assert rows["update, ratio ours / published"] == pytest.approx((0.75, 0.25))
    assert rows["epoch, seconds, ours"] == pytest.approx((5.0, 2.0))
    assert rows["images per second, published"] == pytest.approx(((8 / 6 + 1) / 2, 1 / 6))


def frozen(loop):
    loop.transformer.proj_out.weight.data.mul_(1.1)


def adapter(loop):
    next(iter(loop.trained.values())).data.mul_(1.5)


def decoder(loop):
    loop.pipeline.vae.decoder.conv_out.bias.data.add_(0.1)


def learning_rate(loop):
    loop.optimizer.param_groups[0]["lr"] *= 2


@pytest.mark.parametrize(
    ("change", "told"),
    [(frozen, "latents of"), (adapter, "latents of"), (decoder, "images of"), (learning_rate, "parameters of")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_results_that_differ_are_not_timed(words, monkeypatch, change, told):
    drawn = speed.Published.rollouts

    def changed(side, epoch):
        change(side.loop)
        drawn(side, epoch)

    monkeypatch.setattr(speed.Published, "rollouts", changed)
    monkeypatch.setattr(speed, "measured", lambda *given: pytest.fail("timed"))
    with pytest.raises(RunStopped, match=f"^{told} our trainer and of the published loop are .* they do not compute the same"):
        speed.measure([*words, "train.updates_per_epoch=1"], rounds=1)


class Overflowing(Trainer):
    def __init__(self, *given):
        super().__init__(*given)
        self.scaler = torch.amp.GradScaler("cpu", 2.0**30)


def test_both_sides_skip_no_update_that_is_compared(words, monkeypatch):
    """Whichever overflows first in float16, as one does at this scale of the loss."""
    updated, scales = speed.Ours.update, []
    monkeypatch.setattr(speed, "Trainer", Overflowing)
    monkeypatch.setattr(
        speed.Ours, "update", lambda side, epoch: updated(side, epoch) or scales.append(side.trainer.scaler.get_scale())
    )
    rows = dict(speed.measure([*words, "model.dtype=float16", "train.updates_per_epoch=1"], rounds=1))
    assert scales[0] > scales[-2] == scales[-1]  # the last is of the epoch that is timed
    assert rows["parameters apart, millionths"].value < 1e5


def test_what_is_no_number_is_not_equal():
    equal = dict.fromkeys(RESULTS, 0.0)
    assert speed.disagreement(equal, "float32") == ""
    assert re.match("gradients of .* nan", speed.disagreement(equal | {"gradients": torch.nan}, "float32"))


def test_gradients_may_differ_more_than_rollouts():
    apart = dict.fromkeys(RESULTS, 0.0) | {"gradients": 5e-4}
    assert speed.disagreement(apart, "float32") == ""
    told = speed.disagreement(apart | {"latents": 5e-4}, "float32")
    assert re.match(r"latents of .* 0.0005 of their size apart \(allowed in float32: 0.0001\)", told)


def test_a_method_without_a_published_loop_is_refused_before_a_model_is_loaded(words, monkeypatch):
    monkeypatch.setattr("star.models.load", lambda *given: pytest.fail("loaded"))
    with pytest.raises(UserError, match="method.arm=star"):
        speed.measure([*words, "method=star"], rounds=1)
