"""The names in result files: what the parts of a method's and a protocol's name mean. No other module parses them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Self

from star.common.errors import UserError
from star.config.schema import WORD
from star.method.arms import ARMS, METHODS

_W = WORD.pattern
METHOD = re.compile(
    rf"(?P<arm>{_W})(?:@(?P<source>{_W}))?(?P<changes>(?:\+{_W})*)(?::(?P<task>{_W})(?:@(?P<task_source>{_W}))?)?", re.ASCII
)

RELEASED_METHOD = "flow_grpo@released"
"""What results call the LoRA that Flow-GRPO's authors released, which others measured again under that name."""


@dataclass(frozen=True)
class MethodName:
    """A method as results call it: ``star``, ``flow_grpo@released``, ``star+fast:ocr``.

    Attributes:
        text: the whole name.
        arm: the first part: an arm, ``base``, or a user-defined name.
        source: whose numbers or weights they are, after ``@``; empty if this project's.
        changes: what differs from the arm's ordinary settings, each after ``+``.
        trained_for: the task that it was trained for, where that is not the task it was measured on; after ``:``. Empty
            otherwise.
    """

    text: str
    arm: str
    source: str
    changes: tuple[str, ...]
    trained_for: str

    @classmethod
    @cache
    def parse(cls, text: str) -> Self:
        """Parse a method's name.

        Raises:
            UserError: it is not the name of a method.
        """
        match = METHOD.fullmatch(text)
        if not match:
            raise UserError(f"{text!r} is no method's name: write it like star, flow_grpo@released or star+fast:ocr")
        changes = tuple(match["changes"].split("+")[1:])
        return cls(text, match["arm"], match["source"] or match["task_source"] or "", changes, match["task"] or "")

    @property
    def at_home(self) -> str:
        """The name it has on the task that it was trained for: the part before ``:``."""
        return self.text.partition(":")[0]

    @property
    def family(self) -> str:
        """The part of the name that methods must share to be compared with each other: ``+fast``, or nothing."""
        return "".join(f"+{change}" for change in self.changes)

    @property
    def untrained(self) -> bool:
        """Whether it is a base model."""
        return self.arm == "base"

    @property
    def label(self) -> str:
        """The name a reader knows: ``flow_grpo+fast:ocr`` is "Flow-GRPO, fast (trained for ocr)"."""
        head, trained = self.at_home.partition("+")[0], self.text.partition(":")[2]
        name = ARMS[head].label if head in ARMS else head
        return ", ".join([name, *self.changes]) + (f" (trained for {trained})" if trained else "")


@dataclass(frozen=True)
class ProtocolName:
    """An evaluation as results call it: ``geneval-v1/mini-2/mini/guidance=2.0``.

    Attributes:
        evaluation: name and version.
        parts: what follows: the engine (none for some), the scale, and where the drawing of images departs from the scale's
            settings (``guidance=2.0``).
    """

    evaluation: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a protocol; any text is a valid one."""
        evaluation, *parts = text.split("/")
        return cls(evaluation, tuple(parts))

    @classmethod
    def of(cls, evaluator: str, scale: str, changes: dict[str, object]) -> Self:
        """The protocol of an evaluation.

        Args:
            evaluator: the evaluator's own protocol, name and engine.
            scale: whose prompts and sampling.
            changes: the sampling settings that are not the scale's.
        """
        return cls.parse("/".join([evaluator, scale, *(f"{name}={value}" for name, value in changes.items())]))

    def __str__(self) -> str:
        return "/".join([self.evaluation, *self.parts])

    @property
    def engine(self) -> str:
        """What judged the images; empty if the protocol does not say."""
        return self.parts[0] if self.parts else ""

    @property
    def changed(self) -> bool:
        """Whether images were drawn otherwise than the scale says."""
        return any("=" in part for part in self.parts[1:])

    @property
    def mini(self) -> bool:
        """Whether any part of it is the embedded world's: the model, the prompts or the evaluator."""
        return any(part == "mini" or part.startswith("mini-") for part in (self.evaluation, *self.parts))


def reading_order(methods: Iterable[str]) -> list[str]:
    """Each method once: those of this project in their own order, then the others by name."""
    found = set(methods)
    return [method for method in METHODS if method in found] + sorted(found - set(METHODS))


def method_label(method: str) -> str:
    """The name a reader knows; see :attr:`MethodName.label`."""
    return MethodName.parse(method).label


def family(method: str) -> str:
    """What methods must share to be compared; see :attr:`MethodName.family`."""
    return MethodName.parse(method).family


def is_mini(protocol: str) -> bool:
    """Whether a protocol's numbers are the embedded world's; see :attr:`ProtocolName.mini`."""
    return ProtocolName.parse(protocol).mini


def plainness(protocol: str) -> tuple[bool, str]:
    """A sort key of protocols: those whose images are drawn as the scale says come first, then by name."""
    return ProtocolName.parse(protocol).changed, protocol


def has_map(method: str) -> bool:
    """Whether a method weights positions by a map; True also for a name that is no arm's, since it may."""
    arm = ARMS.get(MethodName.parse(method).arm)
    return arm is None or arm.map != "uniform"


def on_task(method: str, trained_for: str, measured_on: str) -> str:
    """A method's name in the rows of a task: ``star`` on the task it was trained for, else e.g. ``star:ocr``."""
    return method if trained_for == measured_on else f"{method}:{trained_for}"


def measured_on_own_task(method: str) -> bool:
    """Whether a method was measured on the task that it was trained for, or is not trained at all."""
    return not MethodName.parse(method).trained_for
