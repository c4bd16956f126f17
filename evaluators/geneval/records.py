"""Reading the record of a prompt: as GenEval writes it, and as it comes out of data frames and converters."""

import ast
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from evaluators.geneval.prompts import RELATIONS, TAGS, Record
from star.common.errors import UserError, one_line, short
from star.common.files import fault_of_text, parse_json

KEYS = ("tag", "prompt", "include", "exclude")
CLAUSE = ("class", "count", "color", "position")
NEEDED = {"colors": ("color", 1), "position": ("position", 1), "color_attr": ("color", 2)}
"""Tag -> what makes its prompts hard, and in how many clauses: a record that has lost it would be an easier prompt's."""
ALIKE = 0.8
"""From which of difflib's ratios on an unknown tag is one of GenEval's misspelt: ``color`` for ``colors``."""


def read_record(path: Path) -> Record:
    """The record of a ``metadata.jsonl``.

    Changes by other tools are undone: lists stored as text, whole numbers as floats, and nulls for absent values.

    Raises:
        UserError: the file is missing, unreadable or no record.
    """
    try:
        if path.is_fifo():
            raise UserError(f"{path} is a pipe, for which one may wait forever")
        record = parse_json(path.read_text("utf-8-sig"))
        record = _plain(record)
        fault = fault_of(record)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the folder is incomplete or not in GenEval's layout") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise UserError(f"{path} is not one JSON object: {error}") from error
    except RecursionError:
        raise UserError(f"{path} is no GenEval record: it is nested too deeply") from None
    if fault:
        raise UserError(f"{path} is no GenEval record: {fault}")
    return record


def _plain(record: Any) -> Any:
    if not isinstance(record, dict):
        return record
    record = _without_nulls(record)
    for name in {"include", "exclude"} & record.keys():
        clauses = _listed(record[name])
        record[name] = [_plain_clause(clause) for clause in clauses] if isinstance(clauses, list) else clauses
    return record


def _plain_clause(clause: Any) -> Any:
    if not isinstance(clause, dict):
        return clause
    clause = _without_nulls(clause)
    if "count" in clause:
        clause["count"] = _whole(clause["count"])
    if "position" in clause:
        position = _listed(clause["position"])
        clause["position"] = [_whole(part) for part in position] if isinstance(position, list) else position
    return clause


def _without_nulls(value: dict) -> dict:
    return {name: part for name, part in value.items() if part is not None and part == part}


def _listed(value: Any) -> Any:
    """A list that was written as text, in JSON or as Python shows it; anything else as it is."""
    if not isinstance(value, str):
        return value
    for parse in (parse_json, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def fault_of(record: Any) -> str:
    """What keeps a JSON value from being a record; empty if it is one."""
    if not isinstance(record, dict):
        return "not a JSON object"
    for key in ("tag", "prompt"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            return f'"{key}" is missing or empty'
    if not record.get("include"):
        return '"include" is missing or empty'
    for key in ("include", "exclude"):
        if not isinstance(record.get(key, []), list):
            return f'"{key}" is not a list'
    if fault := fault_of_text(record["tag"] + record["prompt"]):
        return f"it holds {fault}, which is no text"
    if odd := [key for key in map(str, record) if key not in KEYS and key.strip().lower() in KEYS]:
        return f'{odd[0]!r} must be written "{odd[0].strip().lower()}"'
    clauses = [*record["include"], *record.get("exclude", ())]
    for i, clause in enumerate(clauses):
        if fault := _clause_fault(clause, i):
            return f"{fault} in the clause {short(str(clause))}"
    return _tag_fault(record)


def _tag_fault(record: dict) -> str:
    """Thresholds go by the tag's exact spelling. Other tags than GenEval's are those of one's own benchmark."""
    tag = record["tag"]
    if tag not in TAGS:
        meant = get_close_matches(tag.strip().lower().replace(" ", "_").replace("-", "_"), TAGS, 1, ALIKE)
        return f'"tag" is {short(tag)!r}; GenEval writes {meant[0]}' if meant else ""
    if tag == "counting" and not record.get("exclude"):
        return '"exclude" is missing or empty, without which more objects than asked for would do; counting needs it'
    name, least = NEEDED.get(tag, ("", 0))
    if sum(name in clause for clause in record["include"]) < least:
        return f'{tag} needs "{name}" in {least} of the clauses of "include"'
    return ""


def _clause_fault(clause: Any, place: int) -> str:
    if not isinstance(clause, dict) or not isinstance(clause.get("class"), str):
        return '"class" is missing'
    if type(clause.get("count")) is not int or clause["count"] < 1:
        return '"count" is missing or below 1, or no whole number,'
    if unknown := [name for name in clause if name not in CLAUSE]:
        return f'"{one_line(short(str(unknown[0])))}" is none of {", ".join(CLAUSE)}'
    if not isinstance(clause.get("color", ""), str):
        return '"color" is no word'
    if "position" in clause:
        match clause["position"]:
            case [str(relation), target] if relation in RELATIONS and type(target) is int and 0 <= target < place:
                return ""
        return '"position" is not [relation, index of an earlier clause]'
    return ""
