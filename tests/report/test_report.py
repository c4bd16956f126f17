"""The report of made-up results: a whole matrix, and the least that there can be."""

import html
import json
import re
import shlex
from contextlib import nullcontext
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_results import (
    ARMS,
    EPOCHS,
    EVALUATION_SEED,
    PRIMARY,
    PROTOCOLS,
    SEEDS,
    TASKS,
    curve,
    first_images,
    hashed,
    rows,
    score,
    verdicts,
    write_matrix,
    write_run,
)
from PIL import Image
from safetensors.torch import save_file
from tiny import FAST

from star.common.errors import UserError
from star.common.files import write_last
from star.common.numbers import MISSING, signed
from star.common.statistics import mean_interval, paired_difference, score_variances
from star.config import load, read_config, to_yaml
from star.method.arms import ABLATION
from star.models.sd3 import SD3
from star.records.comparison import compare, variances
from star.records.results import read, result_files, write
from star.report import figures, maps, pictures, report
from star.report.ablation import _forest, _named, comparisons, difference_row
from star.report.blocks import _inline
from star.report.collection import Collection, base_of, collect
from star.report.cost import cost
from star.report.learning import _speed
from star.report.planned import planned
from star.report.provenance import _command, overrides
from star.report.sections import OTHER_SEEDS, _findings, _reading
from star.report.tags import ENOUGH_PROMPTS, by_tag
from star.report.uncertainty import _normalised, uncertainty

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements of a page, and whether they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The report of a whole matrix, with run folders of some cells: (folder, HTML, Markdown)."""
    folder = tmp_path_factory.mktemp("whole")
    results = write_matrix(folder)
    for method in ("base", "flow_grpo", "star"):
        write_run(folder / "runs", "geneval", method, EVALUATION_SEED if method == "base" else 0)
    page, markdown = report(results, folder / "runs")
    assert page == results / "report.html"
    return folder, page.read_text(), markdown.read_text()


def section(markdown: str, title: str) -> str:
    return re.split(r"^## ", markdown.split(f"\n## {title}", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str, caption: str) -> list[list[str]]:
    lines = text.split(f"*{caption}", 1)[1].split("\n\n", 2)[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "---" not in line]


def test_the_page_needs_nothing_but_itself(whole):
    page = Page(whole[1])
    assert not page.all("script") and not page.all("link")
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name, "") or ""
            assert value.startswith(("data:image/png;base64,", "#")) or not value
    style = re.search(r"<style>(.*?)</style>", whole[1], re.DOTALL)[1]
    assert "@import" not in style and "url(http" not in whole[1]
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", whole[1]))
    for needed in ("prefers-color-scheme: dark", "@media print", "@media (max-width: 40rem)"):
        assert needed in style
    assert len(whole[1]) < 3_000_000


def test_the_page_can_be_read_by_machines(whole):
    page = Page(whole[1])
    assert page.all("html") == [{"lang": "en"}] and page.all("title")[0] == {}
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table")) > 10
    assert {head["scope"] for head in page.all("th")} == {"col", "row"}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)


def test_text_of_prompts_and_settings_cannot_become_markup(whole):
    assert "&lt;&amp;&gt;" in whole[1] and "<&>" not in whole[1]


def test_every_chapter_is_there(whole):
    titles = re.findall(r"^## (.*)", whole[2], re.MULTILINE)
    assert titles == [
        "In short",
        "What this says",
        "Beside the shipped results",
        "The planned tests",
        "Beside the paper",
        "How the reward grew",
        "Ablation: every arm minus Flow-GRPO",
        "Where the uncertainty comes from",
        "What gradients say about the maps, without training",
        "What the first updates of a training gain",
        "What the noise of one token does",
        "Where the reward goes, before and after",
        "Samples at the same noise",
        "On the other tasks, and diversity",
        "GenEval by kind of prompt",
        "What training cost",
        "How these numbers were made",
    ]


def test_every_chapter_has_what_it_is_for(whole):
    """Tables, drawings and pictures of each chapter of the page, and words that must be in it."""
    parts = re.split(r'<section id="(\w+)">', whole[1])
    chapters = {name: Page(text[: text.rindex("</section>")]) for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    arms = len(ARMS)
    expected = {
        "opening": (0, 3, 0, "star bench gradient answers this without training"),
        "says": (0, 0, 0, "STAR minus star_shuffled is"),
        "shipped": (3, 0, 0, "No shipped run has your settings and seed"),
        "planned": (3, 0, 0, "is it the map's match to the prompt?"),
        "paper": (6, 0, 0, "not comparable (mini) 0.9759"),
        "learning": (6, 3 * arms, 0, "a line per seed"),
        "ablation": (1 + 6 + 6, 6, 0, "does the map have to match the prompt?"),
        "uncertainty": (3, 0, 0, "evaluation noise"),
        "gradients": (0, 0, 0, "star bench gradient measures it"),
        "first_updates": (0, 0, 0, "star bench first_updates measures it"),
        "influence": (0, 0, 0, "star bench influence measures it"),
        "maps": (0, 0, 0, "Not drawn"),
        "samples": (0, 0, 1, "not chosen by eye"),
        "elsewhere": (2, 6, 0, "trained for"),
        "tags": (2, 2, 0, "published 0.98"),
        "cost": (6, 0, 0, "seconds of an epoch"),
        "made": (3, 0, 0, "star train task=geneval scale=mini method=star seed=2"),
    }
    assert OTHER_SEEDS not in whole[2] and "some arms have fewer" not in whole[2]
    for name, (tables, svgs, images, words) in expected.items():
        page = chapters[name]
        assert [len(page.all(tag)) for tag in ("table", "svg", "img")] == [tables, svgs, images], name
        assert words in " ".join(" ".join(page.text).split()).replace("\xa0", " "), name
    assert list(chapters) == list(expected)
    assert all(f"seed={seed}" in whole[2] and hashed("ocr", "star", seed) in whole[2] for seed in SEEDS)
    assert {"abc1234567", *PROTOCOLS.values(), "torch"} <= set(re.findall(r"[\w./-]+", whole[2]))


def test_text_keeps_numbers_whole_and_shows_code():
    assert _inline("95 % of `a < b`: +0.1 [−0.2, +0.3] (0.11, 0.12) 0.5 ± 0.1") == (
        "95\xa0% of <code>a &lt; b</code>: +0.1 [−0.2,\xa0+0.3] (0.11,\xa00.12) 0.5\xa0±\xa00.1"
    )


def test_star_is_set_against_the_controls_too(whole):
    page = Page(whole[1])
    forests = [svg["aria-label"] for svg in page.all("svg") if "STAR minus every other arm" in svg["aria-label"]]
    assert len(forests) == len(TASKS)
    ours = compare(images_of("ocr", "star", "star_shuffled"), "star", "star_shuffled", "reward", "accuracy")
    low, high = ours.delta.interval
    assert f"star_shuffled {ours.delta.value:+.3f} [{low:+.3f}, {high:+.3f}]" in forests[1]
    lines = table(section(whole[2], "Ablation"), "ocr, accuracy: STAR minus every other arm")
    assert [line[0] for line in lines[1:]] == [
        *("dense_uniform", "spatial only", "temporal only", "star_shuffled", "star_random"),
    ]


def test_differences_by_tag_are_those_of_its_prompts(whole):
    images = images_of("geneval", "star", "flow_grpo")
    ours = compare(images[images["stratum"] == "counting"], "star", "flow_grpo", "correct", "official macro")
    lines = table(section(whole[2], "GenEval by kind"), "GenEval, official rule, by tag: paired differences")
    (line,) = (line for line in lines if line[0] == "counting")
    # Four prompts are too few for an interval.
    assert line[1] == f"{ours.delta.value:+.3f}" and line[3] == f"{ours.images} of {ours.prompts} prompts"
    assert ours.prompts < ENOUGH_PROMPTS
    many = pd.concat([images, images.assign(prompt=images["prompt"] + "2"), images.assign(prompt=images["prompt"] + "3")])
    many = pd.concat([many, many.assign(prompt=many["prompt"] + "4")]).assign(task="geneval")
    assert by_tag(many)["counting"].prompts == 24 and by_tag(many)["counting"].delta.interval
    seeds = [r.value for s in SEEDS for r in rows("geneval", "star", s) if r.metric == "geneval_official_counting"]
    (line,) = (
        line
        for line in table(section(whole[2], "GenEval by kind"), "GenEval, official rule, by tag: mean")
        if line[0] == "STAR"
    )
    assert line[4] == f"{np.mean(seeds):.2f} ({', '.join(f'{value:.2f}' for value in seeds)})"


def test_what_is_worked_out_is_written_for_programs(whole):
    folder = whole[0] / "results" / "mini" / "tables"
    differences = pd.read_csv(folder / "differences.csv")
    ours = compare(images_of("ocr", "star", "flow_grpo"), "star", "flow_grpo", "reward", "accuracy")
    (line,) = differences.query(
        "task == 'ocr' and score == 'accuracy' and arm == 'star' and reference == 'flow_grpo'"
    ).to_dict("records")
    assert (line["difference"], line["low"], line["high"]) == pytest.approx((ours.delta.value, *ours.delta.interval), abs=1e-6)
    assert line["seeds"] == "0 1 2" and line["images"] == 48 and line["trained_alike"]
    paper = pd.read_csv(folder / "against_paper.csv")
    (line,) = paper.query("task == 'ocr' and metric == 'ocr_accuracy' and method == 'star'").to_dict("records")
    assert (line["status"], line["reference"]) == ("not comparable (mini)", 0.9757)


def test_a_claim_is_made_of_the_paired_difference(whole):
    star, other = (pd.concat([verdicts("ocr", m, s).assign(seed=s) for s in SEEDS]) for m in ("star", "flow_grpo"))
    delta = paired_difference(star["reward"], other["reward"], list(star["prompt"]), seeds=list(star["seed"]))
    low, high = delta.interval
    expected = f"STAR minus Flow-GRPO is {delta.value:+.3f} [{low:+.3f}, {high:+.3f}] on the accuracy"
    says = section(whole[2], "What this says")
    verdict = "**ocr: Better than Flow-GRPO on these seeds; too few for a claim.**"
    assert f"{verdict} {expected} (48 images of 24 prompts, 3 training seeds)" in says
    assert says.count("not comparable with the paper") == 3


def test_mini_is_marked_and_the_paper_is_beside_it(whole):
    assert "Not comparable with the paper." in whole[1]
    lines = table(section(whole[2], "Beside the paper"), "geneval, official macro")
    assert [line[:3] for line in lines[1:]] == [
        ["base", "not comparable (mini)", "0.63"],
        ["Flow-GRPO", "not comparable (mini)", "0.95"],
        ["dense_uniform", "no paper value", "–"],
        ["spatial only", "no paper value", "not known"],
        ["temporal only", "no paper value", "not known"],
        ["STAR", "not comparable (mini)", "0.9759"],
        ["star_shuffled", "no paper value", "–"],
        ["star_random", "no paper value", "–"],
    ]
    values = [row.value for seed in SEEDS for row in rows("geneval", "star", seed) if row.metric == "geneval_official_macro"]
    assert lines[6][4] == ", ".join(f"{value:.3f}" for value in values)


def test_every_seed_has_a_curve_and_never_is_said(whole):
    page = Page(whole[1])
    curves = [svg["aria-label"] for svg in page.all("svg") if "training reward of" in svg["aria-label"]]
    assert len(curves) == len(TASKS) * len(ARMS)
    assert all(f"seed {seed} from" in alt for alt in curves for seed in SEEDS)
    text = section(whole[2], "How the reward grew")
    assert "| never | never | never | 0 of 3 |" in text and "(area under the curve)" in text


def test_the_other_tasks_are_a_table_of_three_by_three(whole):
    lines = table(section(whole[2], "On the other tasks"), "Main score")
    assert lines[0] == ["method", "trained for", "seeds", *TASKS]
    assert len(lines) == 2 + len(ARMS) * 3
    star = next(line for line in lines if line[:2] == ["STAR", "ocr"])
    other = pd.concat([first_images("geneval", "star", s).assign(seed=s) for s in SEEDS]).assign(
        method="star:ocr", trained_on=2304, terms=""
    )
    images = pd.concat([images_of("geneval", "base"), other.assign(protocol=PROTOCOLS["geneval"])])
    gain = compare(images, "star:ocr", "base", "correct", "official macro")
    assert gain.images == 24
    mean = np.mean([score("geneval", first_images("geneval", "star", s)) for s in SEEDS])
    assert star[2:4] == ["3", f"{mean:.3f} ({signed(gain.delta)})"] and star[4].startswith("0.8")


def test_costs_are_relative_to_the_reference(whole):
    lines = table(section(whole[2], "What training cost"), "geneval")
    costs = {line[0]: line[-2:] for line in lines[1:]}
    assert costs["Flow-GRPO"] == ["× 1.00", f"× {630 / 650:.2f}"]
    assert costs["STAR"] == [f"× {650 / 630:.2f}", "× 1.00"]
    lines = table(section(whole[2], "What training cost"), "ocr: seconds of an epoch")
    assert lines[1] == ["Flow-GRPO", "30.00", "20.00", "50.00", "× 1.00", f"× {50 / 55:.2f}"]
    assert lines[5][:4] == ["STAR", "35.00", "20.00", "55.00"]


def test_an_epoch_together_is_the_median_of_the_epochs_sums():
    """And not the sum of the parts' medians, 4 seconds, which most epochs took longer than."""
    epochs = pd.DataFrame({"sampling_seconds": [1.0, 2.0, 9.0], "update_seconds": [9.0, 2.0, 1.0]})
    made = Collection(Path(), "mini", rows("ocr", "flow_grpo", 0), [])
    made.curves = epochs.assign(task="ocr", method="flow_grpo")
    assert cost(made).blocks[1].rows == [["Flow-GRPO", "2.00", "2.00", "10.00", "× 1.00", MISSING]]


