"""GenEval on folders of images and on batches in memory.

The layout is the official one: ``{index:05d}/metadata.jsonl`` holds the record of a prompt, and its images are
``{index:05d}/samples/{k}.png``, with a number of any length. What has other names than numbers is ignored, and files that are
not called like ``0000.png``. But a numbered picture with another suffix is refused if no ``.png`` has the same name,
since nobody means to leave it out.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from evaluators.geneval.detector import Detector
from evaluators.geneval.mini import MiniDetector
from evaluators.geneval.official import compat
from evaluators.geneval.prompts import OFFICIAL, TAGS, Record
from evaluators.geneval.records import fault_of, read_record
from evaluators.geneval.rules import Detection, Verdict, filter_detections, judge
from evaluators.images import OTHERS, SUFFIXES, batches, read_image
from evaluators.interface import Asked, Score, mean_and_stderr
from star.common.console import tell
from star.common.errors import UserError
from star.common.progress import track

# Raise the version when a change alters what a folder of images scores.
PROTOCOL = "geneval-v1"
COLUMNS = {"official": "correct", "strict": "strict", "continuous": "score"}


def detector(engine: str) -> Detector:
    """The detector for an engine's name.

    Raises:
        UserError: there is none of that name, or it lacks weights or packages.
    """
    if engine == "mini":
        return MiniDetector()
    from evaluators.geneval.official import engines  # torch and transformers are slow to import

    if engine not in engines.ENGINES:
        raise UserError(f"no geneval engine {engine!r}; there are: mini, {', '.join(engines.ENGINES)}")
    return engines.make(engine)


def verdicts(records: Sequence[Record], images: Sequence[np.ndarray], detector: Detector) -> list[Verdict]:
    """The verdict on every image.

    Args:
        records: what image ``i`` should show.
        images: uint8 (H, W, 3) in RGB, as many.
        detector: finds the objects; it is asked for colours only where a record names one.

    Raises:
        UserError: a record names a class or colour that the detector does not know, so that it cannot be judged.
    """
    for record in records:
        _check_vocabulary(record, detector, f"the record {record}")
    found = detector(images)
    return [
        judge(record, _with_colors(record, image, filter_detections(raw, record["tag"]), detector))
        for record, image, raw in zip(records, images, found, strict=True)
    ]


def places(records: Sequence[Record], images: Sequence[np.ndarray], detector: Detector) -> list[np.ndarray]:
    """Where the verdict on every image comes from: the union of all objects of the record's classes that pass the thresholds.

    This includes surplus objects, objects of the wrong colour or in the wrong place, and those that the record excludes: they
    all count for the verdict. An object without a mask fills its box.

    Args:
        records: what image ``i`` should show.
        images: uint8 (H, W, 3) in RGB, as many.
        detector: finds the objects.

    Returns:
        For each image bool (H, W); False everywhere if it shows nothing of what the record names.
    """
    masks = []
    for record, image, raw in zip(records, images, detector(images), strict=True):
        classes = {clause["class"] for clause in (*record["include"], *record.get("exclude", ()))}
        mask = np.zeros(image.shape[:2], dtype=bool)
        for name, objects in filter_detections(raw, record["tag"]).items():
            for found in objects if name in classes else ():
                mask |= area(found, mask.shape)
        masks.append(mask)
    return masks


def lacks(prompt: Asked, detector: Detector) -> str:
    """What a prompt lacks to be judged by its record, as a noun; empty if it has all."""
    record = prompt.target
    if not {"tag", "include"} <= record.keys():
        return "GenEval record"
    if fault := fault_of({"prompt": prompt.text} | dict(record)):
        return f"usable GenEval record ({fault})"
    if unknown := _unknown(dict(record), detector):
        return f"GenEval record of what the detector {detector.name} knows ({unknown[0]!r} it does not)"
    return ""


def area(found: Detection, shape: tuple[int, ...]) -> np.ndarray:
    """An object's mask, bool (H, W), or else its box."""
    if found.mask is not None:
        return found.mask
    mask = np.zeros(shape, dtype=bool)
    left, top, right, bottom = (max(0, round(edge)) for edge in found.box)
    mask[top:bottom, left:right] = True
    return mask


def protocol(detector: Detector) -> str:
    """Name and version of the evaluation, with its engine."""
    return f"{PROTOCOL}/{detector.name}"


