import errno
import json
import os
import re
import signal
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluators.folder import score_folder
from evaluators.interface import Text, mean_and_stderr, mean_scores
from evaluators.ocr.pool import ReaderStopped
from star.common.errors import Interrupted, RunStopped, UserError


def shades(prompts, images):
    """Judges an image by its first byte; some prompts and images cannot be judged."""
    for prompt, image in zip(prompts, images, strict=True):
        if prompt == "bad":
            raise UserError("prompt 'bad' has no quotes")
        if image[0, 0, 0] == 13:
            raise RunStopped("the recogniser died on image 0")
    return [{"shade": int(image[0, 0, 0]), "upper": prompt.upper()} for prompt, image in zip(prompts, images, strict=True)]


@pytest.fixture
def folder(tmp_path):
    """Images 1.png, 2.png and 10.png of these shades, their prompts, and files that are no images."""
    images = tmp_path / "images"
    images.mkdir()
    for shade in (10, 2, 1):
        save(images / f"{shade}.png", shade)
    (images / "notes.txt").write_text("no image")
    (images / "sub").mkdir()
    (tmp_path / "prompts.txt").write_text("one\ntwo\nten\n")
    return tmp_path


def save(path, shade):
    Image.fromarray(np.full((3, 2, 3), shade, np.uint8)).save(path)


def score(folder, prompts="prompts.txt", judge=shades, **options):
    return score_folder(folder / "images", folder / prompts, judge, "shade-v1", folder / "deep/out.csv", **options)


def test_invisible_characters_in_prompts_are_told_and_scored(folder, capsys):
    (folder / "prompts.txt").write_text("one\nt\u200bwo\nt\u202een\n")
    assert score(folder)["upper"].tolist() == ["ONE", "T\u200bWO", "T\u202eEN"]
    told = r"prompts.txt: 2 prompts hold invisible characters, which models read; the first is U\+200B in 't\\u200bwo'"
    assert re.search(told, capsys.readouterr().err)
    (folder / "prompts.txt").write_text("one\ntwo \U0001f469\u200d\U0001f680\nten\n")  # an emoji is joined by one
    score(folder)
    assert "invisible" not in capsys.readouterr().err


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_images_get_the_prompts_in_the_natural_order_of_names(folder, batch):
    sizes = []

    def judge(prompts, images):
        sizes.append(len(prompts))
        return shades(prompts, images)

    rows = score(folder, judge=judge, batch=batch)
    assert rows.to_dict("list") == {
        "file": ["1.png", "2.png", "10.png"],
        "prompt": ["one", "two", "ten"],
        "shade": [1, 2, 10],
        "upper": ["ONE", "TWO", "TEN"],
        "protocol": ["shade-v1"] * 3,
    }
    assert sizes == {1: [1, 1, 1], 2: [2, 1], 16: [3]}[batch]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "deep/out.csv"), rows)
    assert [path.name for path in (folder / "deep").iterdir()] == ["out.csv"]


