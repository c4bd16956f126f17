"""What may be said of a result, by fixed rules, no laxer than those that `results/PLAN.md` set down before the trainings.

A gain of STAR is claimed if, and only if, all of these hold:

1. the 95 % interval of STAR minus Flow-GRPO lies above 0; scores are paired by prompt and noise, training rewards by seed;
2. so does that of STAR minus ``star_shuffled``, whose maps belong to other prompts: a gain that it shares does not come from
   where the map points;
3. both rest on at least eight training seeds;
4. all were trained on the same number of images, and with the same settings except the method;
5. where the plan has a test of the difference, its p, corrected for all tests of the question, is below 0.05; a loss needs
   that, too.

Where nothing shows, the text says how large a difference so many trainings would find by one test. Nothing is concluded from
that about maps where ``oracle_twins``, which knows where the verdicts come from, shows no gain; its difference stands beside
every verdict. A gain is called smaller than the paper's if the interval lies below the paper's gain, as a share of
Flow-GRPO's gain.
"""

from collections.abc import Sequence
from typing import Protocol

from star.common.numbers import counted, named_seeds, p_value, sample_size, signed
from star.common.statistics import Estimate
from star.method.arms import REFERENCE
from star.records.comparison import Comparison
from star.report.blocks import Text

SEEDS_FOR_A_CLAIM = 8
LEVEL = 0.05

GAIN = "A gain of STAR."
SHARED = "Better than Flow-GRPO; not shown to come from the map."
NO_CONTROL = "Better than Flow-GRPO; whether because of the map is not known."
FEW_SEEDS = "Better than Flow-GRPO on these seeds; too few for a claim."
UNCLEAR = "Cannot tell."
SMALLER = "No gain as large as the paper's."
LOSS = "Worse than Flow-GRPO."
FEW_SEEDS_LOSS = "Worse than Flow-GRPO on these seeds; too few for a claim."
UNEQUAL = "Not trained alike."
NOT_MEASURED = "Not measured."
GAINS = (GAIN, SHARED, NO_CONTROL, FEW_SEEDS)

FEW_OF_CONTROL = f"The control has fewer than {SEEDS_FOR_A_CLAIM} training seeds."


class Difference(Protocol):
    """One arm minus another, on whatever was measured: a :class:`Comparison`, or a planned difference."""

    @property
    def delta(self) -> Estimate:
        """The difference, with its interval."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds that both have."""

    @property
    def equal_terms(self) -> bool:
        """Whether both were trained equally long and alike."""


def verdict(
    gain: Difference | None,
    control: Difference | None,
    oracle: Difference | None = None,
    papers: float | None = None,
    p: float | None = None,
) -> str:
    """One of this module's verdicts.

    Args:
        gain: STAR minus Flow-GRPO; None if it could not be computed.
        control: STAR minus ``star_shuffled``; None if it could not be computed.
        oracle: ``oracle_twins`` minus Flow-GRPO; None if it could not be computed.
        papers: the difference that would be as large as the paper's, as a share of Flow-GRPO's gain; None if not known.
        p: of the planned test, corrected; None if there is none.
    """
    if gain is None:
        return NOT_MEASURED
    if not gain.equal_terms:
        return UNEQUAL
    low, high = gain.delta.interval or (-float("inf"), float("inf"))
    enough = len(gain.seeds) >= SEEDS_FOR_A_CLAIM
    tested = not enough or p is None or p < LEVEL
    if high < 0 and tested:
        return LOSS if enough else FEW_SEEDS_LOSS
    if low <= 0 or not tested:
        return SMALLER if enough and papers is not None and high < papers and _helps(oracle) else UNCLEAR
    if not enough:
        return FEW_SEEDS
    if control is None or control.delta.interval is None or not control.equal_terms:
        return NO_CONTROL
    if len(control.seeds) < SEEDS_FOR_A_CLAIM:
        return FEW_SEEDS
    return GAIN if control.delta.interval[0] > 0 else SHARED


def says(
    title: str,
    gain: Comparison | None,
    control: Comparison | None,
    trained: Comparison | None,
    absent: list[str],
    mini: bool,
    oracle: Comparison | None = None,
    papers: float | None = None,
    p: float | None = None,
    tested: Sequence[int] = (),
) -> Text:
    """The paragraph on one task, or on a variant of its methods.

    Args:
        title: name of the task or variant.
        gain, control, oracle, papers, p: as in :func:`verdict`.
        trained: Flow-GRPO minus base.
        absent: arms that were not run.
        mini: whether the numbers are the small model's.
        tested: the seeds that ``p`` rests on.
    """
    found = verdict(gain, control, oracle, papers, p)
    sentences = [
        _gain(gain, absent),
        _test(gain, p, tested),
        _could(found, gain, papers, p),
        says_of_oracle(oracle, found),
        _control(found, gain, control, absent),
    ]
    sentences.append(_trained(trained))
    if gain and len(gain.seeds) < SEEDS_FOR_A_CLAIM:
        sentences.append(_seeds(len(gain.seeds)))
    elif found == FEW_SEEDS:
        sentences.append(FEW_OF_CONTROL)
    if absent:
        sentences.append(f"Not run: {', '.join(absent)}.")
    if mini:
        sentences.append("Small model, own prompts, own evaluator: not comparable with the paper's numbers.")
    return Text(" ".join(filter(None, sentences)), strong=f"{title}: {found}")


