from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from tiny import FAST

from evaluators.geneval.prompts import MINI
from evaluators.geneval.rules import Detection
from star.bench import localisation, overhead
from star.common.errors import UserError
from star.config import load
from star.tasks import load_task


class LeftHalf:
    """Finds every class on the left half of the pictures, so many times on each of them in turn."""

    name, classes, colors = "left", MINI.names, MINI.colors

    def __init__(self, *times):
        self.times = cycle(times)

    def __call__(self, images):
        mask = np.zeros(images[0].shape[:2], bool)
        mask[:, : mask.shape[1] // 2] = True
        found = Detection((0.0, 0.0, 32.0, 64.0), 1.0, mask=mask)
        return [{name: [found] * times for name in MINI.names} for _, times in zip(images, self.times, strict=False)]


def test_concentration_is_relevance_inside_over_area(pipeline_folder, monkeypatch, tmp_path):
    task = load_task(load(["task=geneval"]), "geneval")
    task.evaluator.detector, task.test = LeftHalf(4), task.test[::6]
    monkeypatch.setattr(localisation, "load_task", lambda config, name: task)
    result = localisation.measure([*FAST.split(), f"model.path={pipeline_folder}"])
    blocks, steps = 3, 4
    assert result.concentration.shape == (len(task.test), blocks, steps)
    assert result.maps.shape == (len(task.test), blocks, steps, 8, 8)
    assert np.allclose(result.maps.mean((-2, -1)), 1, atol=1e-4)
    assert np.allclose(result.concentration, result.maps[..., :4].mean((-2, -1)), atol=1e-5)
    assert result.prompts[0] == task.test[0].text
    assert np.allclose(result.stderr()[1, 2], np.std(result.concentration[:, 1, 2], ddof=1) / len(task.test) ** 0.5)
    assert result.blocks == [0, 1]
    localisation.picture(replace(result, blocks=[1]), tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 1000
    table = localisation.shown(result)
    assert len(table.rows) == blocks and len(table.columns) == len(table.rows[0]) == steps + 2
    # Where objects are missing the picture does not count.
    task.evaluator.detector = LeftHalf(0, 1, 2, 3, 4)
    wanted = [max(c["count"] for c in prompt.target["include"]) for prompt in task.test]
    right = [n for n, count in enumerate(wanted) if count <= n % 5]
    assert any(0 < n % 5 < count for n, count in enumerate(wanted))
    fewer = localisation.measure([*FAST.split(), f"model.path={pipeline_folder}"])
    assert fewer.prompts == [task.test[n].text for n in right]
    assert np.allclose(fewer.maps, result.maps[right], atol=1e-4) and np.array_equal(fewer.images, result.images[right])


def test_overhead_times_the_same_epochs_of_both(pipeline_folder, monkeypatch):
    taken = {"star": (50.0, 3.0, 6.0), "uniform": (70.0, 2.0, 3.0)}  # the first epoch does not count

    def epoch(trainer, number):
        return {"sampling_seconds": taken[trainer.config.method.arm][number] - 1, "update_seconds": 1.0}

    monkeypatch.setattr(overhead, "ROUNDS", 2)
    monkeypatch.setattr(overhead.Trainer, "epoch", epoch)
    results = overhead.measure([*FAST.split(), f"model.path={pipeline_folder}"])
    assert [(name, mean.value) for name, mean in results] == [
        ("dense_uniform, seconds", 2.5),
        ("star, seconds", 4.5),
        ("ratio star / dense_uniform", 1.75),
    ]
    assert [mean.stderr for _, mean in results] == pytest.approx([0.5, 1.5, 0.25])


@pytest.mark.parametrize("chosen", ["[6]", "[-1]", "[]"])
def test_blocks_to_draw_that_are_not_there_are_told_before_the_work(pipeline_folder, monkeypatch, chosen):
    monkeypatch.setattr(localisation, "_measured", lambda *given: pytest.fail("measured"))
    with pytest.raises(UserError, match="block"):
        localisation.measure([*FAST.split(), f"model.path={pipeline_folder}", f"relevance.blocks={chosen}"], drawn=True)


def test_the_methods_that_are_timed_cannot_be_chosen():
    with pytest.raises(UserError, match="method=spatial: what is timed is dense_uniform and star"):
        overhead.measure(["method=spatial"])


def test_localisation_takes_the_configured_heads(pipeline_folder):
    with pytest.raises(UserError, match="head 99 does not exist"):
        localisation.measure([*FAST.split(), f"model.path={pipeline_folder}", "relevance.heads=[99]"])