def test_large_images_are_judged_in_smaller_batches(folder, monkeypatch):
    monkeypatch.setattr("evaluators.images.MOST_PIXELS", 13)  # of 6 each
    sizes = []
    assert len(score(folder, judge=lambda prompts, read: sizes.append(len(read)) or shades(prompts, read))) == 3
    assert sizes == [2, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", 'prompt,file\r\n"a, b",10.png\r\n"say ""hi""",1.png\r\n'),
        ("p.tsv", 'file\tprompt\n10.png\ta, b\n1.png\tsay "hi"\n'),
        ("p.jsonl", '{"file": "10.png", "prompt": "a, b"}\n\n{"file": "1.png", "prompt": "say \\"hi\\"", "x": 1}\n'),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_table_says_which_images_have_which_prompts(folder, name, text, mark):
    (folder / name).write_text(mark + text, "utf-8")
    rows = score(folder, name)
    assert rows[["file", "prompt", "shade"]].values.tolist() == [["10.png", "a, b", 10], ["1.png", 'say "hi"', 1]]


@pytest.fixture
def signals():
    """As a terminal has them: whoever runs tests in the background ignores some."""
    own = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("batch", [1, 2, 16])
@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        ("prompt", UserError, "prompt 'bad' has no quotes"),
        ("image", UserError, "cannot read the image .*2.png"),
        ("judge", RunStopped, "the recogniser died on image 0"),
    ],
)
def test_what_was_scored_before_a_failure_is_kept(folder, batch, damage, error, message):
    match damage:
        case "prompt":
            (folder / "prompts.txt").write_text("one\nbad\nten\n")
        case "image":
            (folder / "images/2.png").write_bytes((folder / "images/2.png").read_bytes()[:45])
        case "judge":
            save(folder / "images/2.png", 13)
    with pytest.raises(
        error, match=rf"{message}.*; stopped at 2.png; the scores of the 1 images before it are in .*out.partial.csv$"
    ):
        score(folder, batch=batch)
    kept = pd.read_csv(folder / "deep/out.partial.csv")
    assert kept.values.tolist() == [["1.png", "one", 1, "ONE", "shade-v1"]]


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        (lambda: 1 / 0, RunStopped, "ZeroDivisionError: division by zero; stopped at 10.png"),
        (lambda: "\ud800".encode(), RunStopped, "UnicodeEncodeError: .*; stopped at 10.png"),
        (lambda: signal.raise_signal(signal.SIGTERM), Interrupted, "ended by SIGTERM"),
        (lambda: signal.raise_signal(signal.SIGHUP), Interrupted, "ended by SIGHUP"),
        (lambda: signal.raise_signal(signal.SIGINT), Interrupted, "interrupted"),
    ],
)
def test_whatever_ends_the_scoring_what_was_scored_is_kept(folder, signals, end, error, message):
    def judge(prompts, images):
        if "ten" in prompts:
            end()
        return shades(prompts, images)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(error, match=rf"^{message}; the scores of the 2 images before it are in .*out.partial.csv$"):
        score(folder, judge=judge, batch=1)
    assert pd.read_csv(folder / "deep/out.partial.csv")["shade"].tolist() == [1, 2]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_signal_that_is_ignored_stays_so(folder, monkeypatch):
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        score(folder, judge=lambda *given: signal.raise_signal(signal.SIGHUP) or shades(*given))
    finally:
        signal.signal(signal.SIGHUP, old)


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf")])
def test_nothing_is_scored_that_is_not_finite(folder, value):
    def judge(prompts, images):
        return [row | {"reward": value if row["shade"] == 2 else 0.5} for row in shades(prompts, images)]

    with pytest.raises(RunStopped, match=f"shade-v1, for 2.png, gives reward={value}: its weights are damaged, or .*1 images"):
        score(folder, judge=judge)
    assert pd.read_csv(folder / "deep/out.partial.csv")["file"].tolist() == ["1.png"]


@pytest.mark.parametrize("key", ["file", "prompt", "image", "protocol", "seed"])
def test_verdicts_do_not_replace_what_a_row_is_about(folder, key):
    def judge(prompts, images):
        return [row | {key: "x"} for row in shades(prompts, images)]

    with pytest.raises(UserError, match=f"^shade-v1 gives '{key}' in its verdicts, .*; call it otherwise; stopped at 1.png;"):
        score(folder, judge=judge)
    assert not (folder / "deep/out.csv").exists()


def test_scores_of_files_whose_names_are_no_text_are_kept(folder):
    os.rename(folder / "images/10.png", os.fsencode(folder / "images") + b"/10\xff.png")
    assert score(folder)["shade"].tolist() == [1, 2, 10]
    assert "10\\udcff.png" in (folder / "deep/out.csv").read_text()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("images/table.csv", "is an input of this command"),
        ("images/../images/table.csv", "is an input of this command"),
        ("hard.csv", "is an input of this command"),
        ("soft.csv", "is an input of this command"),
        ("notes.csv", "is no table of scores and would be overwritten"),
        ("pipe.csv", "is no table of scores and would be overwritten"),
        ("images/1.png", "name a CSV file, out=NAME.csv"),
        ("/dev/null", "name a CSV file, out=NAME.csv"),
    ],
)
def test_scores_replace_nothing_but_scores(folder, out, message):
    table = folder / "images/table.csv"
    table.write_text("file,prompt,protocol\n1.png,one,older scores\n2.png,bad,older scores\n")
    os.link(table, folder / "hard.csv")
    os.symlink(table, folder / "soft.csv")
    os.mkfifo(folder / "pipe.csv")
    (folder / "notes.csv").write_text("file,prompt,mine\n1.png,one,dear\n")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message):
        score_folder(folder / "images", table, never, "v", folder / out)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_scores_that_are_whole_are_not_replaced_by_some(folder):
    whole = score(folder)
    (folder / "prompts.txt").write_text("one\nbad\nten\n")
    with pytest.raises(UserError, match="stopped at 2.png; the scores of the 1 images before it are in .*out.partial.csv$"):
        score(folder)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "deep/out.csv"), whole)
    (folder / "deep/out.partial.csv").write_text("file,prompt,mine\n1.png,one,dear\n")
    with pytest.raises(UserError, match="out.partial.csv is no table of scores and would be overwritten"):
        score(folder, judge=never)
    assert "dear" in (folder / "deep/out.partial.csv").read_text()


@pytest.mark.parametrize("prompts", ["one\ntwo\nten\n", "one\nbad\nten\n"])
def test_scores_for_which_the_disk_has_no_room_are_put_elsewhere(folder, monkeypatch, prompts):
    """As where it has become full during the scoring."""
    (folder / "prompts.txt").write_text(prompts)
    (folder / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "elsewhere"))
    to_csv = pd.DataFrame.to_csv

    def full(frame, file, **options):
        if "deep" in file.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        to_csv(frame, file, **options)

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(UserError, match=r"cannot be written to .*: .*No space left on device; they are in .*\.csv$") as error:
        score(folder)
    kept = pd.read_csv(str(error.value).rpartition("they are in ")[2])
    assert kept["shade"].tolist() == ([1] if "bad" in prompts else [1, 2, 10]) and not [*(folder / "deep").glob("*.csv")]
    assert ("prompt 'bad' has no quotes" in str(error.value)) == ("bad" in prompts)


def test_a_failure_at_the_first_image_leaves_older_scores_alone(folder):
    score(folder)
    before = (folder / "deep/out.csv").read_bytes()
    (folder / "prompts.txt").write_text("bad\ntwo\nten\n")
    with pytest.raises(UserError, match="stopped at 1.png; nothing was scored before it$"):
        score(folder)
    assert (folder / "deep/out.csv").read_bytes() == before


def test_a_failure_that_passes_costs_nothing(folder):
    calls = []

    def judge(prompts, images):
        calls.append(len(prompts))
        if len(calls) == 1:
            raise RunStopped("once")
        return shades(prompts, images)

    assert score(folder, judge=judge)["shade"].tolist() == [1, 2, 10]
    assert calls == [3, 1, 1, 1]


def test_an_image_that_is_known_to_stop_the_reader_is_not_read_again(folder):
    calls = []

    def judge(prompts, images):
        calls.append(prompts)
        if "two" in prompts:
            raise ReaderStopped("the reader twice gave no answer", prompts.index("two"))
        return shades(prompts, images)

    message = "the reader twice gave no answer; stopped at 2.png; the scores of the 1 images before it are in"
    with pytest.raises(RunStopped, match=message):
        score(folder, judge=judge)
    assert calls == [["one", "two", "ten"], ["one"]]


def test_an_interruption_keeps_what_was_scored(folder):
    def judge(prompts, images):
        if prompts == ["ten"]:
            raise KeyboardInterrupt
        return shades(prompts, images)

    with pytest.raises(Interrupted, match=r"interrupted; the scores of the 2 images before it are in .*out.partial.csv$"):
        score(folder, judge=judge, batch=1)
    assert pd.read_csv(folder / "deep/out.partial.csv")["shade"].tolist() == [1, 2]


def never(prompts, images):
    raise AssertionError("judged before the input was checked")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "one\ntwo\n", "p.txt has 2 prompts, but .*images has 3 images"),
        ("p.txt", "one\n\nten\n", "p.txt line 2 is empty"),
        ("p.txt", " \n", "p.txt holds no prompts"),
        ("p.txt", b"\xff\xfe\x00", "p.txt cannot be read as a text file"),
        ("p.txt", None, "no such file of prompts: .*p.txt"),
        ("p.csv", None, "no such file of prompts: .*p.csv"),
        ("p.csv", "file,prompt\n", "p.csv holds no prompts"),
        ("p.csv", "file,text\n1.png,one\n", 'p.csv, row 1: "prompt" is missing or empty'),
        ("p.csv", "file,prompt\n1.png,one\n2.png\n", 'p.csv, row 2: "prompt" is missing or empty'),
        ("p.csv", "file,prompt\n3.png,three\n", "p.csv names 3.png, which is not in .*images"),
        ("p.jsonl", '{"file": "1.png"\n', "p.jsonl is not one JSON object per line"),
        ("p.jsonl", '["1.png", "one"]\n', 'p.jsonl, row 1: "file" is missing or empty'),
        ("p.jsonl", '{"file": 1, "prompt": "one"}\n', 'p.jsonl, row 1: "file" is missing or empty'),
    ],
)
def test_bad_prompt_files_are_one_clear_line(folder, name, content, message):
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        score(folder, name, judge=never)
    assert "\n" not in str(error.value)
    assert not (folder / "deep").exists()


def test_a_table_may_name_images_in_folders_below_but_no_absolute_paths(folder):
    images = folder / "images"
    for shade in (1, 2, 10):
        (images / f"{shade}.png").rename(images / f"sub/{shade}.png")
    (folder / "p.csv").write_text("file,prompt\nsub/2.png,two\n")
    assert score(folder, "p.csv")["file"].tolist() == ["sub/2.png"]
    (folder / "p.csv").write_text("file,prompt\n/elsewhere/2.png,two\n")
    with pytest.raises(UserError, match=r"p.csv names /elsewhere/2.png; files are named relative to .*images"):
        score(folder, "p.csv", judge=never)


def test_what_a_prompt_lacks_is_told_before_the_first_image_is_judged(folder):
    told = "^.*prompts.txt: the prompt 'two' of 2.png has no text in double quotes; shade-v1 needs it$"
    with pytest.raises(UserError, match=told):
        score(folder, judge=never, lacks=lambda prompt: "text in double quotes" if prompt == "two" else "")
    assert not (folder / "deep").exists()


def test_bad_folders_are_one_clear_line(folder):
    (folder / "empty").mkdir()
    (folder / "empty/notes.txt").write_text("no image")
    for name, message in (("none", "no such folder of images: .*none"), ("empty", r"empty holds no images \(.png, .jpg")):
        with pytest.raises(UserError, match=message):
            score_folder(folder / name, folder / "prompts.txt", never, "v", folder / "out.csv")


def test_a_place_that_cannot_be_written_is_told_before_scoring(folder):
    for out, message in (
        (folder / "prompts.txt/out.csv", "the scores cannot go to"),
        (folder / "images", "it is a folder"),
        (Path("/proc/out.csv"), "the scores cannot go to"),
    ):
        with pytest.raises(UserError, match=message):
            score_folder(folder / "images", folder / "prompts.txt", never, "v", out)


def test_mean_and_standard_error_are_clustered_by_prompt():
    values, prompts = [1, 0, 1, 1, 0, 0, 1], ["a", "b", "a", "c", "b", "c", "c"]
    mean = sum(values) / 7
    total = 0.0
    for prompt in "abc":
        residual = sum(value - mean for value, own in zip(values, prompts, strict=True) if own == prompt)
        total += residual**2
    expected = (3 / 2 * total / 7**2) ** 0.5
    assert mean_and_stderr(values, prompts) == (pytest.approx(mean), pytest.approx(expected))
    assert mean_and_stderr([0.25, 0.75], ["a", "a"]) == (0.5, None)


def test_summary_of_a_folder(folder):
    rows = score(folder)
    prompts = [Text(text) for text in rows["prompt"]]
    (row,) = mean_scores(prompts, rows.to_dict("records"), {"mean_shade": "shade"})
    stderr = np.std([1, 2, 10], ddof=1) / np.sqrt(3)
    assert set(rows["protocol"]) == {"shade-v1"}
    assert row == ("mean_shade", pytest.approx(13 / 3), pytest.approx(stderr), 3, 3)
    assert mean_scores(prompts[:1], rows[:1].to_dict("records"), {"mean_shade": "shade"})[0].stderr is None


def test_json_prompts_may_hold_any_text(folder):
    prompt = 'naïve "quo\nted" \u2028 text'
    (folder / "p.jsonl").write_text(json.dumps({"file": "1.png", "prompt": prompt}, ensure_ascii=False), "utf-8")
    assert score(folder, "p.jsonl")["prompt"].tolist() == [prompt]
