"""The first screen of a report, in few sentences: what gradients say about the maps, and what training makes of it."""

import math
from collections.abc import Container, Sequence
from pathlib import PurePosixPath

import pandas as pd

from star.common.numbers import counted, signed, with_error
from star.method.arms import REFERENCE
from star.records.first_updates import SECOND, Gain, against_each, gain, last_third
from star.records.folder import INITIAL
from star.records.names import is_mini
from star.report.blocks import Block, Section, Text
from star.report.collection import Collection
from star.report.first_updates import parts
from star.report.glance import glance
from star.report.gradient import at_first, whole_gradients
from star.report.planned import LEARNING, QUESTION, SCORE, Planned, planned

UNDECIDED, UNKNOWN, WEAK = "undecided", "an amount of unknown error", "too little signal to tell"
ABLATIONS = {"temporal": "whose maps have no places", "spatial": "whose maps have no time"}


def opening(found: Collection) -> Section:
    """The chapter."""
    sentences = [*_gradients(found), *_later(found), *_training(found, planned(found)), *_ablation(found), _reach(found)]
    blocks: list[Block] = [Text(text, strong=strong) for strong, text in sentences]
    return Section("opening", "In short", [*glance(found), *blocks])


def _gradients(found: Collection) -> list[tuple[str, str]]:
    """Sentences on the maps, the controls and the ceiling; a single one if no gradient of STAR's was measured."""
    table = found.gradient
    if table is None:
        unknown = "Gradients were not measured here; `star bench gradient` answers this without training."
        return [("Do STAR's maps carry signal?", unknown)]
    weak, table = _weak(table), at_first(table, "ratio")
    if not (table["arm"] == "star").any():
        return [("Do STAR's maps carry signal?", "STAR's gradient at the base's weights was not measured here.")]
    star, shifted, shuffled, twins, oracle, background = (
        _told(table[table["arm"] == arm], weak)
        for arm in ("star", "star_shifted", "star_shuffled", "oracle_twins", "oracle", "background")
    )
    sentences = [
        (
            "Do STAR's maps carry signal?",
            "As gradients at the base's weights predict, a small step along STAR's, compared with one of the same length "
            f"along Flow-GRPO's, gains {star}. In parentheses: the ratio of the predicted gains ± its standard error; "
            "“undecided” is within two standard errors of 1.",
        )
    ]
    if shifted or shuffled:
        parts = [f"maps moved by half the canvas (star_shifted) gain {shifted}"] * bool(shifted)
        parts += [f"maps of other prompts (star_shuffled) gain {shuffled}"] * bool(shuffled)
        sentences.append(("Do meaningless maps carry signal too?", f"STAR's {'; its '.join(parts)}."))
    told = [f"the verdicts on the prompt's other rollouts come from (oracle_twins) gains {twins}"] * bool(twins)
    told += [f"the rollout's own verdict comes from (oracle), known only afterwards, gains {oracle}"] * bool(oracle)
    told += [f"the verdict does not come from (background), which should lose, gains {background}"] * bool(background)
    if told:
        sentences.append(("How much could a map gain?", f"A map of where {'; one of where '.join(told)}."))
    return sentences


def _later(found: Collection) -> list[tuple[str, str]]:
    """A sentence on gradients at the weights of trainings; none where STAR's were not measured there."""
    if found.gradient is None:
        return []
    measured = whole_gradients(found.gradient[found.gradient["weights"] != INITIAL])
    told = "; ".join(text for part in measured if (text := _at_weights(part, found.scale)))
    said = (
        "STAR's ratio at the weights of trainings; in parentheses how much signal is left there (the self-cosine of "
        f"Flow-GRPO's gradients), and the ratio of a map that should lose (background): {told}."
    )
    return [("Is it so during a training, too?", said)] * bool(told)


def _at_weights(part: pd.DataFrame, scale: str) -> str:
    """STAR's ratio at one set of weights, with what says whether it means anything; empty if it is not known."""
    figures = zip(part["arm"], part["metric"], part["value"], part["stderr"], strict=True)
    known = {(arm, metric): (float(value), float(stderr)) for arm, metric, value, stderr in figures}
    signal, star = known.get((REFERENCE, "self_cosine")), known.get(("star", "ratio"))
    if signal is None or star is None:
        return ""
    task, weights = part["task"].iloc[0], PurePosixPath(part["weights"].iloc[0])
    place = str(weights.parent).removeprefix(f"runs/{scale}/{task}/").replace("/checkpoints/", "/")
    left = with_error(*signal, 3)
    if not signal[0] > 2 * signal[1]:
        return f"{task}, {place}: too little signal is left ({left})"
    wrong = known.get(("background", "ratio"))
    if wrong is None:
        control = "no such map was measured, so this tells nothing"
    else:
        loses = _word(*wrong) == "less"
        control = with_error(*wrong, 2) + ("" if loses else " is not seen to lose, so this tells nothing")
    return f"{task}, {place}: {with_error(*star, 2)} ({left}; {control})"


def _weak(table: pd.DataFrame) -> set[str]:
    """The configurations in which Flow-GRPO's gradients at the initial weights hold no signal that ratios could be of."""
    cosines = at_first(table, "self_cosine")
    own = cosines[cosines["arm"] == REFERENCE]
    return set(own["config_hash"][~(own["value"] > 2 * own["stderr"]) & own["stderr"].notna()])