def test_settings_of_each_task_are_listed():
    made = Collection(Path(), "mini", [], [])
    caps = {("geneval", 0): 3, ("geneval", 1): 3, ("ocr", 0): 9, ("pickscore", 0): 3}
    made.commands = {
        (task, "star", seed, str(cap)): f"star train task={task} method=star seed={seed} method.cap={cap}"
        for (task, seed), cap in caps.items()
    }
    (listed,) = _named(made)
    assert listed.rows == [["STAR", "method.cap=3 (on geneval, pickscore)"], ["STAR", "method.cap=9 (on ocr)"]]


def test_seconds_are_means_over_seeds_and_those_of_a_thousand_images():
    made = [row for seed in (0, 1, 5) for row in rows("ocr", "flow_grpo", seed)]
    (block,) = cost(Collection(Path(), "mini", made, [])).blocks[:-1]
    assert block.head[4:6] == ["seconds of a run", "seconds per 1,000 images"]
    assert block.rows == [["Flow-GRPO", "3", "40", "2,304", "660", f"{1000 * 660 / 2304:.1f}", "× 1.00", MISSING]]


def test_standard_deviations_stand_below_their_sources(whole):
    text = section(whole[2], "Where the uncertainty")
    for task, caption, column in (("geneval", "official macro", "correct"), ("pickscore", "PickScore", "score")):
        lines = {line[0]: line[1:] for line in table(text, f"{task}, {caption}: standard deviation by source")}
        assert lines["method"] == ["training seed", "prompts", "evaluation noise", "interaction"]
        parts = variances(images_of(task, "star"), "star", column)
        values = (parts.seed, parts.prompt, parts.noise, parts.interaction)
        assert lines["STAR"] == [f"{max(value, 0) ** 0.5:.4f}" for value in values] and len(set(values)) == 4


