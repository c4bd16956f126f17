"""The arms of the ablation: one table for the settings, the matrix, the reports and the help.

An arm is a named pair: a way to make weights (``method.arm``) and a ratio (``method.reduction``). To add one, write a function
that makes its map (see :data:`MapMaker`) and add a row here; to try one, name the function: ``method.arm=my_module:my_map``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from star.common.plugins import import_path, is_path

if TYPE_CHECKING:
    from torch import Tensor

    MapMaker = Callable[[Tensor, "Rollouts"], Tensor]
    """Makes an arm's map from rollouts' relevance, (T, B, h, w) in and out, >= 0; the input has maximum 1 for each rollout."""


@dataclass(frozen=True)
class Rollouts:
    """What a :data:`MapMaker` may know about B rollouts besides their relevance.

    Attributes:
        prompts: the id >= 0 of each rollout's prompt; empty if it is not known.
        keys: an id >= 0 of each rollout, to key random numbers that do not depend on the batch.
        seed: of random numbers, >= 0.
        places: (B, h, w), the share of each image token's area where the verdict on the final image comes from, in [0, 1]; 0
            everywhere if nothing was found. None unless the maker asks for it by :func:`needing`, like the next two.
        images: the final images, uint8 (B, H, W, 3) in RGB.
        slopes: the gradient of the final image's reward with respect to its pixels, up to a positive factor, float32
            (B, H, W, 3).
    """

    prompts: Sequence[int]
    keys: Sequence[int]
    seed: int
    places: "Tensor | None" = None
    images: "Tensor | None" = None
    slopes: "Tensor | None" = None


RATIOS = {
    "image": "per image",
    "image_weighted": "per image, weighted",
    "detached": "per image, detached",
    "position": "per position",
}
"""The values of ``method.reduction``, in words; :mod:`star.method.objective` has the formulas."""


@dataclass(frozen=True)
class Arm:
    """A row of the ablation.

    Attributes:
        name: as in ``method=NAME`` and in results.
        map: how its weights are made, a value of ``method.arm``: a key of :data:`MAPS` or the path of a :data:`MapMaker`.
        ratio: which ratio it uses, a value of ``method.reduction``.
        label: its name in tables.
        weights: what its weights are, in words.
        question: the question that it answers.
        published: whether it is in the paper.
        control: whether its maps are meaningless on purpose.
        diagnostic: whether it is left out of the ablation and runs only when it is named.
        steps: how the policy loss of each step is weighted, a value of ``method.steps``.
        clip: what keeps its updates near the policy that sampled, a value of ``method.clip``.
        neighbour: whether it follows another published work; ``docs/neighbours`` has a page on it.
        colour: in figures, from Okabe and Ito's palette for colour-blind readers; None for the colour of the text.
    """

    name: str
    map: str
    ratio: str
    label: str
    weights: str
    question: str
    published: bool = False
    control: bool = False
    diagnostic: bool = False
    steps: str = "as_sampled"
    clip: str = "ratio"
    neighbour: bool = False
    colour: str | None = None


MAPS: dict[str, str | None] = {
    "uniform": None,
    "spatial": "star.method.allocation:spatial",
    "temporal": "star.method.allocation:temporal",
    "star": "star.method.allocation:star",
    "star_shuffled": "baselines.controls:shuffled",
    "star_random": "baselines.controls:randomised",
    "star_shifted": "baselines.controls:shifted",
    "oracle": "baselines.controls:oracle",
    "oracle_twins": "baselines.controls:oracle_twins",
    "background": "baselines.controls:background",
    "vipo": "baselines.neighbours:vipo",
    "sga": "baselines.neighbours:sga",
    "sga_flipped": "baselines.neighbours:sga_flipped",
}
"""Named values of ``method.arm`` and the functions that make their maps; ``uniform`` has none because its weights are 1."""

ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            name="flow_grpo",
            map="uniform",
            ratio="image",
            label="Flow-GRPO",
            weights="1 everywhere",
            question="the published baseline",
            published=True,
            colour="#0072B2",
        ),
        Arm(
            name="dense_uniform",
            map="uniform",
            ratio="position",
            label="dense_uniform",
            weights="1 everywhere",
            question="a ratio per position; unclipped, Flow-GRPO once more: how far apart do two trainings end?",
            colour="#D55E00",
        ),
        Arm(
            name="spatial",
            map="spatial",
            ratio="image_weighted",
            label="spatial only",
            weights="attention, mean over steps",
            question="does it matter where?",
            published=True,
            colour="#009E73",
        ),
        Arm(
            name="temporal",
            map="temporal",
            ratio="image_weighted",
            label="temporal only",
            weights="attention, mean over positions",
            question="does it matter when?",
            published=True,
            colour="#CC79A7",
        ),
        Arm(
            name="star",
            map="star",
            ratio="image_weighted",
            label="STAR",
            weights="attention to the prompt's core words",
            question="where and when together",
            published=True,
            colour="#E69F00",
        ),
        Arm(
            name="star_shuffled",
            map="star_shuffled",
            ratio="image_weighted",
            label="star_shuffled",
            weights="STAR's, of another prompt",
            question="does the map have to match the prompt?",
            control=True,
            colour="#56B4E9",
        ),
        Arm(
            name="star_random",
            map="star_random",
            ratio="image_weighted",
            label="star_random",
            weights="STAR's values in a smooth random field",
            question="does it have to be a map at all?",
            control=True,
        ),
        Arm(
            name="star_shifted",
            map="star_shifted",
            ratio="image_weighted",
            label="star_shifted",
            weights="STAR's, moved by half the canvas",
            question="does the map have to lie where it lies?",
            control=True,
            diagnostic=True,
        ),
        Arm(
            name="oracle",
            map="oracle",
            ratio="image_weighted",
            label="oracle",
            weights="the objects or lines that the evaluator found",
            question="how much is there to gain by a map?",
            diagnostic=True,
        ),
        Arm(
            name="oracle_twins",
            map="oracle_twins",
            ratio="image_weighted",
            label="oracle_twins",
            weights="the same in the prompt's other images",
            question="and by a map that is not made from the image it weighs?",
            diagnostic=True,
        ),
        Arm(
            name="background",
            map="background",
            ratio="image_weighted",
            label="background",
            weights="all but the oracle's",
            question="does a wrong map lose?",
            diagnostic=True,
        ),
        Arm(
            name="vipo",
            map="vipo",
            ratio="image_weighted",
            label="ViPO-style",
            weights="what stands out in a frozen network's features of the final image",
            question="does saliency do as well?",
            diagnostic=True,
            neighbour=True,
        ),
        Arm(
            name="sga",
            map="sga",
            ratio="image_weighted",
            label="SGA-style",
            weights="where the reward's gradient with respect to the final image is small",
            question="does the reward's own gradient, as published, tell where?",
            diagnostic=True,
            neighbour=True,
        ),
        Arm(
            name="sga_flipped",
            map="sga_flipped",
            ratio="image_weighted",
            label="SGA-style, flipped",
            weights="where it is large",
            question="and with the other sign?",
            diagnostic=True,
            neighbour=True,
        ),
        Arm(
            name="tempflow",
            map="uniform",
            ratio="image",
            label="TempFlow-style",
            weights="1 everywhere, each step divided by the size of its score",
            question="what do weights of steps do alone?",
            diagnostic=True,
            steps="equal",
            neighbour=True,
        ),
        Arm(
            name="flow_dppo",
            map="uniform",
            ratio="image",
            label="Flow-DPPO-style",
            weights="1 everywhere, updates bounded by the divergence",
            question="what does another trust region do alone?",
            diagnostic=True,
            clip="kl",
            neighbour=True,
        ),
    )
}
"""All arms in reading order, by name."""

ABLATION = tuple(name for name, arm in ARMS.items() if not arm.diagnostic)
"""The arms that ``method=all`` means."""

METHODS = ("base", *ARMS)
"""What results hold, in reading order: the untrained model and the arms."""

REFERENCE = "flow_grpo"
"""The arm that every other is compared with."""


def map_maker(arm: str) -> "MapMaker | None":
    """The function that makes the map for a value of ``method.arm``; None where weights are 1 everywhere.

    Raises:
        ValueError: there is no such value.
        UserError: there is no such module or function.
    """
    if arm not in MAPS and not is_path(arm):
        raise ValueError(f"unknown arm {arm!r}; the arms are {', '.join(MAPS)}")
    path = MAPS.get(arm, arm)
    return None if path is None else import_path(path, f"method.arm={arm}")


Function = TypeVar("Function", bound="MapMaker")


NEEDS = ("whole_epoch", "places", "images", "slopes")


def needing(*what: str) -> Callable[[Function], Function]:
    """Marks a :data:`MapMaker` that needs more than the relevance of some rollouts.

    Args:
        what: ``whole_epoch``, if it makes a rollout's map from other rollouts and so needs those of an epoch all at once; and
            the fields of :class:`Rollouts` that are filled only on request: ``places``, ``images`` or ``slopes``.

    Raises:
        ValueError: there is no such need.
    """
    if unknown := [name for name in what if name not in NEEDS]:
        raise ValueError(f"a map may need {', '.join(NEEDS)}, and not {unknown[0]}")

    def mark(maker: Function) -> Function:
        maker.needs = (*getattr(maker, "needs", ()), *what)  # type: ignore[attr-defined]
        return maker

    return mark


def needs(maker: "MapMaker", what: str) -> bool:
    """Whether a maker was marked by :func:`needing`."""
    return what in getattr(maker, "needs", ())
