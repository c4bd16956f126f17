"""The names in result files: what a method's and a protocol's parts mean. Nothing else takes them apart."""

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


@dataclass(frozen=True)
class MethodName:
    """A method as results call it: ``star``, ``flow_grpo@released``, ``star+fast:ocr``.

    Attributes:
        text: the whole name.
        arm: what comes first: an arm, ``base``, or a name of somebody's own.
        source: whose numbers or weights they are, behind ``@``; empty if this project's.
        changes: what differs from the arm's ordinary settings, each behind ``+``.
        trained_for: the task that it was trained for, where that is not the task it was measured on; behind ``:``. Empty
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
        """Take a name apart.

        Raises:
            UserError: it is no name of a method.
        """
        match = METHOD.fullmatch(text)
        if not match:
            raise UserError(f"{text!r} is no method's name: write it like star, flow_grpo@released or star+fast:ocr")
        changes = tuple(match["changes"].split("+")[1:])
        return cls(text, match["arm"], match["source"] or match["task_source"] or "", changes, match["task"] or "")

    @property
    def at_home(self) -> str:
        """The name on the task that it was trained for: without that task."""
        return self.text.partition(":")[0]

    @property
    def family(self) -> str:
        """What methods that are compared with each other share, as part of their names: ``+fast``, or nothing."""
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
        parts: what follows: the engine (none for some), the scale, and in which way images were drawn otherwise than the
            scale says (``guidance=2.0``).
    """

    evaluation: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a protocol apart; any text is one."""
        evaluation, *parts = text.split("/")
        return cls(evaluation, tuple(parts))

    @classmethod
    def of(cls, evaluator: str, scale: str, changes: dict[str, object]) -> Self:
        """The protocol of an evaluation.

        Args:
            evaluator: the evaluator's own protocol, name and engine.
            scale: whose prompts and sampling.
            changes: what of the sampling is not the scale's.
        """
        return cls.parse("/".join([evaluator, scale, *(f"{name}={value}" for name, value in changes.items())]))

    def __str__(self) -> str:
        return "/".join([self.evaluation, *self.parts])

    @property
    def engine(self) -> str:
        """What judged; empty if the protocol does not say."""
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
    """What methods that are compared share; see :attr:`MethodName.family`."""
    return MethodName.parse(method).family


def is_mini(protocol: str) -> bool:
    """Whether a protocol's numbers are the embedded world's; see :attr:`ProtocolName.mini`."""
    return ProtocolName.parse(protocol).mini


def has_map(method: str) -> bool:
    """Whether a method weighs places by a map, as far as is known: one of somebody's own name may."""
    arm = ARMS.get(MethodName.parse(method).arm)
    return arm is None or arm.map != "uniform"


def on_task(method: str, trained_for: str, measured_on: str) -> str:
    """What rows of a task call a method that was trained for a task: ``star``, or ``star:ocr`` on another one."""
    return method if trained_for == measured_on else f"{method}:{trained_for}"


def measured_on_own_task(method: str) -> bool:
    """Whether a row is of the task that its method was trained for, or of none."""
    return not MethodName.parse(method).trained_for