def test_five_seeds_are_enough_for_an_aggregate(whole, tmp_path):
    assert "at least 5 runs of each task and 15 in all" in section(whole[2], "Where the uncertainty")
    _, markdown = report(write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=range(5)), tmp_path)
    lines = table(section(markdown.read_text(), "Where the uncertainty"), "Over 15 runs of 3 tasks")
    flow_grpo, star = lines[1:]
    assert [flow_grpo[0], star[0]] == ["Flow-GRPO", "STAR"]
    assert flow_grpo[2:] == ["–", "–"] and star[2] == "1.00 [1.00, 1.00]" and star[3] == "–"
    assert float(flow_grpo[1].split()[0]) == pytest.approx(1, abs=0.15)


def test_an_arm_with_few_seeds_does_not_keep_the_others_from_an_aggregate(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star", "spatial"), seeds=range(5))
    for task in TASKS:
        file = results / f"{task}.csv"
        write([row for row in read(file) if row.method != "spatial" or row.seed < 3], file)
    found = collect(results, tmp_path)
    (across,) = uncertainty(found).parts[0].blocks
    assert across.caption.startswith("Over 15 runs of 3 tasks") and [line[0] for line in across.rows] == ["Flow-GRPO", "STAR"]
    assert {f"On {task} some arms have fewer than 5 seeds: spatial (3)." for task in TASKS} <= set(found.missing)
    assert OTHER_SEEDS in [block.text for block in _reading(found, set())]


def test_a_gain_that_is_not_clear_is_no_unit():
    scores = [row.value for s in range(5) for row in rows("ocr", "flow_grpo", s) if row.metric == PRIMARY["ocr"]]
    lowest = mean_interval(scores).interval[0]
    trained = [row for method in ("flow_grpo", "star") for s in range(5) for row in rows("ocr", method, s)]
    for start, clear in ((lowest - 0.001, True), (lowest + 0.001, False), (max(scores), False)):
        base = [replace(row, value=start) for row in rows("ocr", "base", 0)]
        normalised, left_out = _normalised(Collection(Path(), "mini", [*base, *trained], []))
        assert ("ocr" in normalised) == clear
        assert clear or left_out == {"ocr": "Flow-GRPO is not clearly above the base, so its gain cannot be the unit"}


def test_an_arm_that_was_not_trained_alike_is_in_no_aggregate(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star", "spatial"), seeds=range(5))
    rows = read(results / "ocr.csv")
    write([replace(r, images_seen=2 * r.images_seen) if r.method == "star" else r for r in rows], results / "ocr.csv")
    found = collect(results, tmp_path / "runs")
    normalised, left_out = _normalised(found)
    assert normalised["ocr"].keys() == {"flow_grpo", "spatial"} and "star" in normalised["geneval"]
    assert left_out == {"STAR on ocr": "it was not trained or judged as Flow-GRPO was"}
    cells = ("spatial", 2, "other"), ("flow_grpo", 0, "one")
    found.terms = {("geneval", method, seed, hashed("geneval", method, seed)): terms for method, seed, terms in cells}
    protocol = PROTOCOLS["geneval"]
    assert not found.trained_alike("geneval", "spatial", "flow_grpo", protocol)
    assert found.trained_alike("geneval", "star", "flow_grpo", protocol)


def test_sample_pictures_are_kept_and_used_without_the_run_folders(tmp_path, whole):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))
    for method in ("base", "flow_grpo", "star"):
        write_run(tmp_path / "runs", "geneval", method, EVALUATION_SEED if method == "base" else 0)
    html = report(results, tmp_path / "runs")[0].read_text()
    picture = results / "figures" / "samples-geneval.png"
    with Image.open(picture) as image:
        assert f"star seed 0, settings {hashed('geneval', 'star', 0)}" in image.info["Source"]
        assert "thing 00 <&>" in image.info["Description"]
        first = verdicts("geneval", "star", 0).query("image == 0").set_index("prompt")["correct"]
        for prompt, verdict in re.findall(r"“([^”]+)”: [^;]*STAR (\w+)", image.info["Description"]):
            assert verdict == ("right" if first[prompt] else "wrong")
    before = picture.stat().st_mtime_ns
    page, _ = report(results, tmp_path / "gone", tmp_path / "again.html")
    assert picture.stat().st_mtime_ns == before
    assert [i["src"] for i in Page(page.read_text()).all("img")] == [i["src"] for i in Page(html).all("img")] != []
    assert "Not drawn: the run folders are not here, and neither is samples-ocr.png" in whole[1]


def test_what_cannot_be_drawn_costs_no_more_than_its_picture(tmp_path, monkeypatch):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))
    for method in ("base", "flow_grpo", "star"):
        path = write_run(tmp_path / "runs", "geneval", method, EVALUATION_SEED if method == "base" else 0)
    file = path / "final" / "images.csv"
    write_last(file, pd.read_csv(file).drop(columns="correct").to_csv(index=False), [])

    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(pictures, "read_config", lambda file: load(["task=geneval"]))
    monkeypatch.setattr(maps, "load", full)
    text = report(results, tmp_path / "runs")[1].read_text()
    assert "Not drawn: the methods were judged by different evaluators" in text
    assert "Not drawn: CUDA out of memory. Tried to allocate 2 GiB" in text


def test_pictures_of_other_runs_are_drawn_again(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))
    for method in ("base", "flow_grpo", "star"):
        path = write_run(tmp_path / "runs", "geneval", method, EVALUATION_SEED if method == "base" else 0)
    report(results, tmp_path / "runs")
    picture = results / "figures" / "samples-geneval.png"
    first = picture.read_bytes()
    for file in (path / "final" / "samples").glob("*.png"):
        Image.new("RGB", (16, 16)).save(file)
    report(results, tmp_path / "runs")
    assert picture.read_bytes() == first
    rewritten = [row | {"commit": "newer"} for row in json.loads((path / "final" / "rows.json").read_text())]
    (path / "final" / "rows.json").write_text(json.dumps(rewritten))
    report(results, tmp_path / "runs")
    assert picture.read_bytes() != first


def test_a_run_that_was_changed_afterwards_is_left_out(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))
    (results / "images.csv.gz").unlink()
    path = write_run(tmp_path / "runs", "geneval", "star", 0)
    write_last(path / "final" / "rows.json", (path / "final" / "rows.json").read_text(), ["images.csv", "../metrics.jsonl"])
    assert path in collect(results, tmp_path / "runs").runs.values()
    (path / "metrics.jsonl").write_text("")
    found = collect(results, tmp_path / "runs")
    assert not found.runs and f"A run folder is not used: {path}/metrics.jsonl is not what was written." in found.missing


def test_a_run_of_other_settings_is_not_that_of_the_rows(tmp_path):
    results = write_matrix(tmp_path, arms=("star",), seeds=(0,), tasks=("ocr",))
    path = write_run(tmp_path / "runs", "ocr", "star", 0)
    assert collect(results, tmp_path / "runs").runs == {("ocr", "star", 0, hashed("ocr", "star", 0)): path}
    file = path / "final" / "rows.json"
    file.write_text(file.read_text().replace(hashed("ocr", "star", 0), "0" * 12))
    assert not collect(results, tmp_path / "runs").runs