def _gain(gain: Comparison | None, absent: Sequence[str]) -> str:
    if gain is None:
        if missing := [label for name, label in (("star", "STAR"), (REFERENCE, "Flow-GRPO")) if name in absent]:
            return (
                f"{' and '.join(missing)} {'was' if len(missing) == 1 else 'were'} not run here, so they cannot be compared."
            )
        return (
            "STAR and Flow-GRPO have no images here of the same prompts, noise and seeds, judged under one protocol, so they "
            "cannot be compared."
        )
    text = (
        f"STAR minus Flow-GRPO is {signed(gain.delta)} on the {gain.label} "
        f"({sample_size(gain.images, gain.prompts)}, {counted(len(gain.seeds), 'training seed')})"
    )
    if not gain.equal_terms:
        return f"{text}, but {_unequal(gain, 'Flow-GRPO')}."
    if gain.delta.interval is None:
        return f"{text}; there is no interval, because one group of prompts has a single prompt."
    low, high = gain.delta.interval
    side = "lies above" if low > 0 else "lies below" if high < 0 else "includes"
    return f"{text}; the interval {side} 0."


def _test(gain: Comparison | None, p: float | None, tested: Sequence[int]) -> str:
    if p is None or gain is None or not gain.equal_terms:
        return ""
    if tested and tuple(tested) != gain.seeds:  # some rows have no images, or images no rows
        return f"The test over {named_seeds(tested)}, corrected for multiple testing, gives p = {p_value(p)}."
    text = f"The test over seeds, corrected for multiple testing, gives p = {p_value(p)}"
    if p < LEVEL and gain.delta.interval and gain.delta.interval[0] <= 0 <= gain.delta.interval[1]:
        return f"{text}: the trainings differ on these prompts, but perhaps not on others."
    return f"{text}."


def _could(found: str, gain: Comparison | None, papers: float | None, p: float | None) -> str:
    """If no difference shows, how large a one would have been found, and how large the paper's would be here."""
    if gain is None or found not in (UNCLEAR, SMALLER):
        return ""
    sentences = []
    if (shown := gain.detectable) is not None:
        sentences.append(
            f"With this spread, this many trainings and prompts detect a difference of {shown:.3f} with 80 % power in one "
            f"test at 5 %{'' if p is None else '; after correction it has to be larger'}."
        )
    if papers is not None:
        sentences.append(f"The paper's gain, as a share of Flow-GRPO's gain, would be {signed(papers)} here.")
    return " ".join(sentences)


def says_of_oracle(oracle: Difference | None, found: str, digits: int = 3) -> str:
    """The sentence on the map that knows where the verdicts come from: whether any map helps measurably.

    Args:
        oracle: ``oracle_twins`` minus Flow-GRPO; None if it could not be computed.
        found: the verdict on STAR, of which a gain stands whether or not another map gains, too.
        digits: decimals of its numbers.
    """
    if oracle is None:
        return "There is no oracle (oracle_twins) to compare, so whether any map helps measurably here is not known."
    if not oracle.equal_terms:
        return ""
    if len(oracle.seeds) < SEEDS_FOR_A_CLAIM:
        what = "too few to say whether any map helps measurably"
    elif _helps(oracle):
        what = "a map can help measurably"
    else:
        loses = oracle.delta.interval and oracle.delta.interval[1] < 0
        what = "a map that should help loses" if loses else "not even this map helps measurably"
        what += "" if found in GAINS else ", so this says nothing about STAR's"
    size = counted(len(oracle.seeds), "training seed")
    return f"oracle_twins minus Flow-GRPO is {signed(oracle.delta, digits)} ({size}): {what}."


def _helps(oracle: Difference | None) -> bool:
    """Whether a map that knows the places is seen to gain, with as many seeds as a claim needs."""
    if oracle is None or not oracle.equal_terms or len(oracle.seeds) < SEEDS_FOR_A_CLAIM:
        return False
    return oracle.delta.interval is not None and oracle.delta.interval[0] > 0


def _control(found: str, gain: Comparison | None, control: Comparison | None, absent: list[str]) -> str:
    if control is None:
        if found not in (NO_CONTROL, FEW_SEEDS):
            return ""
        why = "was not run" if "star_shuffled" in absent else "has no images to compare with"
        return f"The control with maps of other prompts (star_shuffled) {why}, so the gain cannot be attributed to the map."
    text = f"STAR minus star_shuffled is {signed(control.delta)}"
    if gain is None or control.seeds != gain.seeds:
        text += f" ({counted(len(control.seeds), 'training seed')})"
    if not control.equal_terms:
        return f"{text}, but {_unequal(control, 'star_shuffled')}."
    if found == GAIN:
        return f"{text}, also above 0: the map has to match the prompt."
    if found == SHARED and control.delta.interval and control.delta.interval[1] < 0:
        return f"{text}, below 0: maps of other prompts do better."
    if found == SHARED:
        return f"{text}, not above 0: maps of other prompts do as well, or the difference is too small to detect."
    return f"{text}."


def _unequal(c: Comparison, reference: str) -> str:
    if c.trained_on[0] == c.trained_on[1]:
        return f"{reference} was trained with different settings"
    return f"STAR was trained on {c.trained_on[0]:,} images and {reference} on {c.trained_on[1]:,}"


def _trained(trained: Comparison | None) -> str:
    if trained is None:
        return ""
    if trained.delta.interval is None:
        return f"Flow-GRPO minus base is {signed(trained.delta)}."
    low, high = trained.delta.interval
    effect = "training works" if low > 0 else "training made it worse" if high < 0 else "training has no measurable effect"
    if low <= 0 <= high and len(trained.seeds) == 2:
        effect = "the interval of two seeds is too wide to tell"
    return f"Flow-GRPO minus base is {signed(trained.delta)}: {effect}."


def _seeds(count: int) -> str:
    if count == 1:
        return "With one training seed, the interval does not cover the spread between trainings."
    return f"A claim needs {SEEDS_FOR_A_CLAIM} training seeds, not {count}."
