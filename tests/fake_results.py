"""A results folder as a whole matrix leaves it, made up: three tasks, base and seven arms, three seeds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from evaluators.geneval.prompts import TAGS
from star.bench.table import write as write_table
from star.records.first_updates import COLUMNS, UNTRAINED
from star.records.results import Row, write

ARMS = ("flow_grpo", "dense_uniform", "spatial", "temporal", "star", "star_shuffled", "star_random")
GAINS = dict(zip(("base", *ARMS), (0.0, 0.15, 0.13, 0.18, 0.16, 0.30, 0.17, 0.14), strict=True))
SEEDS = (0, 1, 2)
EVALUATION_SEED = 1000
PROTOCOLS = {
    "geneval": "geneval-v1/mini-detector/mini",
    "ocr": "ocr-v1/rapidocr/mini",
    "pickscore": "pickscore-v1/mini/mini",
}
PRIMARY = {"geneval": "geneval_official_macro", "ocr": "ocr_accuracy", "pickscore": "pickscore"}
EPOCHS = 12


def verdicts(task: str, method: str, seed: int, prompts: int = 24, images: int = 2) -> pd.DataFrame:
    """Verdicts on the images of one run: prompts are as hard, and noise is as lucky, for every method."""
    shared = np.random.default_rng(TASKS.index(task))
    tags = list(TAGS) if task == "geneval" else ["all"]
    own_rng = np.random.default_rng([TASKS.index(task), list(GAINS).index(method), seed])
    ability = 0.45 + GAINS[method] + own_rng.normal(0, 0.01)
    ease = shared.normal(0, 0.15, prompts) + own_rng.normal(0, 0.03, prompts)
    luck = shared.random((prompts, images))
    lines = []
    for prompt in range(prompts):
        text = f"a photo of thing {prompt:02d} <&>" if task == "geneval" else f'a sign that says "{task} {prompt:02d}"'
        for image in range(images):
            good = luck[prompt, image] < ability + ease[prompt]
            score = float(ability + ease[prompt] + 0.1 * luck[prompt, image])
            scores = {
                "geneval": {"reward": score, "correct": good, "strict": good and image == 0, "score": score},
                "ocr": {"reward": score, "exact": float(good)},
                "pickscore": {"reward": (20 + score) / 26, "score": 20 + score},
            }
            lines.append({"prompt": text, "image": image, "stratum": tags[prompt % len(tags)], **scores[task]})
    return pd.DataFrame(lines)


TASKS = tuple(PROTOCOLS)


def first_images(task: str, method: str, seed: int) -> pd.DataFrame:
    """What a checkpoint of another task is judged on: one image per prompt."""
    return verdicts(task, method, seed).query("image == 0")


def rows(task: str, method: str, seed: int) -> list[Row]:
    """The result rows of one run on its own task, and on the others."""
    trained = method != "base"
    of = verdicts(task, method, seed if trained else EVALUATION_SEED)
    row = Row(
        task=task,
        metric=PRIMARY[task],
        protocol=PROTOCOLS[task],
        method=method,
        seed=seed if trained else EVALUATION_SEED,
        value=0.0,
        stderr=0.02,
        images=len(of),
        prompts=of["prompt"].nunique(),
        updates=40 * trained,
        images_seen=192 * EPOCHS * trained,
        seconds=(600.0 + 30 * seed + 20 * (method != "flow_grpo")) * trained,
        commit="abc1234567",
        config_hash=hashed(task, method, seed),
    )
    made = [
        replace(row, value=score(task, of)),
        replace(row, metric="diversity", value=0.3 - 0.5 * GAINS[method] + 0.005 * (seed % 5)),
    ]
    if task == "geneval":
        by_tag = of.groupby("stratum")["correct"].mean()
        made += [replace(row, metric=f"geneval_official_{tag}", value=float(value)) for tag, value in by_tag.items()]
    for other in [other for other in TASKS if other != task] if trained else []:
        of = first_images(other, method, seed)
        row = replace(row, task=other, metric=PRIMARY[other], protocol=PROTOCOLS[other], method=f"{method}:{task}")
        made.append(replace(row, value=score(other, of), images=len(of)))
    return made


def score(task: str, of: pd.DataFrame) -> float:
    """A task's main score of images, from their verdicts."""
    if task == "geneval":
        return float(of.groupby("stratum")["correct"].mean().mean())
    return float(of["reward" if task == "ocr" else "score"].mean())