def test_the_least_that_reproduce_leaves(tmp_path):
    """One task, one seed, two arms, no table of images or curves, no run folders."""
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))
    (results / "images.csv.gz").unlink()
    (results / "curves.csv").unlink()
    page, markdown = report(results, tmp_path / "runs")
    Page(page.read_text())
    says = section(markdown.read_text(), "What this says")
    assert "; training seed 0." in markdown.read_text()
    for sentence in (
        "**geneval: Not measured.**",
        "Not run: dense_uniform, spatial, temporal, star_shuffled, star_random.",
        "Tasks that were not run: ocr, pickscore.",
        "no arm has more training seeds than 1",
        "Neither images.csv.gz nor the run folders have the per-image verdicts of any run",
        "Neither curves.csv nor the run folders have the training curves of any run",
        "No run folders of these results",
    ):
        assert sentence in says
    _, markdown = report(
        write_matrix(tmp_path / "two", arms=("flow_grpo", "star"), seeds=(0, 1), tasks=("geneval",)), tmp_path
    )
    text = markdown.read_text()
    for sentence in (
        "training seeds 0, 1.",
        "No arm here has meaningless maps",
        "12.7 times as wide",
        "The base was not measured on ocr, pickscore",
    ):
        assert sentence in text


def test_runs_that_stopped_and_code_that_changed_are_told(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), tasks=("ocr",))
    for seed, reason in ((1, "collapsed, of a run that was tried again"), (7, "collapsed: the reward is 0.1"), (8, None)):
        folder = tmp_path / "runs" / "mini" / "ocr" / "star" / f"seed{seed}-abcdef12"
        folder.mkdir(parents=True)
        lines = (
            {"seconds": 1.0, "reason": reason},
            {"seconds": None, "reason": 5},
            {"node": 1, "reason": "node 1: another process of this run has died"},
        )
        (folder / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # Taken over by star train, and a copy by hand.
    for folder in ("star/seed9-abcdef12", "star copy/seed0-abcdef12"):
        made = tmp_path / "runs" / "mini" / "ocr" / folder
        (made / "final").mkdir(parents=True)
        (made / "final" / ("rows.json" if "copy" not in folder else "x")).write_text("[]")
        (made / "attempts.jsonl").write_text(json.dumps({"seconds": 1.0, "reason": "killed"}) + "\n")
    found = collect(results, tmp_path / "runs")
    assert [line for line in found.missing if "stopped without" in line] == [
        "ocr, STAR seed 7 stopped without results: collapsed: the reward is 0.1."
    ]
    assert not [line for line in found.missing if "used the code" in line]
    rows = read(results / "ocr.csv")
    write([replace(r, commit="def+dirty") if (r.method, r.seed) == ("star", 2) else r for r in rows], results / "ocr.csv")
    assert "Trainings on ocr used the code of abc1234567, def+dirty." in collect(results, tmp_path / "runs").missing


def test_run_folders_stand_in_for_missing_tables(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("geneval",))
    whole = collect(results, tmp_path / "none")
    (results / "images.csv.gz").unlink()
    (results / "curves.csv").unlink()
    for method in ("base", "flow_grpo", "star"):
        write_run(tmp_path / "runs", "geneval", method, EVALUATION_SEED if method == "base" else 0)
    found = collect(results, tmp_path / "runs")
    own = whole.images[~whole.images["method"].str.contains(":")].dropna(axis="columns", how="all")
    for ours, theirs in ((found.images, own), (found.curves, whole.curves)):
        columns = [name for name in theirs if name != "config_hash"]
        order = ["method", "prompt" if "prompt" in theirs else "epoch", "image" if "image" in theirs else "seed"]
        pd.testing.assert_frame_equal(
            ours.sort_values(order)[columns].reset_index(drop=True),
            theirs.sort_values(order)[columns].reset_index(drop=True),
            check_dtype=False,
        )
    assert not [sentence for sentence in found.missing if "Neither" in sentence or "No run" in sentence]


def test_verdicts_of_replaced_results_do_not_count(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("ocr",))
    changed = [type(r)(**{**vars(r), "config_hash": "newer"}) if r.method == "star" else r for r in read(results / "ocr.csv")]
    write(changed, results / "ocr.csv")
    found = collect(results, tmp_path)
    assert set(found.images.query("task == 'ocr'")["method"]) == {"base", "flow_grpo"}
    assert "per-image verdicts of ocr star seed 0: they are in no paired comparison." in " ".join(found.missing)


def test_a_folder_with_only_the_base(tmp_path):
    page, _ = report(write_matrix(tmp_path, arms=(), tasks=("pickscore",)), tmp_path / "runs")
    text = " ".join(Page(page.read_text()).text)
    assert "Nothing was trained here." in text and "GenEval was not measured here." in text
    table = pd.read_csv(tmp_path / "results" / "mini" / "tables" / "differences.csv")
    assert table.empty and list(table)[:5] == ["task", "score", "arm", "reference", "difference"]


def test_bad_input_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        report(tmp_path / "none")
    (tmp_path / "mini").mkdir()
    with pytest.raises(UserError, match="no result file in it"):
        report(tmp_path / "mini")
    results = write_matrix(tmp_path, arms=("star",), seeds=(0,), tasks=("ocr",))
    for out in (tmp_path / "report.pdf", tmp_path / "none" / "report.html"):
        with pytest.raises(UserError, match="name an .html file"):
            report(results, out=out)
    (results / "images.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"images\.csv\.gz cannot be read"):
        report(results)
    (results / "images.csv.gz").unlink()
    (results / "curves.csv").write_text("epoch,reward\n1,0.5\n")
    with pytest.raises(UserError, match=r"curves\.csv has no column task, method, seed, config_hash"):
        report(results)


@pytest.mark.parametrize("name", ["mine.csv", "curves.csv"])
def test_a_table_that_is_no_result_file_ends_no_report(tmp_path, name):
    """Such as that of star bench gradient out=...; one that belongs in a results folder is not even told of."""
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("ocr",))
    if name == "mine.csv":
        (results / name).write_text("task,weights,arm,part,metric,value,stderr,epochs,images,commit,config_hash\n")
    found = collect(results, tmp_path)
    assert {row.task for row in found.rows} == {file.stem for file in result_files(results)} == {"geneval", "ocr", "pickscore"}
    told = [sentence for sentence in found.missing if sentence.startswith("Not read, because")]
    assert told == ["Not read, because their columns are not those of result files: mine.csv."] * (name == "mine.csv")


def test_a_damaged_header_of_a_tasks_file_is_not_skipped(tmp_path):
    results = write_matrix(tmp_path, arms=("star",), seeds=(0,), tasks=("ocr", "geneval"))
    (results / "ocr.csv").write_text((results / "ocr.csv").read_text().replace("metric", "metrics", 1))
    with pytest.raises(UserError, match=r"ocr\.csv line 1: the columns are task,metrics,"):
        collect(results, tmp_path)
    (results / "mine.csv").mkdir()
    with pytest.raises(UserError, match=r"mine\.csv is a folder"):
        result_files(results)


def test_truth_values_of_one_task_and_numbers_of_another_are_one_column(tmp_path):
    """As evaluators of one's own may give: the file has ``True`` and ``0.53`` in it, which is text to those who read it."""
    results = write_matrix(tmp_path, arms=("star", "flow_grpo"), tasks=("geneval", "ocr"))
    table = pd.read_csv(results / "images.csv.gz", dtype=str)
    correct = collect(results, tmp_path / "none").difference("geneval", "star", "flow_grpo")
    table.loc[table["task"] == "ocr", "correct"] = "0.53"
    table.to_csv(results / "images.csv.gz", index=False)
    found = collect(results, tmp_path / "none")
    assert found.difference("geneval", "star", "flow_grpo") == correct
    report(results)


@pytest.mark.parametrize("cell", ["nan", "inf", "word"])
def test_a_score_that_is_no_number_is_told(tmp_path, cell):
    results = write_matrix(tmp_path, arms=("star", "flow_grpo"), seeds=(0,), tasks=("geneval",))
    table = pd.read_csv(results / "images.csv.gz", dtype=str)
    table.loc[3, "correct"] = cell
    table.to_csv(results / "images.csv.gz", index=False)
    told = "correct of geneval, .*, seed .*, image .* is no number; move it elsewhere, and `star matrix`"
    with pytest.raises(UserError, match=told):
        report(results)


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda own: own[1:], "47 verdicts on 24 prompts for 48 on 24"),
        (lambda own: pd.concat([own, own[:1]]), "49 verdicts on 24 prompts for 48 on 24"),
        (lambda own: pd.concat([own[1:], own[1:2]]), "verdicts that stand twice in place of others"),
        (lambda own: own.assign(reward=own["reward"].where(own.index != own.index[0], 7.0)), "a mean of "),
    ],
)
def test_verdicts_that_contradict_the_rows_are_in_no_comparison(tmp_path, damage, told):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0, 1), tasks=("ocr",))
    table = pd.read_csv(results / "images.csv.gz", dtype={"config_hash": str})
    own = (table["task"] == "ocr") & (table["method"] == "star") & (table["seed"] == 1)
    pd.concat([table[~own], damage(table[own])]).to_csv(results / "images.csv.gz", index=False)
    found = collect(results, tmp_path)
    (line,) = (line for line in found.missing if "contradict result" in line)
    assert f"contradict result rows: ocr star seed 1 ({told}" in line and "seed 0" not in line
    assert found.difference("ocr", "star", "flow_grpo").seeds == (0,)


