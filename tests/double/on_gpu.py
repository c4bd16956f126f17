"""What a GPU does with a training, on the GPU that is none: ``tests/test_gpu_double.py`` runs this in a process of its own."""

from collections import Counter

import pytest
import torch
from accelerate.state import AcceleratorState
from fake_task import RedTask
from gpu_double import waits
from safetensors.torch import load_file

from star.bench.gpu.bench import Bench
from star.bench.gpu.sizes import SHRUNKEN
from star.bench.gpu.steps import STEPS
from star.common.plugins import import_path
from star.training import learner
from star.training.trainer import Trainer

GUIDED = ("method=star", "train.beta=0.04", "sampling.guidance=4.5", "evaluation.guidance=4.5")


@pytest.fixture
def make(make_config):
    """A training with guidance and the KL penalty; words override."""
    return lambda *words: Trainer(make_config(*GUIDED, *words), RedTask())


@pytest.fixture
def here(monkeypatch):
    """Inside, there is no GPU."""
    AcceleratorState._reset_state(True)
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: False)
        yield
    AcceleratorState._reset_state(True)


def test_it_tells_what_is_where():
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="on the same device"):
        here + there
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    assert there.device == torch.device("cuda", 0) and not there.cpu().is_cuda and here.pin_memory().is_pinned()


def test_it_counts_what_is_waited_for():
    here = torch.ones(3)
    with waits() as found:
        there = here.pin_memory().to("cuda", non_blocking=True)
        there = there * 2 + there.sum()
    assert not found
    with waits() as found:
        there.sum().item(), there.tolist(), there[[1, 0]], there.cpu(), here.to("cuda"), bool(there.any())
        there[there > 0], torch.ones(1 << 15).to("cuda", non_blocking=True)
    assert found.total() == 8


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_its_attention_is_that_of_a_cpu(kernel):
    from star.method.attention import KERNELS

    given = [torch.randn(2, 3, 20, 16, dtype=torch.bfloat16) for _ in range(3)]
    results = []
    for device, name in (("cpu", "math"), ("cuda", kernel)):
        leaves = [part.to(device).detach().requires_grad_() for part in given]
        output, normaliser = KERNELS[name](*leaves)
        output.float().square().sum().backward()
        results.append([part.cpu().float() for part in (output, normaliser, *(leaf.grad for leaf in leaves))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_computes_with_and_without_gradients(mode):
    with mode():
        weights = torch.nn.Linear(4, 2).to("cuda")
        there = torch.ones(3, 4).to(weights.weight.device, torch.float32)
        assert (weights(there).cpu() == weights.to("cpu")(torch.ones(3, 4))).all()


def test_it_trains_what_a_cpu_trains(make, tmp_path, request):
    words = ("train.epochs=1", "train.ema_decay=0")
    there = make(*words, f"run={tmp_path / 'there'}")
    assert there.base.device.type == "cuda"
    start = {name: value.detach().cpu() for name, value in there.base.trained.items()}
    there.run()
    request.getfixturevalue("here")
    make(*words, f"run={tmp_path / 'here'}").run()
    one, other = (load_file(tmp_path / where / "final" / "trained.safetensors") for where in ("there", "here"))
    assert one.keys() == other.keys()
    flat = [torch.cat([weights[name].flatten() for name in sorted(weights)]) for weights in (start, one, other)]
    # By their lengths: where a gradient is nearly 0 Adam steps by its sign.
    assert (flat[1] - flat[2]).norm() < 0.2 * (flat[1] - flat[0]).norm() > 0


@pytest.mark.parametrize(
    "words",
    [
        "model.dtype=float16 model.offload=true",
        pytest.param(
            "model.dtype=bfloat16 model.offload=false model.gradient_checkpointing=true train.guard=true",
            marks=pytest.mark.slow,
        ),
        pytest.param("model.dtype=bfloat16 model.parameters=full method=star_random", marks=pytest.mark.slow),
    ],
)
def test_it_trains_as_a_gpu_is_used(make, words):
    trainer = make("train.epochs=1", "train.ema_every=1", *words.split())
    trainer.run()
    assert all(parameter.is_cuda and parameter.isfinite().all() for parameter in trainer.base.trained.values())
    assert [score.metric for score in trainer.evaluate(1)] == ["red"]


@pytest.mark.parametrize("words", ["sampling.same_latent=true", "sampling.same_latent=false method=temporal train.guard=true"])
def test_a_micro_batch_is_waited_for_once_it_is_drawn_and_never_while_it_is_learnt_from(make, words, monkeypatch):
    drawn, learnt = Counter(), Counter()
    monkeypatch.setattr(learner, "sample", counting(learner.sample, drawn))
    trainer = make("train.epochs=1", *words.split())
    monkeypatch.setattr(trainer, "backward", counting(trainer.backward, learnt))
    trainer.base.prepare([prompt.text for prompt in trainer.task.train], 4.5)
    figures = trainer.epoch(0)
    assert not learnt and figures["grad_norm"] > 0
    # Whether velocities and pixels are finite, and the images; two micro-batches.
    assert drawn.total() == 3 * 2, drawn


def counting(function, found):
    """The same, with its waits added to ``found``."""

    def counted(*args, **kwargs):
        with waits() as these:
            result = function(*args, **kwargs)
        found.update(these)
        return result

    return counted


@pytest.mark.slow
@pytest.mark.parametrize("name", [step.name for step in STEPS if step.name not in ("sharded", "compile")])
def test_every_measurement_of_a_gpu_runs(name, monkeypatch):
    # The sizes of a CPU, and otherwise what a GPU is measured by.
    monkeypatch.setattr(Bench, "sizes", SHRUNKEN)
    (step,) = (step for step in STEPS if step.name == name)
    assert list(import_path(step.measure, step.name)(Bench(torch.device("cuda", 0))))