def hashed(task: str, method: str, seed: int) -> str:
    seed = 0 if method == "base" else seed
    return f"{TASKS.index(task)}{list(GAINS).index(method)}{seed}".ljust(12, "0")


def curve(task: str, method: str, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng([TASKS.index(task), list(GAINS).index(method), seed])
    epoch = np.arange(1, EPOCHS + 1)
    reward = 0.45 + GAINS[method] * epoch / EPOCHS + rng.normal(0, 0.01, EPOCHS)
    figures = {"updates": 2 * epoch, "images_seen": 192 * epoch, "seconds": 50.0 * epoch, "reward": reward}
    figures |= {"sampling_seconds": 30.0 + 5 * (method != "flow_grpo"), "update_seconds": 20.0}
    return pd.DataFrame({"epoch": epoch, **figures, "diversity": 0.3, "effective_share": 0.6, "overlap": 0.8})


def write_matrix(folder: Path, arms=ARMS, seeds=SEEDS, tasks=TASKS) -> Path:
    """``folder/results/mini`` with result files, verdicts and curves of every cell."""
    results = folder / "results" / "mini"
    results.mkdir(parents=True)
    cells = [(task, method, seed) for task in tasks for method in arms for seed in seeds]
    own = [row for cell in cells for row in rows(*cell)] + [row for task in tasks for row in rows(task, "base", 0)]
    for task in {row.task for row in own}:
        write([row for row in own if row.task == task], results / f"{task}.csv")
    names = ["task", "method", "seed", "config_hash"]
    base = [(task, "base", EVALUATION_SEED) for task in tasks]
    keys = {cell: dict(zip(names, (*cell, hashed(*cell)), strict=True)) for cell in base + cells}
    images = [verdicts(*cell).assign(**keys[cell]) for cell in base + cells]
    for task, method, seed in cells:
        own = keys[task, method, seed] | {"method": f"{method}:{task}"}
        images += [first_images(other, method, seed).assign(**own | {"task": other}) for other in TASKS if other != task]
    curves = [curve(*cell).assign(**keys[cell]) for cell in cells] or [pd.DataFrame(columns=names)]
    pd.concat(images).to_csv(results / "images.csv.gz", index=False)
    pd.concat(curves).to_csv(results / "curves.csv", index=False)
    return results


def write_run(runs: Path, task: str, method: str, seed: int) -> Path:
    """A finished run folder of a cell, without settings and weights."""
    path = runs / "mini" / task / method
    path = path if method == "base" else path / f"seed{seed}-{hashed(task, method, seed)[:8]}"
    final = path / "final"
    (final / "samples").mkdir(parents=True)
    own = [row for row in rows(task, method, seed) if row.task == task]
    (final / "rows.json").write_text(json.dumps([vars(row) for row in own]))
    table = verdicts(task, method, EVALUATION_SEED if method == "base" else seed)
    table.to_csv(final / "images.csv", index=False)
    rng = np.random.default_rng(len(method))
    for number in range(table["prompt"].nunique()):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(final / "samples" / f"{number:05d}.png")
    if method != "base":
        lines = curve(task, method, seed).to_dict("records")
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_first_updates(results: Path, rewards: dict, seeds: int, name: str = "first_updates.csv", lead: float = 0.0) -> None:
    """What ``star bench first_updates`` writes on GenEval.

    Args:
        results: the folder.
        rewards: arm -> its reward in each epoch.
        seeds: how many, alike but for the lead.
        name: of the file.
        lead: what every second seed of STAR's is ahead of the others by, for each epoch after the first.
    """
    rows = [
        ("geneval", arm, seed, epoch, 2 * (epoch - 1) * (arm != UNTRAINED), 5e-4, reward + ahead, "41972e6739", "0123")
        for seed in range(seeds)
        for arm, own in rewards.items()
        for epoch, reward in enumerate(own, 1)
        for ahead in [lead * (seed % 2) * (arm == "star") * (epoch - 1)]
    ]
    keys = ("task", "arm", "seed", "config_hash")
    write_table(pd.DataFrame(rows, columns=COLUMNS), results / name, "first_updates", keys)
