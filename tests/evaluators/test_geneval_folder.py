import json
import shutil
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from geneval_layout import evaluate_folder, save_folder
from PIL import Image

from evaluators.geneval import evaluate, prompts
from evaluators.geneval.mini import MiniDetector
from evaluators.geneval.prompts import MINI, TAGS
from evaluators.geneval.rules import Detection
from star.common.errors import UserError
from star.mini.scenes import draw_scene


class CountingDetector:
    """Finds as many dogs as the image's first byte says; all are red, which has to be asked for."""

    name = "counting-0"
    classes = ("dog", "cat")
    colors = ("red",)

    def __init__(self):
        self.asked, self.sizes = [], []

    def __call__(self, images):
        self.sizes.append(len(images))
        return [{"dog": [Detection((0, 0, 1, 1), 0.99)] * int(image[0, 0, 0])} for image in images]

    def with_colors(self, image, name, detections):
        self.asked.append((name, len(detections)))
        return [Detection(d.box, d.score, "red") for d in detections]


def image_of(dogs):
    return np.full((8, 8, 3), dogs, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two prompts, three images each: one dog is right in 2 of 3 images, two dogs in none."""
    records = [prompts.single_object("dog"), prompts.counting("dog", 2)]
    images = [[image_of(n) for n in (1, 0, 2)], [image_of(n) for n in (1, 3, 5)]]
    save_folder(tmp_path / "run", records, images)
    return tmp_path / "run"


def test_saved_folder_has_the_official_layout(folder):
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == [
        "00000/metadata.jsonl", "00000/samples/00000.png", "00000/samples/00001.png", "00000/samples/00002.png",
        "00001/metadata.jsonl", "00001/samples/00000.png", "00001/samples/00001.png", "00001/samples/00002.png",
    ]  # fmt: skip
    assert json.loads((folder / "00001/metadata.jsonl").read_text()) == prompts.counting("dog", 2)
    assert np.array_equal(np.asarray(Image.open(folder / "00001/samples/00002.png")), image_of(5))


def test_evaluated_folder_has_a_row_per_image(folder):
    rows = evaluate_folder(folder, CountingDetector())
    assert rows.columns.tolist() == [
        "filename", "tag", "prompt", "index", "correct", "strict", "score", "reason", "protocol",
    ]  # fmt: skip
    assert rows["filename"].tolist()[:2] == ["00000/samples/00000.png", "00000/samples/00001.png"]
    assert rows["index"].tolist() == [0, 0, 0, 1, 1, 1]
    assert rows["correct"].tolist() == [True, False, True, False, False, False]
    assert rows["strict"].tolist() == [True, False, False, False, False, False]
    assert rows["score"].tolist() == [1, 0, 0, 0.5, 0.5, -0.5]
    assert rows["reason"].tolist()[1] == "expected dog>=1, found 0"
    assert set(rows["protocol"]) == {"geneval-v1/counting-0"}


def test_only_digits_are_looked_at(folder):
    (folder / "00000a").mkdir()
    (folder / "samples").mkdir()
    for name in ("grid.png", "00000.jpg", "00000_small.png"):
        Image.fromarray(image_of(9)).save(folder / "00000/samples" / name)
    assert len(evaluate_folder(folder, CountingDetector())) == 6
    for name in ("00007.jpg", "00007.gif", "00007.PNG"):
        Image.fromarray(image_of(9)).save(folder / "00000/samples" / name)
        with pytest.raises(UserError, match=f"{name} would be left out: GenEval's images are called 00000.png"):
            evaluate_folder(folder, CountingDetector())
        (folder / "00000/samples" / name).unlink()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda run: (run / "00002").write_text("a file"), "run/00002 has the name of a prompt's folder but is none; restore"),
        (lambda run: (run / "00002").symlink_to("gone"), "run/00002 has the name of a prompt's folder but is none; restore"),
        (lambda run: shutil.copytree(run / "00001", run / "1"), "run/00001 and 1 have one number; move or renumber one"),
        (lambda run: Image.fromarray(image_of(1)).save(run / "00001/samples/2.png"), "samples/00002.png and 2.png have one"),
    ],
)
def test_what_has_a_number_is_a_prompt_or_an_image_and_the_only_one(folder, make, told):
    make(folder)
    with pytest.raises(UserError, match=told):
        evaluate.judge_folder(folder, CountingDetector())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda run: (run / "00001").rename(run / "00007"),
            "6 prompt folders are missing up to number 7, the first of them 00001",
        ),
        (
            lambda run: (run / "00000").rename(run / "00003"),
            "1 prompt folders are missing up to number 3, the first of them 00002",
        ),
        (
            lambda run: (run / "00001/samples/00001.png").unlink(),
            r"prompts have 2 (00001) to 3 images; those with more count for",
        ),
    ],
)
def test_a_folder_that_seems_incomplete_is_scored_with_a_caution(folder, capsys, change, told):
    kinds = "its prompts are of the kinds single_object, counting, GenEval's of single_object, two_object, counting, colors,"
    evaluate.judge_folder(folder, CountingDetector())
    before = capsys.readouterr().err.splitlines()
    assert len(before) == 1 and before[0].startswith(f"star: caution: {folder}: {kinds}")
    change(folder)
    rows = evaluate_folder(folder, CountingDetector())
    said = capsys.readouterr().err.splitlines()
    assert len(rows) > 4 and len(said) == 2 and said[0].startswith(f"star: caution: {folder}: {told}")


def test_nothing_is_said_of_a_whole_folder_or_of_another_benchmark(tmp_path, capsys):
    whole = [next(record for record in prompts.generate(MINI) if record["tag"] == tag) for tag in TAGS]
    for name, records in (("whole", whole), ("other", [{**whole[0], "tag": "styles"}])):
        save_folder(tmp_path / name, records, [[np.full((64, 64, 3), 128, np.uint8)]] * len(records))
        evaluate.judge_folder(tmp_path / name, MiniDetector())
    assert capsys.readouterr().err == ""


def test_what_cannot_be_judged_is_told_before_the_first_image(folder):
    (folder / "00001/metadata.jsonl").write_text(json.dumps(prompts.single_object("cow")))
    with pytest.raises(UserError, match="counting-0 does not know 'cow' of .*00001/metadata.jsonl$"):
        evaluate.judge_folder(folder, CountingDetector())
    (folder / "00001/metadata.jsonl").write_text(json.dumps(prompts.single_object("dog")))
    shutil.rmtree(folder / "00001/samples")
    with pytest.raises(UserError, match="no images like 00000.png in .*00001/samples"):
        evaluate.judge_folder(folder, CountingDetector())


def test_large_images_are_judged_in_smaller_batches(folder, monkeypatch):
    whole = evaluate_folder(folder, CountingDetector())
    detector = CountingDetector()
    monkeypatch.setattr("evaluators.images.MOST_PIXELS", 2 * 64)
    assert evaluate_folder(folder, detector).equals(whole) and detector.sizes == [2, 1, 2, 1]


def test_gray_images_and_those_with_an_opaque_alpha_are_read_as_rgb(folder):
    Image.fromarray(np.full((8, 8), 1, np.uint8)).save(folder / "00000/samples/00001.png")
    opaque = np.full((8, 8, 4), 1, np.uint8)
    opaque[..., 3] = 255
    Image.fromarray(opaque).save(folder / "00000/samples/00002.png")
    rows = evaluate_folder(folder, CountingDetector())
    assert rows["strict"].tolist()[:3] == [True, True, True]


def summary_of(rows):
    return pd.DataFrame(evaluate.summarise(rows))


def naive_summary(rows):
    """Means, and standard errors from the sums of residuals per prompt, all in loops."""

    def mean_and_error(part, column):
        values = [float(v) for v in part[column]]
        mean = sum(values) / len(values)
        sums = defaultdict(float)
        for value, prompt in zip(values, part["prompt"], strict=True):
            sums[prompt] += value - mean
        g = len(sums)
        return mean, (g / (g - 1) * sum(s * s for s in sums.values())) ** 0.5 / len(values)

    table = {}
    for verdict, column in (("official", "correct"), ("strict", "strict"), ("continuous", "score")):
        per_tag = {tag: mean_and_error(rows[rows["tag"] == tag], column) for tag in set(rows["tag"])}
        table |= {f"geneval_{verdict}_{tag}": entry for tag, entry in per_tag.items()}
        table[f"geneval_{verdict}_micro"] = mean_and_error(rows, column)
        means, errors = zip(*per_tag.values(), strict=True)
        table[f"geneval_{verdict}_macro"] = sum(means) / len(means), sum(e * e for e in errors) ** 0.5 / len(errors)
    solved = [float(rows[rows["prompt"] == prompt]["correct"].any()) for prompt in rows["prompt"].unique()]
    table["geneval_official_prompts"] = np.mean(solved), np.std(solved, ddof=1) / len(solved) ** 0.5
    return table


def random_rows(sizes, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for tag, prompts_of_tag in sizes.items():
        for number, images in enumerate(prompts_of_tag):
            chance = rng.uniform()
            for _ in range(images):
                correct = bool(rng.random() < chance)
                rows.append((tag, f"{tag} {number}", correct, correct and bool(rng.random() < 0.5), rng.normal()))
    return pd.DataFrame(rows, columns=["tag", "prompt", "correct", "strict", "score"]).assign(protocol="p/d")


def test_summary_against_plain_loops():
    rows = random_rows({"position": [4, 4, 1, 3], "colors": [2, 5], "counting": [4] * 7})
    summary = summary_of(rows)
    expected = naive_summary(rows)
    assert set(summary["metric"]) == set(expected)
    for row in summary.itertuples():
        assert (row.value, row.stderr) == pytest.approx(expected[row.metric], rel=1e-9)
    by_metric = summary.set_index("metric")
    assert by_metric.loc["geneval_strict_colors", ["images", "prompts"]].tolist() == [7, 2]
    assert by_metric.loc["geneval_official_macro", ["images", "prompts"]].tolist() == [47, 13]
    assert by_metric.loc["geneval_official_prompts", ["images", "prompts"]].tolist() == [47, 13]


def test_error_of_equal_groups_is_that_of_the_prompt_means():
    rows = random_rows({"counting": [4] * 9}, seed=1)
    summary = summary_of(rows).set_index("metric")
    means = rows.groupby("prompt")["score"].mean()
    assert summary.loc["geneval_continuous_counting", "stderr"] == pytest.approx(means.std() / 3)


def test_repeating_images_adds_no_certainty():
    """Four identical images of a prompt tell as much as one."""
    rows = random_rows({"counting": [1] * 9, "colors": [1] * 5}, seed=2)
    once, often = summary_of(rows), summary_of(pd.concat([rows] * 4))
    assert often["value"].to_numpy() == pytest.approx(once["value"].to_numpy())
    assert often["stderr"].to_numpy() == pytest.approx(once["stderr"].to_numpy())


def test_macro_of_the_published_row_differs_from_micro():
    """SD3.5-M in Flow-GRPO's table: .98 .78 .50 .81 .24 .52 over 80 99 80 94 100 100 prompts."""
    counts = dict(zip(TAGS, (80, 99, 80, 94, 100, 100), strict=True))
    shares = (0.98, 0.78, 0.50, 0.81, 0.24, 0.52)
    rows = pd.DataFrame(
        [
            (tag, f"{tag} {i}", True, True, share)
            for (tag, n), share in zip(counts.items(), shares, strict=True)
            for i in range(n)
        ],
        columns=["tag", "prompt", "correct", "strict", "score"],
    ).assign(protocol="p/d")
    summary = summary_of(rows).set_index("metric")["value"]
    assert summary["geneval_continuous_macro"] == pytest.approx(0.638, abs=5e-4)
    assert summary["geneval_continuous_micro"] == pytest.approx(0.629, abs=5e-4)
    assert summary["geneval_official_macro"] == 1


def test_one_prompt_has_no_standard_error(folder):
    rows = evaluate_folder(folder, CountingDetector())
    summary = summary_of(rows).set_index("metric")
    assert np.isnan(summary.loc["geneval_official_counting", "stderr"])
    (alone,) = (score for score in evaluate.summarise(rows) if score.metric == "geneval_official_counting")
    assert alone.stderr is None
    assert summary.loc["geneval_official_prompts", "value"] == 0.5


def test_rows_of_two_protocols_are_not_mixed():
    rows = random_rows({"counting": [2, 2]})
    with pytest.raises(ValueError, match="2 protocols"):
        summary_of(pd.concat([rows, rows.assign(protocol="other")]))


def test_colors_are_asked_for_only_where_needed():
    detector = CountingDetector()
    records = [prompts.colors("dog", "red"), prompts.single_object("dog"), prompts.colors("dog", "red")]
    results = evaluate.verdicts(records, [image_of(3), image_of(3), image_of(0)], detector)
    assert detector.asked == [("dog", 1)]
    assert [v.correct for v in results] == [True, True, False]


def test_verdicts_of_too_many_objects():
    records = [prompts.single_object("dog")] * 3
    found = evaluate.verdicts(records, [image_of(n) for n in (1, 2, 3)], CountingDetector())
    assert [(v.score, v.correct, v.strict) for v in found] == [(1, True, True), (0, True, False), (-1, True, False)]


def test_mini_scenes_pass_through_a_folder(tmp_path):
    rng = np.random.default_rng(3)
    records = [prompts.draw(tag, MINI, rng) for tag in TAGS for _ in range(2)]
    save_folder(tmp_path / "mini", records, ([draw_scene(r, rng)[0] for _ in range(2)] for r in records))
    rows = evaluate_folder(tmp_path / "mini", MiniDetector())
    assert len(rows) == 24 and rows["correct"].mean() > 0.95
    assert set(rows["protocol"]) == {"geneval-v1/mini-2"} and summary_of(rows)["images"].max() == 24


def test_unknown_words_are_the_users_error(folder):
    detector = CountingDetector()
    with pytest.raises(UserError, match="counting-0 does not know 'cow'"):
        evaluate.verdicts([prompts.single_object("cow")], [image_of(1)], detector)
    with pytest.raises(UserError, match="counting-0 does not know 'blue'"):
        evaluate.verdicts([prompts.colors("dog", "blue")], [image_of(1)], detector)
    with pytest.raises(UserError, match="mini-2 does not know 'dog'"):
        evaluate_folder(folder, MiniDetector())


def test_missing_and_empty_folders_are_the_users_error(tmp_path, folder):
    for path, message in ((tmp_path / "none", "no such folder"), (tmp_path, "holds no prompt folders")):
        with pytest.raises(UserError, match=message):
            evaluate_folder(path, CountingDetector())
    for path in (folder / "00001/samples").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no images like 00000.png in .*00001/samples"):
        evaluate_folder(folder, CountingDetector())


@pytest.mark.parametrize("keep", [0, 20, 45])
def test_broken_images_are_named(folder, keep):
    path = folder / "00001/samples/00002.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="cannot read the image .*00001/samples/00002.png"):
        evaluate_folder(folder, CountingDetector())


GOOD = {"class": "dog", "count": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not one JSON object"),
        ("{", "is not one JSON object"),
        ("{}\n{}\n", "is not one JSON object"),
        ("[]", "not a JSON object"),
        (json.dumps({"tag": "colors", "prompt": "p"}), '"include" is missing or empty'),
        (json.dumps({"include": [GOOD], "prompt": "p"}), '"tag" is missing'),
        (json.dumps({"tag": "colors", "include": [GOOD]}), '"prompt" is missing'),
        (json.dumps({"tag": "t", "prompt": "p", "include": [{"count": 1}]}), '"class" is missing'),
        (json.dumps({"tag": "t", "prompt": "p", "include": [{"class": "dog"}]}), '"count" is missing or below 1'),
        (json.dumps({"tag": "t", "prompt": "p", "include": [GOOD | {"count": 0}]}), '"count" is missing or below 1'),
        (json.dumps({"tag": "t", "prompt": "p", "include": [GOOD], "exclude": {}}), '"exclude" is not a list'),
        (json.dumps({"tag": "t", "prompt": "p", "include": [GOOD], "exclude": [{}]}), '"class" is missing'),
        (
            json.dumps({"tag": "t", "prompt": "p", "include": [GOOD | {"position": ["left of", 0]}]}),
            '"position" is not',
        ),
        (
            json.dumps({"tag": "t", "prompt": "p", "include": [GOOD, GOOD | {"position": ["near", 0]}]}),
            '"position" is not',
        ),
        (json.dumps({"tag": "t", "prompt": "p", "include": [GOOD, GOOD | {"position": "left"}]}), '"position" is not'),
    ],
)
def test_broken_metadata_is_named(folder, text, message):
    (folder / "00001/metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        evaluate_folder(folder, CountingDetector())
    assert "00001/metadata.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_half_written_prompts_are_the_users_error(folder):
    (folder / "00001/metadata.jsonl").unlink()
    with pytest.raises(UserError, match="00001/metadata.jsonl is missing"):
        evaluate_folder(folder, CountingDetector())
