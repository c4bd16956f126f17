"""The interface between evaluators and those who use them: the trainer, evaluations, the report.

Your own evaluator implements :class:`Evaluator` and is named by its path, ``my_package.my_module:MyEvaluator``; nothing has to
be registered. It may also say where in an image its verdict comes from, see :func:`places_of`, and give the gradient of its
reward with respect to the pixels, see :func:`slopes_of`.
"""

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from star.common.errors import RunStopped, UserError, short
from star.common.files import fault_of_text
from star.common.statistics import clustered_stderr


class Asked(Protocol):
    """What an evaluator sees of a prompt: its text, and what the task's data say besides (a GenEval record, say)."""

    @property
    def text(self) -> str:
        """The prompt."""
        ...

    @property
    def target(self) -> Mapping[str, Any]:
        """What is known besides the text, by name; may be empty."""
        ...


@dataclass(frozen=True)
class Text:
    """A prompt of which nothing is known but its text."""

    text: str
    target: Mapping[str, Any] = field(default_factory=dict)


class Score(NamedTuple):
    """One number of an evaluation, as result files hold it.

    Attributes:
        metric: its name, a word that begins with none of ``= + - @``; no other score has it.
        value: finite, at most 1e12 either way; from 0 to 1 if the metric has the name of a rate, see :data:`RATE`.
        stderr: standard error over prompts, 0 or more; None where it cannot be computed.
        images, prompts: what it is a mean over, 1 or more.
    """

    metric: str
    value: float
    stderr: float | None
    images: int
    prompts: int