def judge_folder(folder: str | Path, detector: Detector) -> Iterator[dict]:
    """Judge every image of a folder in GenEval's layout, prompt by prompt.

    Args:
        folder: holds one folder per prompt.
        detector: finds the objects.

    Returns:
        One row per image, in the order of the numbers: filename (relative to the folder), tag, prompt, index (the number
        of the prompt folder), correct, strict, score and reason (see :class:`~evaluators.geneval.rules.Verdict`).

    Raises:
        UserError: at once, if :func:`read_records` cannot read the folder, a prompt has no images, or the detector does not
            know what a record names; during iteration, if an image cannot be read.
    """
    root = Path(folder)
    prompts = [(path, record, _image_files(path / "samples")) for path, record in read_records(root)]
    for path, record, _ in prompts:
        _check_vocabulary(record, detector, str(path / "metadata.jsonl"))
    for line in _cautions(prompts):
        tell(f"{folder}: {line}")
    return (row for prompt in track(prompts, "GenEval") for row in _judge_prompt(*prompt, root, detector))


def _cautions(prompts: Sequence[tuple[Path, Record, Sequence[Path]]]) -> Iterator[str]:
    """What a folder seems to lack, so that its scores are not those of all of GenEval."""
    numbers = {int(path.name) for path, _, _ in prompts}
    first = min(1, *numbers)
    if gaps := max(numbers) + 1 - first - len(numbers):
        missing = next(number for number in count(first) if number not in numbers)
        yield f"{gaps} prompt folders are missing up to number {max(numbers)}, the first of them {missing:05d}"
    images = [len(files) for _, _, files in prompts]
    if min(images) < max(images):
        few = next(path.name for path, _, files in prompts if len(files) == min(images))
        yield f"prompts have {min(images)} ({few}) to {max(images)} images; those with more count for more"
    tags = list(dict.fromkeys(record["tag"] for _, record, _ in prompts))
    if {*tags} != {*TAGS} and not {*TAGS}.isdisjoint(tags):
        yield f"its prompts are of the kinds {', '.join(tags)}, GenEval's of {', '.join(TAGS)}; macro means are over its own"


def read_records(folder: Path) -> list[tuple[Path, Record]]:
    """The prompt folders of a folder in GenEval's layout and their records, in the order of their numbers.

    Raises:
        UserError: the folder is missing, cannot be read or holds none, two have one number, a file has one, or a record
            cannot be used.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}")
    try:
        paths = [path for path in folder.iterdir() if path.name.isdecimal()]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error}") from None
    if not paths:
        raise UserError(f"{folder} holds no prompt folders; expected 00000/metadata.jsonl and 00000/samples/0000.png")
    if files := [path for path in paths if not path.is_dir()]:
        raise UserError(f"{files[0]} has the name of a prompt's folder but is none; restore the folder, or rename the file")
    return [(path, read_record(path / "metadata.jsonl")) for path in _numbered(paths)]


def engine_for(records: Iterable[Record]) -> str:
    """The engine for a folder: the mini world's, unless a record names a class or colour that only GenEval has."""
    mini, official = MiniDetector(), (*OFFICIAL.names, *OFFICIAL.colors)
    return "mask2former" if any(word in official for record in records for word in _unknown(record, mini)) else "mini"


def _judge_prompt(path: Path, record: Record, files: Sequence[Path], root: Path, detector: Detector) -> list[dict]:
    parts = [files[place] for place in batches(files, len(files))]
    results = [verdict for part in parts for verdict in verdicts([record] * len(part), [*map(read_image, part)], detector)]
    return [
        {
            "filename": file.relative_to(root).as_posix(),
            "tag": record["tag"],
            "prompt": record["prompt"],
            "index": int(path.name),
            **vars(verdict),
        }
        for file, verdict in zip(files, results, strict=True)
    ]