def _told(rows: pd.DataFrame, weak: Container[str]) -> str:
    """Ratios in words: ``more on geneval (1.19 ± 0.02), undecided on ocr (1.02 ± 0.04)``.

    Settings are named where a task was measured with several; ratios of those that are ``weak`` say nothing.
    """
    found: dict[str, list[str]] = {word: [] for word in ("more", "less", UNDECIDED, UNKNOWN, WEAK)}
    for task, own in rows.groupby("task", sort=False):
        for hashed, value, stderr in zip(own["config_hash"], own["value"], own["stderr"], strict=True):
            place = str(task) if len(own) == 1 else f"{task} with settings {hashed}"
            word = WEAK if hashed in weak else _word(float(value), float(stderr))
            found[word].append(f"{place} ({with_error(value, stderr, 2)})")
    return ", ".join(f"{word} on {_listed(tasks)}" for word, tasks in found.items() if tasks)


def _word(ratio: float, stderr: float) -> str:
    if math.isnan(stderr):
        return UNKNOWN
    if abs(ratio - 1) <= 2 * stderr:
        return UNDECIDED
    return "more" if ratio > 1 else "less"


def _listed(names: Sequence[str]) -> str:
    """``A, B and C``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _training(found: Collection, made: Sequence[Planned]) -> list[tuple[str, str]]:
    """A paragraph on the first updates and what is left of their leads, where they were measured, and on whole trainings."""
    beginnings, lasting, whole = _beginnings(found), _lasting(found), _whole(found, made)
    if not (beginnings or lasting or whole):
        return [("Do trainings gain from STAR's maps?", "STAR and Flow-GRPO were not trained alike with the same seed here.")]
    told = [f"Gain over the untrained model in the first updates: {beginnings}."] * bool(beginnings)
    told += [f"Late in longer trainings of that kind: {lasting}."] * bool(lasting)
    told += [f"In whole trainings: {whole}."] * bool(whole)
    return [("Do trainings gain from STAR's maps?", f"STAR minus Flow-GRPO, with 95 % intervals over seeds. {' '.join(told)}")]


def _beginnings(found: Collection) -> str:
    """STAR's gains in the first updates, task by task."""
    if found.first_updates is None:
        return ""
    told = []
    for part in parts(found.first_updates):
        if star := gain(part, "star"):
            text = f"{part['task'].iloc[0]} ({counted(star.seeds, 'seed')}) {_times(star)}"
            told.append(text + _unproven(part, "no gain here would tell nothing of maps"))
    return "; ".join(told)


def _ablation(found: Collection) -> list[tuple[str, str]]:
    """A sentence on STAR beside the paper's two ablations in the first updates; none where these were not measured."""
    told: dict[str, list[str]] = {arm: [] for arm in ABLATIONS}
    for part in [] if found.first_updates is None else parts(found.first_updates):
        for arm, one in against_each(part, "star").items():
            if arm in told and one.difference:
                told[arm].append(f"{part['task'].iloc[0]} {signed(one.difference, 4)}{_power(one.detectable)}")
    apart = "; ".join(f"minus {arm}, {ABLATIONS[arm]}: {', '.join(own)}" for arm, own in told.items() if own)
    sentence = f"STAR's gain in the first updates, with 95 % intervals over seeds, {apart}."
    return [("Does it matter where, or when?", sentence)] * bool(apart)


def _lasting(found: Collection) -> str:
    """What is left of STAR's leads in the last third of longer trainings; and whether these can tell maps apart at all."""
    if found.lasting is None:
        return ""
    told = []
    for part in parts(found.lasting):
        late = last_third(part)
        if star := gain(part, "star", since=late):
            text = f"{part['task'].iloc[0]} ({counted(star.seeds, 'seed')}, epochs {late} to {star.epochs}) {_times(star)}"
            told.append(text + _unproven(part, "this tells nothing of maps"))
    return "; ".join(told)


def _unproven(part: pd.DataFrame, so: str) -> str:
    """What follows if the plan's control does not show that the measurement can tell maps apart; nothing if it does."""
    wrong = gain(part, "background")
    if wrong is None:
        return f", but no map that should lose (background) was trained beside it, so {so}"
    assert wrong.difference
    if wrong.difference.interval and wrong.difference.interval[1] < 0:
        return ""
    over = f"epochs {SECOND} to {wrong.epochs}, {signed(wrong.difference, 4)}"
    return f", but a map that should lose (background) is not seen to over {over}, so {so}"


def _times(one: Gain) -> str:
    times = "" if math.isnan(one.ratio) else f", {with_error(one.ratio, one.stderr, 2)} times Flow-GRPO's gain"
    assert one.difference
    return f"{signed(one.difference, 4)}{_power(one.detectable)}{times}"


def _whole(found: Collection, made: Sequence[Planned]) -> str:
    """The planned differences, task by task."""
    told = []
    for task in found.tasks:
        own = {one.measure: one for one in made if one.task == task and (one.arm, one.reference) == QUESTION}
        both = [own[measure] for measure in (LEARNING, SCORE) if measure in own]
        counts = [f" ({counted(len(one.seeds), 'seed')})" for one in both]
        if len(set(counts)) == 1:  # said once
            told.append(f"{task}{counts[0]}: {', '.join(f'{one.label} {_difference(one)}' for one in both)}")
        elif both:
            each = (f"{one.label} {_difference(one)}{of}" for one, of in zip(both, counts, strict=True))
            told.append(f"{task}: {', '.join(each)}")
    return "; ".join(told)


def _difference(one: Planned) -> str:
    return signed(one.delta, 4) + _power(one.detectable)


def _power(detectable: float | None) -> str:
    return "" if detectable is None else f" (80 % power at {detectable:.4f})"


def _reach(found: Collection) -> tuple[str, str]:
    if any(is_mini(row.protocol) for row in found.rows):
        return "What does this not show?", "Anything about SD3.5: it holds for one small base, its own prompts and evaluators."
    return "What does this hold for?", "Only the base model, prompts and evaluators of this page."
