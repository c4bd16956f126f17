"""The evaluators by name. They are imported when they are asked for, since their libraries are slow to import."""

from evaluators.interface import MEMBERS, Evaluator, check_protocol
from star.common.errors import UserError
from star.common.plugins import call_own, import_path, is_path

EVALUATORS = {
    "geneval": "evaluators.geneval.evaluator:GenEval",
    "ocr": "evaluators.ocr.evaluator:TextRendering",
    "pickscore": "evaluators.pickscore.evaluator:Preference",
    "vivid": "evaluators.vivid:Vivid",
}


def find(name: str) -> type[Evaluator]:
    """The class of an evaluator.

    Args:
        name: one of :data:`EVALUATORS`, or the path of a class of one's own: ``my_package.my_module:MyEvaluator``.

    Raises:
        UserError: there is none.
    """
    if name not in EVALUATORS and not is_path(name):
        known = ", ".join(EVALUATORS)
        raise UserError(f"no evaluator {name!r}; there are {known}, and your own as my_package.my_module:MyEvaluator")
    return import_path(EVALUATORS.get(name, name), f"evaluator {name}")


def create(name: str, engine: str | None = None) -> Evaluator:
    """An evaluator, ready to judge.

    Args:
        name: as for :func:`find`.
        engine: which engine a built-in one uses, e.g. ``rapidocr``, or the path of another class to judge in its place. For a
            class of one's own, its path again or None.

    Raises:
        UserError: there is none, it lacks weights or packages, or an engine is named for a class of one's own.
    """
    if is_path(name):
        if engine not in (None, name):
            raise UserError(f"engine={engine}: {name} is an evaluator of your own, which has no engines; leave it out")
        return _own(name)
    if engine is not None and is_path(engine):
        return _own(engine)
    return find(name)(engine)  # type: ignore[call-arg]


def _own(path: str) -> Evaluator:
    """An evaluator of the user's own, with all that :class:`Evaluator` asks for."""
    own: Evaluator = call_own(f"evaluator {path}", "a class that is instantiated without arguments", find(path))
    if lacking := [name for name in MEMBERS if not hasattr(own, name)]:
        raise UserError(f'evaluator {path} has no {", ".join(lacking)}; docs/extending.md, "A reward", shows what it needs')
    check_protocol(f"evaluator {path}", own)
    return own
