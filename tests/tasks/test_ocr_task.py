import hashlib

import numpy as np
import pytest

from evaluators.interface import Score
from evaluators.ocr.pool import Pool
from star.common.errors import UserError
from star.config import load
from star.tasks import Prompt, load_task, sign_words
from star.tasks import prompt_files as data


class Oracle:
    """Reads what the first bytes of an image say, as letters."""

    name = "oracle-1"

    def lines(self, image):
        word = bytes(image.flat[: image.flat[-1]]).decode()
        return [word] if word else []


def picture(word):
    image = np.zeros((2, 4, 3), np.uint8)
    image.flat[: len(word)] = list(word.encode())
    image.flat[-1] = len(word)
    return image


@pytest.fixture
def task():
    task = load_task(load(["task=ocr"]), "ocr")
    real = task.evaluator.protocol
    task.evaluator.pool = Pool(Oracle(), 0)
    assert real.startswith("ocr-v1/rapidocr-3.")
    return task


def test_mini_prompts_are_signs_and_no_test_word_is_trained(task):
    assert task.evaluator.protocol == "ocr-v1/oracle-1"
    train, test = (
        [prompt.text[start:end] for prompt in split for start, end in prompt.spans] for split in (task.train, task.test)
    )
    assert sorted([*train, *test]) == sorted(sign_words.WORDS) and len(set(sign_words.WORDS)) == len(sign_words.WORDS)
    assert len(test) == 128 and set(test) == sign_words.TEST_WORDS
    assert task.train[0].text == f'a sign that says "{train[0]}"'


def test_verdicts_and_scores(task):
    prompts = [Prompt(sign_words.prompt(word), ()) for word in ("STAR", "ROBOT")]
    shown = [("STAR", 0), ("ROBIN", 1), ("", 0), ("A Robot", 1)]
    asked = [prompts[number] for _, number in shown]
    verdicts = task.evaluator.submit(asked, [picture(word) for word, _ in shown])()
    assert [verdict["reward"] for verdict in verdicts] == [1, pytest.approx(0.6), 0, 1]
    assert [verdict["exact"] for verdict in verdicts] == [True, False, False, True]
    assert [verdict["text"] for verdict in verdicts] == ["STAR", "ROBIN", "", "A Robot"]
    assert len({verdict["stratum"] for verdict in verdicts}) == 1
    assert all(verdicts[0].keys() >= {key} for key in task.evaluator.paired)
    reward, exact = task.evaluator.summarise(asked, verdicts)
    # Two prompts of two images each: means 0.5 and 0.8 about 0.65, so half their difference.
    assert reward == Score("ocr_accuracy", pytest.approx(0.65), pytest.approx(0.15), 4, 2)
    assert exact == Score("ocr_exact", 0.5, 0.0, 4, 2)
    assert reward.metric == task.evaluator.primary
    assert task.evaluator.summarise(asked[:1], verdicts[:1])[0].stderr is None


def test_a_prompt_without_quotes_is_told(task):
    with pytest.raises(UserError, match="'a red star' has no text in double quotes"):
        task.evaluator.submit([Prompt("a red star", ())], [picture("STAR")])()


def test_paper_prompts_come_from_the_published_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = load_task(load(["scale=paper", "evaluators.ocr=rapidocr"]), "ocr")
    with pytest.raises(UserError, match="data/ocr/test.txt is missing; `star data ocr`"):
        _ = task.test
    content = b'A cake "Happy Day" on it\nA "No Entry" sign'
    lines = b'A "Stop" sign\nA 5" pipe\nAn empty "" one\nNo text at all'
    published = {
        "test.txt": data.Published(2, hashlib.sha256(content).hexdigest()),
        "train.txt": data.Published(4, hashlib.sha256(lines).hexdigest()),
    }
    monkeypatch.setattr(data, "FILES", {"ocr": published})
    folder = tmp_path / "data" / "ocr"
    folder.mkdir(parents=True)
    (folder / "test.txt").write_bytes(content)
    (folder / "train.txt").write_bytes(lines)
    assert task.train == [Prompt('A "Stop" sign', ((3, 7),))], "lines that quote no text cannot be trained on"
    assert task.test == [
        Prompt('A cake "Happy Day" on it', ((8, 17),)),
        Prompt('A "No Entry" sign', ((3, 11),)),
    ]