class Evaluator(Protocol):
    """Judges images for their prompts.

    Attributes:
        protocol: name and version of the evaluation, with its engine: ``ocr-v1/rapidocr-3.10.0``; a word as metrics are.
        primary: the metric that methods are compared by.
        paired: the values in verdicts that paired comparisons use, name -> label, the main one first.
    """

    protocol: str
    primary: str
    paired: Mapping[str, str]

    def lacks(self, prompt: Asked) -> str:
        """What the evaluator needs and the prompt does not carry, in words; empty if images of it can be judged."""
        ...

    def submit(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> Callable[[], list[dict]]:
        """Start to judge images, concurrently with the caller's next work if possible.

        Args:
            prompts: what image ``i`` was made from.
            images: uint8 (H, W, 3) in RGB, as many.

        Returns:
            A function that waits, and gives for each image plain values by name, among them ``reward``, the training reward,
            and ``stratum``, and no name of :data:`RESERVED`. Comparisons average first within strata, then over them, as
            the main score must do too: an evaluator whose score is a plain mean gives all images the same stratum.
        """
        ...

    def summarise(self, prompts: Sequence[Asked], verdicts: Sequence[dict]) -> list[Score]:
        """All metrics of an evaluation from the verdicts; a prompt may have many images, in any order."""
        ...


Places = Callable[[Sequence[Asked], Sequence[np.ndarray]], list[np.ndarray]]
"""Prompts and as many images, uint8 (H, W, 3) in RGB -> for each image a mask, bool (H, W): True where the verdict comes from,
whether it is a good or a bad one; False everywhere where nothing was found."""


def places_of(evaluator: Evaluator) -> Places | None:
    """An evaluator's optional method ``places``: where in the final image its verdict comes from.

    GenEval's places are the masks of the objects that count for the prompt's record, those of OCR the lines of text. Arms such
    as ``oracle`` need them. None if there is no such method, or if it is None because the engine cannot tell.
    """
    return getattr(evaluator, "places", None)


Slopes = Callable[[Sequence[Asked], Sequence[np.ndarray]], list[np.ndarray]]
"""Prompts and as many images, uint8 (H, W, 3) in RGB -> for each image the gradient of its reward, up to a positive factor,
with respect to its pixels in [0, 1], float32 (H, W, 3)."""


def slopes_of(evaluator: Evaluator) -> Slopes | None:
    """An evaluator's optional method ``slopes``: its reward's gradient with respect to the pixels, up to a positive factor.

    PickScore has it. Arms such as ``sga`` need it. None if there is no such method.
    """
    return getattr(evaluator, "slopes", None)


def mean_and_stderr(values: ArrayLike, prompts: Sequence[Hashable]) -> tuple[float, float | None]:
    """The mean over images and its standard error, robust to the images of one prompt being alike.

    Args:
        values: (n,) per image.
        prompts: (n,) the prompt of each.

    Returns:
        The mean, and :func:`star.common.statistics.clustered_stderr`: None where there is one prompt.
    """
    numbers = np.asarray(values, dtype=np.float64)
    return float(numbers.mean()), clustered_stderr(numbers, prompts)


def mean_scores(prompts: Sequence[Asked], verdicts: Sequence[dict], metrics: Mapping[str, str]) -> list[Score]:
    """Means over images, with standard errors over prompts, of ``metrics``: name -> key in the verdicts."""
    texts = [prompt.text for prompt in prompts]
    return [
        Score(metric, *mean_and_stderr([verdict[key] for verdict in verdicts], texts), len(texts), len(set(texts)))
        for metric, key in metrics.items()
    ]


NAME = re.compile(r"[^\s=+@-]\S*( \S+)*")
"""The names of metrics and protocols: spreadsheets evaluate text that begins like a formula."""

RATE = re.compile(r"geneval_(official|strict)_\w+|ocr_(accuracy|exact)|vivid(_found)?", re.ASCII)
"""The metrics that lie in [0, 1]."""

MOST_SCORE = 1e12
"""The largest absolute value of a score: far above whatever is measured, far below where sums and squares overflow."""

MEMBERS = ("protocol", "primary", "paired", "lacks", "submit", "summarise")
"""What an :class:`Evaluator` has."""

RESERVED = ("file", "prompt", "image", "protocol", "task", "method", "seed", "config_hash", "terms", "trained_on")
"""Columns of tables of verdicts that say what was judged, and how; verdicts cannot have them."""


def is_rate(metric: str) -> bool:
    """Whether a metric's values lie in [0, 1]."""
    return bool(RATE.fullmatch(metric))


def check_names(judge: str, verdicts: Sequence[dict]) -> None:
    """Raise UserError if verdicts have a key of :data:`RESERVED`, which tables would lose, or a text that breaks them."""
    if taken := [name for name in RESERVED if any(name in verdict for verdict in verdicts)]:
        raise UserError(f"{judge} gives {taken[0]!r} in its verdicts, a column of every table of scores; call it otherwise")
    for name, value in (item for verdict in verdicts for item in verdict.items()):
        for text in filter(lambda given: isinstance(given, str), (name, value)):
            if fault := fault_of_text(text):
                raise UserError(f"{judge} gives {name!r}: {short(repr(value))} in its verdicts, with {fault}; leave that out")


def check_verdicts(judge: str, verdicts: list[dict], images: int | None = None) -> list[dict]:
    """Check the verdicts on some images, or scores, and return them; a number that is not finite stops the run.

    A reward that is no float, say True or 1, becomes one, in place: means are taken of it, and tables hold it.

    Args:
        judge: the evaluator's protocol or name.
        verdicts: what it gave.
        images: how many images; None for scores.

    Raises:
        RunStopped: a number is not finite, or the evaluator did not give a verdict for each image.
        UserError: of images, a verdict has a key or a text that tables cannot hold, see :func:`check_names`.
    """
    if images is not None:
        if not _are_verdicts(verdicts, images):
            raise RunStopped(
                f"{judge}: `submit` must return a function that gives a list of {images} dicts here, one for each image, "
                f"whose 'reward' is a number, not {repr(verdicts)[:100]}"
            )
        check_names(judge, verdicts)
    for verdict in verdicts:
        if "reward" in verdict and not isinstance(verdict["reward"], float | np.floating):
            verdict["reward"] = float(verdict["reward"])
        for name, value in verdict.items():
            if isinstance(value, float | np.floating) and not math.isfinite(value):
                raise RunStopped(f"{judge} gives {name}={value}: its weights are damaged, or it has a fault")
    return verdicts


def _are_verdicts(given: Any, images: int) -> bool:
    """Whether what an evaluator gave has the form of verdicts on that many images."""
    return (
        isinstance(given, list)
        and len(given) == images
        and all(isinstance(verdict, dict) and isinstance(verdict.get("reward"), Real | np.bool_) for verdict in given)
    )


def try_judge(judge: str, evaluator: Evaluator, prompts: Sequence[Asked], side: int) -> None:
    """Try an evaluator on white images, before hours of drawing images for it.

    Some evaluators load their models only now, and a user's own may have a fault.

    Args:
        judge: what error messages call it.
        evaluator: the evaluator.
        prompts: some that it can judge.
        side: of the images, in pixels.

    Raises:
        UserError: it does not judge as :class:`Evaluator` says.
    """
    try:
        verdicts = judged(judge, evaluator, prompts, [np.full((side, side, 3), 255, np.uint8) for _ in prompts])
    except RunStopped as stopped:
        raise UserError(str(stopped)) from None
    with suppress(RunStopped):  # a mean over what is found in images has no value where they are white
        summary(judge, evaluator, prompts, verdicts)


def judged(judge: str, evaluator: Evaluator, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> list[dict]:
    """An evaluator's verdicts on images, waited for; ``judge`` is what error messages call it.

    Raises:
        UserError: there is nothing to wait for, or as :func:`check_verdicts`.
        RunStopped: as :func:`check_verdicts`.
    """
    wait = evaluator.submit(prompts, images)
    if not callable(wait):
        raise UserError(f"{judge}: `submit` must return a function that waits for verdicts, not {repr(wait)[:100]}")
    return check_verdicts(judge, wait(), len(prompts))


def summary(judge: str, evaluator: Evaluator, prompts: Sequence[Asked], verdicts: Sequence[dict]) -> list[Score]:
    """An evaluator's scores of verdicts, as plain numbers; ``judge`` is what error messages call it.

    Raises:
        UserError: they are not as :class:`Evaluator` and :class:`Score` say.
        RunStopped: a number is not finite.
    """
    check_protocol(judge, evaluator)
    scores = evaluator.summarise(prompts, verdicts)
    if not (isinstance(scores, list) and all(isinstance(score, Score) for score in scores)):
        raise UserError(f"{judge}: `summarise` must return a list of evaluators.interface.Score, not {repr(scores)[:100]}")
    if evaluator.primary not in (metrics := [score.metric for score in scores]):
        raise UserError(
            f"{judge}: `primary` is {evaluator.primary!r}, which `summarise` does not give; it gives {', '.join(metrics)}"
        )
    if twice := next((metric for metric in metrics if metrics.count(metric) > 1), None):
        raise UserError(f"{judge}: `summarise` gives two scores of {twice!r}; a result file holds one")
    return [_plain(judge, score) for score in scores]


def check_protocol(judge: str, evaluator: Evaluator) -> None:
    """Raise UserError if an evaluator's protocol is none that result files hold; ``judge`` is what the message calls it."""
    if not _is_name(evaluator.protocol):
        raise UserError(f"{judge}: `protocol` is {evaluator.protocol!r}; write name and version, as in 'brightness-v1'")


def _is_name(given: object) -> bool:
    """Whether an evaluator's metric or protocol is a text that result files hold."""
    return isinstance(given, str) and bool(NAME.fullmatch(given)) and not fault_of_text(given)


def _plain(judge: str, score: Score) -> Score:
    """A score that a result file can hold, its numbers as Python's own; raises what :func:`summary` does."""
    metric, value, stderr, images, prompts = score
    counted = isinstance(images, Integral) and isinstance(prompts, Integral)
    if not (_is_name(metric) and counted and isinstance(value, Real) and isinstance(stderr, Real | None)):
        raise UserError(f"{judge}: `summarise` gives {score}; a Score is a metric's name, two numbers and two whole numbers")
    plain = Score(metric, float(value), None if stderr is None else float(stderr), int(images), int(prompts))
    check_verdicts(judge, [{metric: plain.value, f"{metric} ± stderr": 0.0 if stderr is None else plain.stderr}])
    counts = all(1 <= number < 2**63 for number in (plain.images, plain.prompts))
    if abs(plain.value) > MOST_SCORE or (plain.stderr or 0) < 0 or not counts:
        raise UserError(f"{judge}: `summarise` gives numbers out of range: {plain}")
    if is_rate(metric) and not 0 <= round(plain.value, 6) <= 1:  # six digits are what result files keep
        raise UserError(f"{judge}: `summarise` gives {metric}={plain.value}, and by its name that is a rate, from 0 to 1")
    return plain