def test_a_curve_whose_images_fall_is_told(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("ocr",))
    curves = pd.read_csv(results / "curves.csv", dtype={"config_hash": str})
    curves.loc[(curves["method"] == "star") & (curves["epoch"] == 3), "images_seen"] = 5
    curves.to_csv(results / "curves.csv", index=False)
    with pytest.raises(
        UserError, match="curves.csv or its run folder: images_seen of ocr, star, seed 0 does not grow in epoch 3"
    ):
        collect(results, tmp_path)


def test_a_copy_of_a_result_file_is_told_and_not_pooled(tmp_path):
    results = write_matrix(tmp_path, arms=("star",), seeds=(0,), tasks=("ocr",))
    text = (results / "ocr.csv").read_text()
    (results / "._ocr.csv").write_bytes(b"what macOS leaves")
    report(results)
    (results / "ocr_old.csv").write_text(text)
    with pytest.raises(UserError, match=r"ocr\.csv and .*ocr_old\.csv both have a row for ocr, diversity,"):
        report(results)


@pytest.mark.parametrize("out", [".", "/", "page.htm", "nowhere/page.html"])
def test_a_page_is_an_html_file_in_a_folder_that_is_there(tmp_path, monkeypatch, out):
    results = write_matrix(tmp_path, arms=("star",), seeds=(0,), tasks=("ocr",))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--out .*: name an .html file in a folder that exists"):
        report(results, out=Path(out))
    assert report(results, out=Path("ocr.html"))[0].exists()  # a task's name, elsewhere than its result file


@pytest.mark.parametrize("out", ["README.html", "index.html", "ocr.html"])
def test_a_report_replaces_nothing_but_a_report(tmp_path, out):
    results = write_matrix(tmp_path, arms=("star",), seeds=(0,), tasks=("ocr",))
    for name in ("README.md", "index.html"):
        (results / name).write_text("mine")
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="is no report and would be overwritten"):
        report(results, out=results / out)
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("text", ["costs $5 or $6", "$x^$", "$\\frac{1}{$", "\\$1 and $"])
def test_prices_are_no_mathematics(tmp_path, text):
    curve = ([1, 2, 3], [0.1, 0.2, 0.3])
    figures.reward_curves({text: [curve]}, ["black"], text, tmp_path / "x.png")
    assert text in html.unescape(figures.dots_svg({text: {"star": [0.1]}}, text, text))
    assert text in html.unescape(figures.curves_svg({0: curve}, {}, "red", (0, 1), text))


def test_an_arm_and_its_variant_are_told_apart_by_dashes(tmp_path, monkeypatch):
    save, styles = figures.Figure.savefig, {}

    def look(figure, *given, **named):
        assert figure.canvas.manager is None, "of a window, which a backend for notebooks would want to make"
        styles.update({line.get_label(): line.get_linestyle() for line in figure.axes[0].get_legend().get_lines()})
        save(figure, *given, **named)

    monkeypatch.setattr(figures.Figure, "savefig", look)
    curves = [([1, 2], [0.1, 0.2]), ([1, 2], [0.3, 0.4])]
    runs = {"Flow-GRPO": curves, "STAR": curves, "STAR, fast": curves}
    figures.reward_curves(runs, ["blue", "red", "red"], "ocr", tmp_path / "x.png")
    assert styles == {"Flow-GRPO": "-", "STAR": "-", "STAR, fast": "--"}


def images_of(task, *methods, seeds=SEEDS):
    of = {method: (EVALUATION_SEED,) if method == "base" else seeds for method in methods}
    shared = {"protocol": PROTOCOLS[task], "terms": ""}
    terms = {m: {"method": m, "trained_on": 0 if m == "base" else 2304, **shared} for m in methods}
    return pd.concat([verdicts(task, m, s).assign(seed=s, **terms[m]) for m in methods for s in of[m]], ignore_index=True)


def test_comparison_pairs_by_seed_prompt_and_image_whatever_the_order():
    images = images_of("geneval", "star", "flow_grpo").sample(frac=1, random_state=0)
    ours = compare(images, "star", "flow_grpo", "correct", "official macro")
    per_seed = []
    for seed in SEEDS:
        star, other = (verdicts("geneval", m, seed) for m in ("star", "flow_grpo"))
        gains = star["correct"].astype(float) - other["correct"]
        per_seed.append(gains.groupby(star["stratum"]).mean().mean())
    assert ours.per_seed == pytest.approx(per_seed)
    assert ours.delta.value == pytest.approx(np.mean(per_seed))
    assert ours == compare(images.sort_index(), "star", "flow_grpo", "correct", "official macro")
    assert (ours.seeds, ours.prompts, ours.images) == (SEEDS, 24, 48)


def test_the_base_is_compared_with_every_seed():
    images = images_of("ocr", "base", "star")
    down, up = (compare(images, *pair, "reward", "reward") for pair in (("base", "star"), ("star", "base")))
    assert down.seeds == up.seeds == SEEDS
    assert down.delta.value == pytest.approx(-up.delta.value)
    base = verdicts("ocr", "base", EVALUATION_SEED)["reward"].mean()
    assert up.per_seed == pytest.approx([verdicts("ocr", "star", seed)["reward"].mean() - base for seed in SEEDS])


def test_an_interval_of_one_seed_is_marked():
    images = images_of("ocr", "flow_grpo", "star")
    one, all_seeds = (compare(part, "star", "flow_grpo", "reward", "reward") for part in (images[images["seed"] == 0], images))
    assert difference_row(one, "STAR")[1].endswith("] (one seed: prompts alone)")
    assert difference_row(all_seeds, "STAR")[1].endswith("]")
    assert "STAR (one seed)" in _forest("t", "ocr", "reward", [("star", one)])[1]


