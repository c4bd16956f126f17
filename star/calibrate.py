"""``star calibrate``: released Flow-GRPO LoRAs through our evaluators, to check whether the published numbers come out."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from star import config as settings
from star.common.errors import UserError
from star.common.files import check_room, locked
from star.config.schema import NAME
from star.method.arms import ARMS
from star.models import lora
from star.records import results
from star.records.diff import find_paper
from star.records.folder import own_results
from star.records.names import RELEASED_METHOD, MethodName, is_mini
from star.records.results import Row
from star.training import runs

RELEASED = {
    "geneval": "jieliu/SD3.5M-FlowGRPO-GenEval",
    "ocr": "jieliu/SD3.5M-FlowGRPO-Text",
    "pickscore": "jieliu/SD3.5M-FlowGRPO-PickScore",
}
METHOD = "flow_grpo"


def calibrate(overrides: Sequence[str], source: str | None = None, name: str | None = None) -> list[tuple[Row, str, str]]:
    """Evaluate a LoRA on its task and put the rows into the scale's result file.

    Args:
        overrides: settings; the scale is ``paper`` unless they set another.
        source: a folder, a .safetensors file, or a repository in the hub's cache; by default what Flow-GRPO's authors
            released for the task.
        name: of the method in the results; by default ``flow_grpo@released``, or for another source ``lora@FOLDER``. Behind
            it comes what its base's name has behind it: ``lora@FOLDER+sd35_large``.

    Returns:
        Each row with the published number and the one that others measured on the released LoRA, both as printed; empty where
        there is none, as for all numbers of the small model.

    Raises:
        UserError: the LoRA, the model or the evaluator is missing.
    """
    config = settings.load(["scale=paper", *overrides], own_folder=False)
    task = config.task.name
    if source is None and task not in RELEASED:
        raise UserError(f"task={task} has no released LoRA; name one with lora=FOLDER")
    label = name or (RELEASED_METHOD if source is None else f"lora@{Path(source).name.removesuffix(lora.SUFFIX)}")
    # Its base's rows are named so, too, and methods are compared with the base of their own changes alone.
    changes = settings.label(config, "base").removeprefix("base")
    label = label.removesuffix(changes) + changes
    if not NAME.allows(label):  # reported before the work
        raise UserError(f"name={label} {NAME.text}; choose one with name=NAME")
    parsed = MethodName.parse(label)
    if name is not None and parsed.arm.lower() in ARMS and not parsed.source:
        raise UserError(f"name={name} is what this project trains; choose another, or say whose it is, as {name}@released")
    adapters = lora.read(lora.locate(source or RELEASED[task]))
    file = own_results(config.scale) / f"{task}.csv"
    check_room(file.parent, "result files")
    if name or source:  # otherwise it is the released LoRA again, whose older rows may be replaced
        _check_free(label, file, settings.config_hash(runs.released_identity(config, adapters)))
    rows = runs.released(config, adapters, label)
    if PartialState().is_main_process:
        with locked(file.parent):
            results.upsert(file, rows)
    published = {row.key: row.value for row in results.read_paper(find_paper())}

    def printed(row: Row, method: str) -> str:
        value = None if is_mini(row.protocol) else published.get((row.task, row.metric, method))
        return "" if value is None else str(value)

    return [(row, printed(row, METHOD), printed(row, RELEASED_METHOD)) for row in rows]


def _check_free(label: str, file: Path, known: str) -> None:
    """Refuse a name that the results use for another LoRA or other settings: those rows would be replaced."""
    rows = results.read(file) if file.exists() else []
    if other := next((row for row in rows if row.method == label and row.config_hash != known), None):
        raise UserError(
            f"{file} has rows of {other.method} already, of another LoRA or other settings; choose another name with name=NAME"
        )
