"""An evaluation that was cut off goes on where it was, and gives what one that was not gives."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_task import RedTask

from star.training import evaluation, partial, runs
from star.training.partial import Judged, Partial


def judged(number: int, index: int, **verdict) -> Judged:
    thumbnail = torch.full((3,), number + index / 8)
    return Judged((number, index), verdict, thumbnail, np.full((2, 2, 3), number, np.uint8) if index == 0 else None)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(partial, "KEEP_SECONDS", -1.0)


@pytest.fixture
def cut(make_config, monkeypatch):
    """Settings of a run, and what judges: it counts images, and is interrupted after so many."""
    monkeypatch.setattr(runs, "commit", lambda: "abc")
    monkeypatch.setattr("star.training.trainer.commit", lambda: "abc")
    state = SimpleNamespace(images=0, limit=10**6)

    class Task(RedTask):
        def judge(self, prompts, images):
            if "star" not in prompts[0].text and prompts[0] in self.test:
                if state.images >= state.limit:
                    raise KeyboardInterrupt
                state.images += len(images)
            return super().judge(prompts, images)

    for module in ("star.training.runs", "star.training.trainer"):
        monkeypatch.setattr(f"{module}.load_task", lambda config, name, evaluator=None: Task())
    words = ("train.epochs=1", "train.micro_batch=2", "evaluation.images=5")
    return make_config(*words), state


def files(final: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in [final / "images.csv", *sorted(final.glob("samples/*.png"))]}


def test_an_evaluation_that_was_cut_off_goes_on(cut, capsys):
    config, state = cut
    final = Path(config.run, "final")
    rows = runs.trained(config)
    whole, everything = files(final), state.images - 2  # by which the evaluator was tried
    assert everything == 10 and len(whole) == 3 and not (final / "partial").exists()
    (final / "rows.json").unlink()
    for name in whole:
        Path(name).unlink()

    state.images, state.limit = 0, 6
    with pytest.raises(KeyboardInterrupt):
        runs.trained(config)
    kept = sorted((final / "partial").glob("*.safetensors"))
    assert kept and not (final / "rows.json").exists()
    kept[0].write_bytes(kept[0].read_bytes()[:-3])  # one more batch is lost with it

    state.images, state.limit = 0, 10**6
    capsys.readouterr()
    assert runs.trained(config) == rows and files(final) == whole
    assert 0 < state.images < everything
    (final / "partial").mkdir()  # as if it had been killed as it was done
    assert runs.trained(config) == rows
    assert f"evaluating on red goes on: {everything - state.images} of 10 images are judged" in capsys.readouterr().err
    assert not (final / "partial").exists()


def test_what_depends_on_something_else_does_not_count(tmp_path):
    Partial(tmp_path / "there", "one").keep([judged(0, 0, reward=0.1)])
    assert Partial(tmp_path / "there", "one").read(samples=True).keys() == {(0, 0)}
    assert Partial(tmp_path / "there", "other").read(samples=True) == {}
    assert Partial(tmp_path / "none", "one").read(samples=True) == {}


def test_an_evaluation_goes_on_with_what_the_same_weights_code_and_machine_gave(monkeypatch, tmp_path):
    def key(hashed="0", protocol="red-v1", updates=2, at_once=8, trained_by="8 x H100", **by):
        for name, value in ({"commit": "abc", "versions": "torch 1", "machine": "one"} | by).items():
            monkeypatch.setattr(runs, name, lambda value=value: value)
        config = SimpleNamespace(train=SimpleNamespace(micro_batch=at_once))
        kept = runs.Kept(config, {"updates": updates, "machine": trained_by}, 0, None)
        return kept._partial(tmp_path, hashed, protocol).key

    others = [{"hashed": "1"}, {"protocol": "red-v2"}, {"updates": 4}, {"at_once": 9}]
    others += [{"commit": "def"}, {"versions": "torch 2"}, {"machine": "other"}]
    assert key() == key() == key(trained_by="4 x H100")
    assert len({key(), *(key(**other) for other in others)}) == 1 + len(others)


def test_what_is_kept_is_what_was_judged(tmp_path):
    """Numbers to the last digit, and every image once."""
    told = [judged(n, i, reward=1 / 3 + n, right=bool(i), text="ä,\n", none=None) for n in range(3) for i in range(2)]
    writer = Partial(tmp_path, "key")
    writer.keep(told[:4])
    writer.keep(told[:4])
    writer.keep(told)
    assert len(list(tmp_path.iterdir())) == 2
    found = Partial(tmp_path, "key").read(samples=True)
    for one in told:
        other = found[one.job]
        assert other.verdict == one.verdict and torch.equal(other.thumbnail, one.thumbnail)
        assert (other.sample is None) == (one.sample is None) and (one.sample is None or (other.sample == one.sample).all())
    assert all(one.sample is None for one in Partial(tmp_path, "key").read(samples=False).values())


@pytest.mark.parametrize("value", [np.float32(0.1), (1, 2), {1: 2}, float("nan")])
def test_what_a_file_would_change_is_not_kept(tmp_path, value):
    Partial(tmp_path, "key").keep([judged(0, 0, reward=0.1, odd=value)])
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_every_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(partial, "KEEP_SECONDS", 300.0)
    Partial(tmp_path, "key").keep([judged(0, 0, reward=0.1)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", ["abc+dirty", "unknown"])
def test_code_that_may_change_unseen_keeps_nothing(cut, monkeypatch, code):
    config, state = cut
    monkeypatch.setattr(runs, "commit", lambda: code)
    state.limit = 6
    with pytest.raises(KeyboardInterrupt):
        runs.trained(config)
    assert not Path(config.run, "final", "partial").exists()


def test_processes_draw_what_one_of_them_does_not_know(monkeypatch):
    batches = [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(2, 0)], [(3, 0)]]
    known = {job: judged(*job) for job in [(0, 0), (1, 0), (1, 1), (2, 0)]}
    monkeypatch.setattr(evaluation, "gather", lambda accelerator, missing: [*missing, 2])  # of another process
    assert evaluation._left(batches, known, None) == [batches[0], batches[2], batches[3]]