def test_seeds_that_were_judged_or_trained_otherwise_are_not_pooled():
    def verdicts(method, seed, **changed):
        known = {"protocol": "v1/mini", "trained_on": 64, "terms": "abc", "stratum": "a"} | changed
        rows = [{"method": method, "seed": seed, "prompt": p, "image": 0, "score": float(len(p) + seed)} for p in ("a", "bb")]
        return pd.DataFrame(rows).assign(**known)

    def compared(**changed):
        parts = [verdicts(m, seed, **(changed if seed == 3 else {})) for m in ("star", "flow_grpo") for seed in (0, 1, 3)]
        return compare(pd.concat(parts), "star", "flow_grpo", "score", "score").seeds

    assert compared() == compared(terms="") == (0, 1, 3)
    for changed in ({"protocol": "v1/mini/steps=4"}, {"trained_on": 8}, {"terms": "def"}):
        assert compared(**changed) == (0, 1)


def test_verdicts_under_two_protocols_are_two_measurements():
    plain = images_of("ocr", "star", "flow_grpo")
    guided = plain[plain["seed"] < 2].assign(protocol=plain["protocol"].iloc[0] + "/guidance=2.0", config_hash="0" * 12)
    guided["reward"] = np.where(guided["method"] == "star", 0.0, 1.0)
    for images in (pd.concat([plain, guided]), pd.concat([guided, plain])):
        assert compare(images, "star", "flow_grpo", "reward", "r") == compare(plain, "star", "flow_grpo", "reward", "r")
        assert variances(images, "star", "reward") == variances(plain, "star", "reward")


def test_only_shared_seeds_and_images_are_compared():
    images = images_of("ocr", "star", "flow_grpo")
    lacking = images[~((images["method"] == "star") & (images["seed"] == 1) & (images["prompt"].str.endswith('00"')))]
    ours = compare(lacking, "star", "flow_grpo", "reward", "reward")
    assert (ours.prompts, ours.images) == (23, 46)
    fewer = images[~((images["method"] == "flow_grpo") & (images["seed"] == 2))]
    assert compare(fewer, "star", "flow_grpo", "reward", "reward").seeds == (0, 1)
    other = images.assign(seed=images["seed"] + 10 * (images["method"] == "star"))
    assert compare(other, "star", "flow_grpo", "reward", "reward") is None
    engine = images.assign(protocol=np.where(images["method"] == "star", "ocr-v1/another/mini", images["protocol"]))
    assert compare(engine, "star", "flow_grpo", "reward", "reward") is None
    longer = images.assign(trained_on=np.where(images["method"] == "star", 23_040, 2304))
    assert compare(longer, "star", "flow_grpo", "reward", "reward").trained_on == (23_040, 2304)
    for theirs, same in (("a", True), ("b", False), ("", True)):
        told = images.assign(terms=np.where(images["method"] == "star", "a", theirs))
        assert compare(told, "star", "flow_grpo", "reward", "reward").equal_terms == same
    assert compare(images, "star", "spatial", "reward", "reward") is None
    assert compare(images, "star", "flow_grpo", "score", "score") is None
    twice = pd.concat([images, images[images["prompt"].str.endswith('01"')]])
    assert compare(twice, "star", "flow_grpo", "reward", "reward") == compare(images, "star", "flow_grpo", "reward", "reward")


def test_variances_are_those_of_the_tables():
    images = images_of("geneval", "star")
    strata = []
    for _, part in images.groupby("stratum"):
        cells = part.set_index(["seed", "prompt", "image"])["score"]
        names = sorted(set(part["prompt"]))
        strata.append(np.array([[[cells[s, p, i] for i in range(2)] for p in names] for s in SEEDS]))
    assert vars(variances(images, "star", "score")) == pytest.approx(vars(score_variances(strata)))
    assert variances(images, "spatial", "score") is None


def test_maps_before_and_after_training_are_drawn_from_the_run(make_config, tmp_path):
    results = write_matrix(tmp_path, arms=("star",), seeds=(0,), tasks=("geneval",))
    path = write_run(tmp_path / "runs", "geneval", "star", 0)
    config = make_config("task=geneval", "method=star", "seed=0")
    base = SD3(config.model, torch.device("cpu"), config.seed)
    (path / "config.yaml").write_text("# training settings abc\n" + to_yaml(config))
    save_file({name: value.detach() + 1.0 for name, value in base.trained.items()}, path / "final" / "trained.safetensors")
    page, _ = report(results, tmp_path / "runs")
    (picture,) = (i for i in Page(page.read_text()).all("img") if "rows of" in i["alt"])
    before, after = re.search(r"Weights reach ([\d.]+) times the mean before and ([\d.]+) after", picture["alt"]).groups()
    assert "Two rows of 4 maps" in picture["alt"] and float(before) >= 1 and float(after) >= 1 and before != after
    assert f"+model.path={config.model.path}" in page.read_text() or f"model.path={config.model.path}" in page.read_text()


def test_the_steps_that_training_uses(make_config):
    assert make_config("sampling.window=0", "sampling.steps=5").sampling.trainable == range(4)
    window = make_config("sampling.steps=6", "sampling.window=2", "sampling.window_range=[1,4]").sampling
    assert window.trainable == range(1, 4) and window.trained == 2


@pytest.mark.parametrize("normalise, axes", [("rollout", (0, 1, 2)), ("step", (1, 2))])
def test_maps_are_drawn_as_they_weigh(make_config, normalise, axes):
    relevance = torch.rand(3, 1, 4, 4) * torch.tensor([1.0, 2.0, 4.0])[:, None, None, None]
    weights = maps.drawn_weights(make_config("method=star", f"method.normalise={normalise}"), relevance)
    assert weights.mean(axes) == pytest.approx(1.0, abs=1e-5)
    assert (normalise == "step") == (np.ptp(weights.mean((1, 2))) < 1e-5)


def test_verdicts_are_those_of_their_prompts_whatever_these_are(tmp_path):
    prompts = ["zebra", "None", "apple"]
    pd.DataFrame({"prompt": prompts, "image": 0, "score": [0.1, 0.2, 0.3]}).to_csv(tmp_path / "images.csv", index=False)
    assert pictures._first_images(tmp_path, "score").to_dict() == {"None": 0.2, "apple": 0.3, "zebra": 0.1}
    assert list(pictures._first_images(tmp_path, "score").index) == sorted(prompts)


def test_maps_that_cannot_be_drawn_are_said(tmp_path):
    results = write_matrix(tmp_path, arms=("star",), seeds=(0,), tasks=("geneval",))
    path = write_run(tmp_path / "runs", "geneval", "star", 0)
    (path / "config.yaml").write_text("no: such setting\n")
    _, markdown = report(results, tmp_path / "runs")
    assert "Not drawn:" in section(markdown.read_text(), "Where the reward goes")
    assert "cannot be read by this version" in section(markdown.read_text(), "How these numbers")


def test_maps_are_not_drawn_beside_a_training_on_the_gpu(monkeypatch):
    for free in (0.51, 0.49):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device, free=free: (free * 80, 80))
        with (
            nullcontext()
            if free > 0.5
            else pytest.raises(UserError, match="in use .51% of its memory.; make the report again")
        ):
            maps._check_idle(torch.device("cuda"))
    maps._check_idle(torch.device("cpu"))


