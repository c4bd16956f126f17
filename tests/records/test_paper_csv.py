"""results/paper.csv against the tables it was taken from, transcribed here a second time."""

import re
from decimal import Decimal

import pytest

from evaluators.geneval.prompts import OFFICIAL, TAGS, generate
from star.records.code import ROOT
from star.records.results import read_paper
from star.records.tables import METRICS, OF_THE_PAPER

PATH = ROOT / "results" / "paper.csv"
ROWS = read_paper(PATH)
VALUES = {row.key: row.value for row in ROWS}

# Flow-GRPO (arXiv 2505.05470) Table 1: overall, then the tags in the order of TAGS.
TABLE_1 = """
base       .63  .98  .78 .50 .81 .24 .52
flow_grpo  .95 1.00  .99 .95 .92 .99 .86
gpt_4o     .84  .99  .92 .85 .92 .75 .61
flux1_dev  .66  .98  .81 .74 .79 .22 .45
sd35_large .71  .98  .89 .73 .83 .34 .47
"""
# Flow-GRPO Table 2, DrawBench: aesthetic, DeQA, ImageReward, PickScore, UnifiedReward.
TABLE_2 = """
base                      5.39 4.07  .87 22.34 3.33
flow_grpo_no_kl:geneval   4.93 2.77  .44 21.16 2.94
flow_grpo:geneval         5.25 4.01 1.03 22.37 3.51
flow_grpo_no_kl:ocr       5.13 3.66  .58 21.79 3.15
flow_grpo:ocr             5.32 4.06  .95 22.44 3.42
flow_grpo_no_kl:pickscore 6.15 4.16 1.24 23.56 3.57
flow_grpo:pickscore       5.92 4.22 1.28 23.53 3.66
"""
GENEVAL = ["geneval_official_macro", *(f"geneval_official_{tag}" for tag in TAGS)]
DRAWBENCH = ["aesthetic", "deqa", "image_reward", "pickscore", "unified_reward"]


@pytest.mark.parametrize("task, metrics, table", [("geneval", GENEVAL, TABLE_1), ("drawbench", DRAWBENCH, TABLE_2)])
def test_tables_of_flow_grpo(task, metrics, table):
    for line in table.split("\n")[1:-1]:
        method, *values = line.split()
        assert [VALUES[task, metric, method] for metric in metrics] == [Decimal(value) for value in values]


@pytest.mark.parametrize(
    "task, metric, values",
    [
        ("geneval", "geneval_official_macro", {"flow_grpo_no_kl": ".95", "star": ".9759", "dense_grpo": ".97"}),
        ("geneval", "geneval_official_macro", {"flow_opd": ".92", "solace": ".71", "base@solace": ".65"}),
        ("geneval", "geneval_official_macro", {"stepwise_flow_grpo": ".87", "flow_grpo@stepwise": ".72"}),
        ("geneval", "geneval_official_macro", {"base_no_cfg": ".24", "diffusion_nft": ".98", "janus_pro_7b": ".80"}),
        ("geneval", "geneval_official_micro", {"flow_grpo@released": ".9408"}),
        ("ocr", "ocr_accuracy", {"base": ".59", "flow_grpo": ".92", "flow_grpo_no_kl": ".93", "star": ".9757"}),
        ("ocr", "ocr_accuracy", {"dense_grpo": ".95", "flow_opd": ".94", "flow_grpo@released": ".9082"}),
        ("pickscore", "pickscore", {"base": "21.72", "flow_grpo": "23.31", "flow_grpo_no_kl": "23.41"}),
        ("pickscore", "pickscore", {"star": "23.60", "dense_grpo": "24.64", "flux1_dev": "21.94"}),
        ("t2i_compbench", "spatial_2d", {"base": ".2850", "flow_grpo:geneval": ".5447"}),
        ("geneval_unseen_objects", "geneval_official_macro", {"base": ".64", "flow_grpo": ".90"}),
    ],
)
def test_headline_numbers(task, metric, values):
    assert {method: VALUES[task, metric, method] for method in values} == {k: Decimal(v) for k, v in values.items()}


def test_stars_digits_are_those_printed():
    star = {row.task: (str(row.value), row.rounding) for row in ROWS if row.method == "star"}
    assert star == {
        "geneval": ("0.9759", pytest.approx(0.00005)),
        "ocr": ("0.9757", pytest.approx(0.00005)),
        "pickscore": ("23.60", pytest.approx(0.005)),
    }


def test_unknown_ablations_are_rows_without_a_value():
    for task in ("geneval", "ocr", "pickscore"):
        for method in ("spatial", "temporal"):
            (row,) = [row for row in ROWS if (row.task, row.method) == (task, method)]
            assert row.value is None and "no number known" in row.note


def test_published_overall_is_the_mean_of_its_tags_to_rounding():
    for method in ("base", "flow_grpo", "gpt_4o", "flux1_dev", "sd35_large"):
        overall, *tags = [float(VALUES["geneval", metric, method]) for metric in GENEVAL]
        assert abs(overall - sum(tags) / 6) <= 0.005 + 0.005  # half a unit of the overall, and of every tag


def test_stars_geneval_is_no_share_of_the_unpadded_images():
    """The note beside 0.9759: impossible as k / 2212, possible as k / 2240."""
    assert not any(round(k / 2212, 4) == 0.9759 for k in range(2213))
    assert round(2186 / 2240, 4) == 0.9759


def test_image_counts_are_four_per_official_prompt():
    prompts = {tag: sum(record["tag"] == tag for record in generate(OFFICIAL)) for tag in TAGS}
    for row in ROWS:
        if row.task == "geneval" and row.images is not None:
            tag = row.metric.removeprefix("geneval_official_")
            assert (row.images, row.prompts) == (4 * prompts.get(tag, 553), prompts.get(tag, 553)), row


def test_every_row_names_a_source_and_speaks_the_common_language():
    for row in ROWS:
        assert re.search(r"arXiv \d{4}\.\d{5}|issue #\d+|second-hand|paper", row.source), row
        assert re.fullmatch(r"[a-z0-9_]+(:[a-z0-9_]+)?(@[a-z0-9_]+)?", row.method), row
        assert re.fullmatch(r"[a-z0-9_.]+", row.metric), row
        assert row.value is not None or row.note, row


def test_every_arm_of_the_paper_has_a_row_for_each_of_its_tasks():
    for task in ("geneval", "ocr", "pickscore"):
        main = next(iter(METRICS[task]))
        assert all((task, main, arm) in VALUES for arm in OF_THE_PAPER)


def test_the_file_is_plain():
    text = PATH.read_bytes()
    assert b"\r" not in text and text.endswith(b"\n") and text.decode("ascii")
