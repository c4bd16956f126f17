"""GenEval's verdicts from detections alone: the official one, the strict one and the continuous score.

The official rule is that of djghosh13/geneval (arXiv 2310.11513). The strict verdict and the continuous score are those
of Flow-GRPO's reward server (yifan123/reward-server); the score is what Flow-GRPO optimises, so its quirks are kept,
and each is named where it happens.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluators.geneval.prompts import PALETTE, Record

SCORE_THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16
POSITION_THRESHOLD = 0.1


@dataclass(frozen=True)
class Detection:
    """One detected object.

    Attributes:
        box: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; x to the right, y down.
        score: confidence in [0, 1].
        color: a colour word, None if it was not looked at or is none of the palette.
        mask: bool (H, W), True on the object; None if the detector gives none. Not part of equality.
    """

    box: tuple[float, float, float, float]
    score: float
    color: str | None = None
    mask: np.ndarray | None = field(default=None, compare=False, repr=False)


Detections = Mapping[str, Sequence[Detection]]


@dataclass(frozen=True)
class Verdict:
    """What an image is worth for its record.

    Attributes:
        correct: the official verdict. More objects than asked for are fine, except in counting.
        strict: every clause met by exactly as many objects as it asks for.
        score: Flow-GRPO's continuous reward; 1 is best, may be below 0 with more than twice the objects asked for.
        reason: why the official verdict is false, one line per fault; empty if it is true.
    """

    correct: bool
    strict: bool
    score: float
    reason: str


def filter_detections(raw: Detections, tag: str) -> dict[str, list[Detection]]:
    """The detections that the verdict is based on: the best per class, best first.

    Scores must be above (not equal to) the threshold, compared in float32 as in the official evaluator. Of equal scores the
    later one comes first, as in its reversed argsort. It uses no non-maximum suppression, so neither does this.

    Args:
        raw: class -> detections in any order.
        tag: of the record; the threshold is :data:`COUNTING_THRESHOLD` for counting, else :data:`SCORE_THRESHOLD`.

    Returns:
        class -> at most :data:`MAX_OBJECTS` detections; classes with none are left out.
    """
    floor = np.float32(COUNTING_THRESHOLD if tag == "counting" else SCORE_THRESHOLD)
    kept = {}
    for name, detections in raw.items():
        scores = np.array([detection.score for detection in detections], dtype=np.float32)
        order = np.argsort(scores, kind="stable")[::-1]
        kept[name] = [detections[i] for i in order[scores[order] > floor][:MAX_OBJECTS]]
    return {name: detections for name, detections in kept.items() if detections}


def judge(record: Record, detections: Detections) -> Verdict:
    """The three verdicts on one image.

    Args:
        record: a GenEval record (see :mod:`evaluators.geneval.prompts`).
        detections: class -> detections that passed :func:`filter_detections`, best first. ``color`` is read only where
            the record asks for a colour; classes that were not found may be absent.
    """
    faults = _official_faults(record, detections)
    strict, score = _strict_and_score(record, detections)
    return Verdict(correct=not faults, strict=strict, score=score, reason="\n".join(faults))


def relations(box_a: Sequence[float], box_b: Sequence[float]) -> set[str]:
    """How box A lies relative to box B: up to two of "left of", "right of", "above", "below", in float32 as official.

    The offset of the centres is shrunk by :data:`POSITION_THRESHOLD` times the sum of the sizes, per axis. A relation holds if
    the shrunk offset makes up more than half of the full one. Dividing by the length of the *unshrunk* offset is the official
    formula, not a slip of ours: objects that are large for their distance stand in no relation.
    """
    a, b = (np.asarray(box, dtype=np.float32)[:4].reshape(2, 2) for box in (box_a, box_b))
    offset = a.mean(axis=0) - b.mean(axis=0)
    sizes = np.abs(a[1] - a[0]) + np.abs(b[1] - b[0])
    shrunk = np.sign(offset) * np.maximum(np.abs(offset) - np.float32(POSITION_THRESHOLD) * sizes, np.float32(0))
    if np.all(np.abs(shrunk) < 1e-3):
        return set()
    dx, dy = shrunk / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, true in holds.items() if true}


def _official_faults(record: Record, detections: Detections) -> list[str]:
    """A clause looks at its ``count`` best detections only; an exclude clause counts them all."""
    faults: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in record["include"]:
        name, count = clause["class"], clause["count"]
        found = list(detections.get(name, ()))[:count]
        if len(found) < count:
            fault: str | None = f"expected {name}>={count}, found {len(found)}"
        else:
            fault = _color_fault(clause, found) or _position_fault(clause, found, groups)
        groups.append(None if fault else found)
        faults += [fault] if fault else []
    for clause in record.get("exclude", ()):
        name, count, seen = clause["class"], clause["count"], len(detections.get(clause["class"], ()))
        if seen >= count:
            faults.append(f"expected {name}<{count}, found {seen}")
    return faults


def _strict_and_score(record: Record, detections: Detections) -> tuple[bool, float]:
    """Both count all detections of a class and ignore exclude clauses; the score is the mean over a list of parts."""
    parts: list[float] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in record["include"]:
        found, count = list(detections.get(clause["class"], ())), clause["count"]
        met = len(found) == count
        # Quirk: not clipped, so many surplus objects cost more than their clause can earn.
        parts.append(1 - abs(count - len(found)) / count)
        if not met and ("color" in clause or "position" in clause):
            parts.append(0.0)
        if met and "color" in clause:
            parts.append(1 - abs(count - _painted(clause, found)) / count)
            met = not _color_fault(clause, found)
        if met and "position" in clause:
            met = not _position_fault(clause, found, groups)
            if groups[clause["position"][1]] is None:
                parts.append(0.0)
            else:
                # Quirk: the 1 follows the 0 of a wrong relation instead of replacing it, so that one wrong relation
                # between two right objects is worth (1 + 1 + 0 + 1) / 4 = 0.75.
                parts += [1.0] if met else [0.0, 1.0]
        groups.append(found if met else None)
    return all(group is not None for group in groups), sum(parts) / len(parts)


def _painted(clause: dict, found: Sequence[Detection]) -> int:
    return sum(detection.color == clause["color"] for detection in found)


def _color_fault(clause: dict, found: Sequence[Detection]) -> str | None:
    if "color" not in clause or (painted := _painted(clause, found)) >= clause["count"]:
        return None
    seen = Counter(detection.color for detection in found)
    others = ", ".join(f"{seen[color]} {color}" for color in PALETTE if color in seen)
    color = clause["color"]
    return f"expected {color} {clause['class']}>={clause['count']}, found {painted} {color}; and {others}"


def _position_fault(clause: dict, found: Sequence[Detection], groups: Sequence[Sequence[Detection] | None]) -> str | None:
    """The first pair that does not stand in the relation; ``groups``: what met each earlier clause, None if none."""
    if "position" not in clause:
        return None
    relation, index = clause["position"]
    targets = groups[index]
    if targets is None:
        return f"no target for {clause['class']} to be {relation}"
    for detection in found:
        for target in targets:
            true = relations(detection.box, target.box)
            if relation not in true:
                return f"expected {clause['class']} {relation} target, found {' and '.join(sorted(true))} target"
    return None