def test_a_command_gives_the_settings_of_its_run(tmp_path):
    words = ["task=ocr", "method=spatial", "scale=mini", "seed=2"]
    changed = ["method.cap=4.5", "evaluation.every=1", "rewards.normalise=false", "sampling.window_range=[1,3]"]
    config = load([*words, *FAST.split(), *changed, "run=here"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    made = overrides(tmp_path / "config.yaml", words)
    assert set(changed) <= set(made)
    assert not [word for word in made if word.startswith(("run", "seed"))]
    again = asdict(load([*words, *made, "run=here"]))
    assert again == asdict(config) == asdict(read_config(tmp_path / "config.yaml"))


def test_the_command_of_a_run_that_recorded_none_can_be_typed(tmp_path):
    """From what its folder and its name say."""
    rename(write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("ocr",)), {"star": "star+fast"})
    found = collect(tmp_path / "results" / "mini", tmp_path)
    found.commands.clear()
    config = load(["task=ocr", "method=star", "variant=fast", "method.cap=4.5", "seed=0", "run=here"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    found.runs["ocr", "star+fast", 0, "0123"] = tmp_path
    line, note = _command(found, ("ocr", "star+fast", 0, "0123"))
    assert line.startswith("star train task=ocr scale=mini method=star seed=0 ") and not note
    assert asdict(load([*shlex.split(line)[2:], "run=here"])) == asdict(config)
    for method, told in {
        "base+fast": "star base task=ocr scale=mini",
        "flow_grpo@released": "star calibrate task=ocr scale=mini",
        "mine": "star calibrate task=ocr scale=mini name=mine lora=FOLDER",
    }.items():
        found.rows.append(replace(found.rows[0], method=method, updates=0))
        line, note = _command(found, ("ocr", method, 0, "0123"))
        assert line == told and bool(note) == ("@" not in method)


def test_recorded_commands_are_used(tmp_path):
    results = write_matrix(tmp_path, arms=("star",), seeds=(0,), tasks=("ocr",))
    line = f"ocr,star,0,{hashed('ocr', 'star', 0)},star train task=ocr train.epochs=7\n"
    (results / "commands.csv").write_text("task,method,seed,config_hash,command\n" + line)
    _, markdown = report(results, tmp_path / "runs")
    made = section(markdown.read_text(), "How these numbers")
    assert "star train task=ocr train.epochs=7\n" in made and "star base task=ocr scale=mini\n" in made
    assert f"star report {results}\n" in made


def test_the_arms_are_those_of_the_methods():
    assert ARMS == ABLATION


def changed(folder, task, method, **values):
    """Give the rows of a method other values."""
    file = folder / f"{task}.csv"
    write([replace(row, **values) if row.method == method else row for row in read(file)], file)


def test_a_longer_training_or_another_engine_is_no_gain(tmp_path):
    results = write_matrix(tmp_path, tasks=("ocr",))
    changed(results, "ocr", "star", images_seen=23_040, updates=400)
    says = section(report(results, tmp_path)[1].read_text(), "What this says")
    assert "**ocr: Not trained alike.**" in says and "STAR was trained on 23,040 images and Flow-GRPO on 2,304" in says
    changed(results, "ocr", "star", protocol="ocr-v1/another/mini")
    assert "**ocr: Not measured.**" in section(report(results, tmp_path)[1].read_text(), "What this says")


def test_another_rate_of_learning_is_no_gain(tmp_path):
    results = write_matrix(tmp_path, tasks=("ocr",))
    commands = ["task,method,seed,config_hash,command,terms"]
    commands += [f"ocr,{m},{s},{hashed('ocr', m, s)},star train,{m == 'star'}" for m in ARMS for s in SEEDS]
    (results / "commands.csv").write_text("\n".join(commands) + "\n")
    text = report(results, tmp_path)[1].read_text()
    says = section(text, "What this says")
    assert "**ocr: Not trained alike.**" in says and "but Flow-GRPO was trained with different settings." in says
    unequal = re.search(r"so more than the method differs: (.+)\.", section(text, "Ablation"))[1].split(", ")
    assert "STAR minus Flow-GRPO" in unequal and "STAR minus star_shuffled" in unequal and len(unequal) == len(ARMS) - 1


def judged_otherwise(results: Path, seconds: float, terms: str) -> None:
    """A STAR that was also scored with guidance 2, after a training of so many seconds on such terms."""
    rows_now, hash_of = read(results / "ocr.csv"), {"config_hash": "g" * 12}
    changes = hash_of | {"protocol": f"{PROTOCOLS['ocr']}/guidance=2.0", "seconds": seconds}
    write([*rows_now, *(replace(r, **changes) for r in rows_now if r.method == "star")], results / "ocr.csv")
    for name in ("images.csv.gz", "curves.csv"):
        table = pd.read_csv(results / name, dtype=str, keep_default_na=False)
        again = table[(table["task"] == "ocr") & (table["method"] == "star")].assign(**hash_of)
        pd.concat([table, again]).to_csv(results / name, index=False)
    lines = [f"ocr,{m},0,{hashed('ocr', m, 0)},star train task=ocr method={m},one" for m in ("flow_grpo", "star")]
    lines += [f"ocr,star,0,{'g' * 12},star train task=ocr method=star evaluation.guidance=2.0,{terms}"]
    (results / "commands.csv").write_text("\n".join(["task,method,seed,config_hash,command,terms", *lines]) + "\n")


def test_a_training_that_was_judged_otherwise_lends_the_first_nothing(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("ocr", "pickscore"))
    judged_otherwise(results, 99.0, "other")
    found = collect(results, tmp_path)
    cells = {settings: ("ocr", "star", 0, settings) for settings in (hashed("ocr", "star", 0), "g" * 12)}
    assert [found.terms[cell] for cell in cells.values()] == ["one", "other"]
    assert found.commands[cells["g" * 12]].endswith("guidance=2.0") and len(found.commands) == 3
    assert found.difference("ocr", "star", "flow_grpo").equal_terms  # of the plain protocol
    assert [one.seeds for one in planned(found) if one.task == "ocr"] == [(0,), (0,)]
    assert len(found.curves.query("task == 'ocr' and method == 'star'")) == EPOCHS
    assert any("Trained in several ways" in line and "ocr star seed 0" in line for line in found.missing)
    # What it scores on another task is its own, too.
    assert found.terms["pickscore", "star:ocr", 0, hashed("ocr", "star", 0)] == "one"


def test_one_training_that_was_judged_twice_has_one_curve_and_one_set_of_terms(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), seeds=(0,), tasks=("ocr",))
    judged_otherwise(results, read(results / "ocr.csv")[-1].seconds, "one")
    commands = (results / "commands.csv").read_text().splitlines(keepends=True)
    (results / "commands.csv").write_text("".join(line for line in commands if hashed("ocr", "star", 0) not in line))
    found = collect(results, tmp_path)  # its command is recorded with the other evaluation
    assert found.terms["ocr", "star", 0, hashed("ocr", "star", 0)] == "one"
    assert len(found.curves.query("method == 'star'")) == EPOCHS and not any("several ways" in line for line in found.missing)


def test_a_method_under_two_protocols_shows_both_numbers(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), tasks=("ocr",))
    rows_now = read(results / "ocr.csv")
    other = [replace(r, protocol="ocr-v1/other/mini", value=0.123) for r in rows_now if (r.method, r.seed) == ("star", 0)]
    write([*rows_now, *other], results / "ocr.csv")
    lines = table(section(report(results, tmp_path)[1].read_text(), "Beside the paper"), "ocr, accuracy: the paper's number")
    shown = {line[0]: line[4] for line in lines if line[0].startswith("STAR")}
    assert shown["STAR (ocr-v1/other/mini)"] == "0.123" and "0.123" not in shown[f"STAR ({PROTOCOLS['ocr']})"]


def test_released_weights_are_not_trained_here(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star"), tasks=("ocr",))
    released = [replace(r, method="flow_grpo@released") for r in read(results / "ocr.csv") if r.method == "base"]
    write([*read(results / "ocr.csv"), *released], results / "ocr.csv")
    text = report(results, tmp_path)[1].read_text()
    assert "training seeds 0, 1, 2." in text and "fewer than" not in section(text, "What this says")
    assert "star calibrate task=ocr" in text and "method=flow_grpo@released" not in text


def rename(results: Path, names: dict[str, str]) -> None:
    """Give methods other names, in all files of a results folder."""
    for file in ("ocr.csv", "geneval.csv", "images.csv.gz", "curves.csv"):
        frame = pd.read_csv(results / file, dtype=str, keep_default_na=False)
        own = frame["method"].str.partition(":")
        frame["method"] = own[0].replace(names) + own[1] + own[2]
        frame.to_csv(results / file, index=False)


def test_beside_a_verdict_stands_the_map_that_does_not_know_its_own_noise(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "dense_uniform", "spatial", "star"), tasks=("ocr",))
    rename(results, {"spatial": "oracle_twins", "dense_uniform": "oracle"})
    score, reward = (block.text for block in _findings(collect(results, tmp_path)).blocks if block.strong)
    gain = compare(images_of("ocr", "spatial", "flow_grpo"), "spatial", "flow_grpo", "reward", "accuracy").delta
    assert gain.value > 0 and f"oracle_twins minus Flow-GRPO is {signed(gain)} (3 training seeds)" in score
    apart = [curve("ocr", "spatial", s)["reward"].mean() - curve("ocr", "flow_grpo", s)["reward"].mean() for s in SEEDS]
    assert f"oracle_twins minus Flow-GRPO is {signed(mean_interval(apart), 4)} (3 training seeds)" in reward


def test_a_family_with_a_base_of_its_own_is_set_against_that(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star", "spatial"), tasks=("ocr",))
    rename(results, {"base": "base+fast", "flow_grpo": "flow_grpo+fast", "star": "star+fast", "spatial": "spatial+slow"})
    base = [replace(row, method="base", value=0.9) for row in read(results / "ocr.csv") if row.method == "base+fast"]
    write([*read(results / "ocr.csv"), *base], results / "ocr.csv")
    text = report(results, tmp_path)[1].read_text()
    lines = {line[0]: line for line in table(section(text, "On the other tasks"), "Main score")}
    assert {"base", "base, fast"} < set(lines)
    gain = compare(collect(results, tmp_path).images, "star+fast", "base+fast", "reward", "accuracy")
    assert f"({signed(gain.delta)})" in lines["STAR, fast"][4], "the distance from the base of the family"
    assert "(" not in lines["spatial only, slow"][4], "no verdicts of the plain base are here"
    costs = {line[0]: line for line in table(section(text, "What training cost"), "ocr: wall-clock")}
    assert costs["STAR, fast"][-2].startswith("× 1.0") and costs["spatial only, slow"][-2] == MISSING


@pytest.mark.parametrize(
    "measured, variant, base",
    [
        (("base",), "", "base"),
        (("base",), "+fast", "base"),
        (("base",), "+sd35_large", "base+sd35_large"),  # which was not measured, so nothing is compared with it
        (("base", "base+sd35_large"), "+sd35_large", "base+sd35_large"),
        (("base", "base+sd35_large"), "+sd35_large+fast", "base+sd35_large"),
        (("base", "base+mine"), "+mine+fast", "base+mine"),
    ],
)
def test_a_method_starts_from_the_base_of_its_model(measured, variant, base):
    found = Collection(Path("mini"), "mini", [replace(rows("ocr", "base", 0)[0], method=name) for name in measured], [])
    assert base_of(found, "ocr", variant) == base


def test_settings_of_ones_own_are_told_and_drawn_apart(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star", "spatial"), tasks=("ocr",))
    rename(results, {"spatial": "star_mix1"})
    hashes = {row.method: row.config_hash for row in read(results / "ocr.csv") if row.seed == 0}
    command = "star train task=ocr method=star seed=0 method.mix=1 method.name=star_mix1 run=runs/mini/ocr/star/seed0-1"
    lines = [("ocr", name, 0, hashes[name], text) for name, text in (("star", "star train"), ("star_mix1", command))]
    pd.DataFrame(lines, columns=["task", "method", "seed", "config_hash", "command"]).to_csv(
        results / "commands.csv", index=False
    )
    page, markdown = report(results, tmp_path)
    ablation = section(markdown.read_text(), "Ablation")
    assert table(ablation, "Settings of their own")[1:] == [["star_mix1", "method=star method.mix=1"]]
    assert "No arm here has meaningless maps" in ablation
    drawn = dict(
        re.findall(r'aria-label="ocr, accuracy: Every arm minus Flow-GRPO([^,]*), 95 % intervals: ([^"]*)"', page.read_text())
    )
    plain, own = drawn[""], drawn[": settings of their own"]
    assert "STAR +" in plain and "star_mix1" not in plain and "star_mix1 +" in own


def test_a_short_trial_of_one_arm_does_not_cut_off_the_others(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star", "spatial"), tasks=("ocr",))
    curves = pd.read_csv(results / "curves.csv")
    curves[(curves["method"] != "spatial") | (curves["epoch"] <= 3)].to_csv(results / "curves.csv", index=False)
    learned = section(report(results, tmp_path)[1].read_text(), "How the reward grew")
    lines = table(learned, f"ocr: training reward averaged over the first {192 * EPOCHS:,} images")
    assert [line[0] for line in lines[1:]] == ["Flow-GRPO", "STAR"]


def test_speed_is_judged_over_flow_grpos_images_and_by_where_it_ended():
    """Rewards rise by 0.01 an epoch; STAR's last two are 5."""

    def run(start, epochs):
        images = 100 * np.arange(1, epochs + 1)
        reward = np.where((start == 0.5) & (images > 1000), 5.0, start + images / 10_000)
        return pd.DataFrame({"images_seen": images, "updates": images // 50, "seconds": images / 10, "reward": reward})

    own = {"flow_grpo": {0: run(0.40, 10), 1: run(0.42, 12)}, "star": {0: run(0.50, 12)}}
    areas, costs = _speed("ocr", "flow_grpo", own)
    assert "averaged over the first 1,000 images" in areas.caption
    assert [row[2] for row in areas.rows] == ["0.455, 0.475", "0.555"]
    # The start is the mean of 0.41, 0.43 and 0.51, and the end that of 0.48 and 0.52.
    assert "from the start (0.450) to where Flow-GRPO ended (0.500)" in costs.caption
    assert costs.rows == [
        ["Flow-GRPO", "0.475", "20", "1,000", "100", "2 of 2"],
        ["STAR", "0.475", "10", "500", "50", "1 of 1"],
        ["Flow-GRPO", "0.500", "never", "never", "never", "1 of 2"],
        ["STAR", "0.500", "10", "500", "50", "1 of 1"],
    ]


def test_a_variant_and_a_name_of_ones_own_are_compared_within_their_family(tmp_path):
    results = write_matrix(tmp_path, arms=("flow_grpo", "star", "spatial"), tasks=("ocr",))
    names = {"flow_grpo": "flow_grpo+fast", "star": "star+fast", "spatial": "star_mix1"}
    rename(results, names)
    assert set(collect(results, tmp_path).methods("ocr")) == {"base", *names.values()}
    pairs = {(c.arm, c.reference) for c in comparisons(collect(results, tmp_path), "ocr")}
    assert pairs == {("star+fast", "flow_grpo+fast")}
    text = report(results, tmp_path)[1].read_text()
    lines = table(section(text, "On the other tasks"), "Main score")
    assert {line[0] for line in lines[1:]} == {"base", "Flow-GRPO, fast", "STAR, fast", "star_mix1"}
    says, learned = section(text, "What this says"), section(text, "How the reward grew")
    assert "**ocr: Not measured.**" in says and "**ocr, fast: Better than Flow-GRPO on these seeds; too few" in says
    assert [line[0] for line in table(learned, "ocr: training reward")[1:]] == ["star_mix1"]
    assert [line[0] for line in table(learned, "ocr, fast: training reward")[1:]] == ["Flow-GRPO, fast", "STAR, fast"]
    assert "Flow-GRPO was not trained" in learned and "ocr, fast: cost until" in learned
    assert "\nSTAR, fast minus Flow-GRPO, fast, seeds 0, 1, 2" in (results / "ocr.md").read_text()