def summarise(rows: pd.DataFrame) -> list[Score]:
    """Scores with standard errors from the rows of :func:`judge_folder`, with a column ``protocol``.

    Returns:
        One score per metric. Metrics are ``geneval_{official,strict,continuous}_{tag}`` (mean over the tag's images),
        ``..._macro`` (unweighted mean over the tags present, GenEval's "overall"), ``..._micro`` (mean over all images) and
        ``geneval_official_prompts`` (share of prompts with at least one correct image). Standard errors are clustered by
        prompt, since the images of a prompt are correlated; they are None where there is only one prompt. Those of micro
        and of prompts count the tags as drawn with the prompts, and are rather too large, since the tags are fixed; macro's
        keeps them fixed. With 2,212 images, protocols that end in ``+flow_grpo_compat`` also have ``..._padded_micro``, the
        mean that Flow-GRPO logs if the rows are in the order of its test set (see
        :func:`~evaluators.geneval.official.compat.padded_mean`).

    Raises:
        ValueError: the rows do not come from exactly one protocol.
    """
    if rows["protocol"].nunique() != 1:
        raise ValueError(f"cannot summarise rows of {rows['protocol'].nunique()} protocols in one table, expected one")
    tags = sorted(set(rows["tag"]), key=[*TAGS, *rows["tag"]].index)
    by_tag = {tag: rows[rows["tag"] == tag] for tag in tags}
    entries: list[tuple[str, float, float, pd.DataFrame]] = []
    for verdict, column in COLUMNS.items():
        means = {tag: _clustered_mean(part, column) for tag, part in by_tag.items()}
        values, errors = np.array(list(means.values())).T
        entries.append((f"{verdict}_macro", float(values.mean()), float(np.linalg.norm(errors)) / len(tags), rows))
        entries.append((f"{verdict}_micro", *_clustered_mean(rows, column), rows))
        entries += [(f"{verdict}_{tag}", *means[tag], by_tag[tag]) for tag in tags]
    solved = rows[["tag", "prompt"]].assign(correct=rows.groupby(["tag", "prompt"])["correct"].transform("max"))
    entries.append(("official_prompts", *_clustered_mean(solved.drop_duplicates(), "correct"), rows))
    if rows["protocol"].iloc[0].endswith(f"+{compat.NAME}") and len(rows) == compat.IMAGES:
        entries += [
            (f"{verdict}_padded_micro", compat.padded_mean(rows[column].to_numpy()), float("nan"), rows)
            for verdict, column in COLUMNS.items()
        ]
    return [
        Score(
            f"geneval_{metric}",
            value,
            None if np.isnan(stderr) else stderr,
            len(part),
            len(part.drop_duplicates(["tag", "prompt"])),
        )
        for metric, value, stderr, part in entries
    ]


def _with_colors(record: Record, image: np.ndarray, detections: dict, detector: Detector) -> dict:
    """The detections, with colours for those objects whose colour the record's rules look at."""
    for clause in record["include"]:
        name, count = clause["class"], clause["count"]
        if "color" in clause and name in detections:
            best, rest = detections[name][:count], detections[name][count:]
            detections = detections | {name: [*detector.with_colors(image, name, best), *rest]}
    return detections


def _check_vocabulary(record: Record, detector: Detector, where: str) -> None:
    if unknown := _unknown(record, detector):
        raise UserError(f"the detector {detector.name} does not know {unknown[0]!r} of {where}")


def _unknown(record: Record, detector: Detector) -> list[str]:
    """The classes and colours of a record that a detector does not know."""
    clauses = [*record["include"], *record.get("exclude", ())]
    classes = [clause["class"] for clause in clauses if clause["class"] not in detector.classes]
    return classes + [clause["color"] for clause in clauses if "color" in clause and clause["color"] not in detector.colors]


def _clustered_mean(rows: pd.DataFrame, column: str) -> tuple[float, float]:
    mean, stderr = mean_and_stderr(rows[column], list(zip(rows["tag"], rows["prompt"], strict=True)))
    return mean, float("nan") if stderr is None else stderr


def _image_files(folder: Path) -> list[Path]:
    numbered = [path for path in folder.glob("*") if path.stem.isdecimal()]
    files = [path for path in numbered if path.suffix == ".png"]
    pictures = [path for path in numbered if path.suffix.lower() in (*SUFFIXES, *OTHERS)]
    if others := [path for path in pictures if path.with_suffix(".png") not in files]:
        raise UserError(f"{others[0]} would be left out: GenEval's images are called 00000.png; rename or convert it")
    if not files:
        raise UserError(f"no images like 00000.png in {folder}")
    return _numbered(files)


def _numbered(paths: Iterable[Path]) -> list[Path]:
    """Paths in the order of the numbers that they are called, of which no two are the same."""
    ordered = sorted(paths, key=lambda path: (int(path.stem), path.name))
    if twice := [pair for pair in pairwise(ordered) if int(pair[0].stem) == int(pair[1].stem)]:
        raise UserError(f"{twice[0][0]} and {twice[0][1].name} have one number; move or renumber one")
    return ordered
