"""The files beside the result files: read as they were written, or told in a line what is wrong with them."""

import gzip

import pandas as pd
import pytest

from star.common.errors import UserError
from star.records.folder import (
    AS_TEXT,
    COMMANDS,
    CURVES,
    FIRST,
    FIRST_UPDATES,
    GRADIENT,
    IMAGES,
    INFLUENCE,
    LASTING,
    MAY_BE_EMPTY,
    NEEDED,
    NUMBERS,
    TYPED,
    read_file,
)

CELLS = {"seed": "0", "epoch": "1", "updates": "2", "images_seen": "8", "seconds": "1.5", "reward": "0.5", "image": "0"}
CELLS |= {"epochs": "12", "prompts": "24", "images": "64", "value": "0.25", "stderr": "0.125", "lr": "1e-3"}
HOW = pytest.mark.parametrize("options", [AS_TEXT, TYPED], ids=["as text", "typed"])


def write(folder, name, **changes):
    columns = dict.fromkeys([*FIRST.get(name, []), *NEEDED[name]])
    cells = {column: CELLS.get(column, column) for column in columns} | changes
    pd.DataFrame([{name: cell for name, cell in cells.items() if cell is not None}]).to_csv(folder / name, index=False)
    return folder / name


@HOW
@pytest.mark.parametrize(("name", "column"), [(name, column) for name, columns in NEEDED.items() for column in columns])
def test_a_column_or_cell_that_lacks_is_named(tmp_path, options, name, column):
    read_file(write(tmp_path, name), **options)
    faults = [(None, f"has no column {column}"), ("", f"row 1: {column} is (empty|no number)")]
    makers = {GRADIENT: "bench gradient", INFLUENCE: "bench influence", FIRST_UPDATES: "bench first_updates"}
    makers |= {LASTING: "bench first_updates epochs=30 out=FILE"}
    maker = makers.get(name, "matrix")
    for change, message in faults[:1] if column in MAY_BE_EMPTY else faults:
        with pytest.raises(UserError, match=rf"{name}.*{message}; move it elsewhere, and `star {maker}`") as error:
            read_file(write(tmp_path, name, **{column: change}), **options)
        assert "\n" not in str(error.value)


NUMBERS_OF = {
    IMAGES: ("seed", "reward"),
    COMMANDS: ("seed",),
    CURVES: ("epoch", "reward", "diversity"),
    GRADIENT: ("value", "stderr"),
    INFLUENCE: ("value", "stderr", "prompts"),
    FIRST_UPDATES: ("epoch", "updates", "lr", "reward"),
    LASTING: ("epoch", "updates", "lr", "reward"),
}


@HOW
@pytest.mark.parametrize(("name", "column"), [(name, column) for name, columns in NUMBERS_OF.items() for column in columns])
@pytest.mark.parametrize("cell", ["many", "nan", "inf", "1e999"])
def test_what_must_be_a_number_is_one(tmp_path, options, name, column, cell):
    with pytest.raises(UserError, match=f"row 1: {column} is no number"):
        read_file(write(tmp_path, name, **{column: cell}), **options)


@HOW
@pytest.mark.parametrize("column", sorted({*NUMBERS, "stderr"} - {*NEEDED[IMAGES], "reward"}))
@pytest.mark.parametrize("cell", ["red", ""])
def test_what_else_a_verdict_says_may_be_text_whatever_its_name(tmp_path, options, column, cell):
    read_file(write(tmp_path, IMAGES, **{column: cell}), **options)


@HOW
@pytest.mark.parametrize(("name", "column"), [(IMAGES, "stratum"), (COMMANDS, "command")])
def test_what_may_be_empty_is_an_empty_text(tmp_path, options, name, column):
    assert read_file(write(tmp_path, name, **{column: ""}), **options)[column].tolist() == [""]


@HOW
def test_terms_came_later(tmp_path, options):
    assert len(read_file(write(tmp_path, COMMANDS, terms=None), **options)) == 1


@pytest.mark.parametrize("prompt", ["None", "NA", "null", "nan", "007", "1e5"])
def test_prompts_are_text_whatever_they_look_like(tmp_path, prompt):
    for options in (AS_TEXT, TYPED):
        assert read_file(write(tmp_path, IMAGES, prompt=prompt, config_hash="1e5"), **options)["prompt"].tolist() == [prompt]


@pytest.mark.parametrize("name", [GRADIENT, INFLUENCE, FIRST_UPDATES, LASTING])
@pytest.mark.parametrize("commit", ["41972e6739", "0123456789", "1e5"])
def test_commits_are_text_whatever_they_look_like(tmp_path, name, commit):
    for options in (AS_TEXT, TYPED):
        assert read_file(write(tmp_path, name, commit=commit), **options)["commit"].tolist() == [commit]


@HOW
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (CURVES, lambda data: b""),
        (CURVES, lambda data: b"\xff\xfe\x00\x01"),
        (CURVES, lambda data: data + data.split(b"\n")[1] + b",more,cells\n"),
        (CURVES, lambda data: data[:-20] + b'"'),
        (IMAGES, lambda data: data[: len(data) // 2]),
        (IMAGES, lambda data: data[:-12] + b"\xff\xff\xff" + data[-9:]),
        (IMAGES, lambda data: gzip.decompress(data)),
        (IMAGES, lambda data: b""),
    ],
)
def test_damaged_files_are_one_clear_line(tmp_path, options, name, damage):
    file = write(tmp_path, name)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=f"{name}") as error:
        read_file(file, **options)
    assert "\n" not in str(error.value)


@HOW
@pytest.mark.parametrize(
    ("name", "what"),
    [
        *((CURVES, "an epoch"), (COMMANDS, "a run"), (GRADIENT, "a figure")),
        *((INFLUENCE, "a figure"), (FIRST_UPDATES, "an epoch"), (LASTING, "an epoch")),
    ],
)
def test_a_line_stands_once(tmp_path, options, name, what):
    file = write(tmp_path, name)
    file.write_text(file.read_text() + file.read_text().splitlines()[1] + "\n")
    with pytest.raises(UserError, match=f"row [23]: {what} that another row has too"):
        read_file(file, **options)


@HOW
def test_no_column_of_a_gradient_is_missing(tmp_path, options):
    file = write(tmp_path, GRADIENT)
    pd.read_csv(file).drop(columns="stderr").to_csv(file, index=False)
    with pytest.raises(UserError, match="gradient.csv has no column stderr"):
        read_file(file, **options)


@HOW
@pytest.mark.parametrize(("name", "column"), [(GRADIENT, "epochs"), (CURVES, "images_seen"), (FIRST_UPDATES, "seed")])
def test_what_counts_is_a_whole_number(tmp_path, options, name, column):
    for cell in ("2.0", "2.5", "-1", "1e3"):
        with pytest.raises(UserError, match=rf"{name}, row 1: {column} is .*, no whole number; put one in, or"):
            read_file(write(tmp_path, name, **{column: cell}), **options)


@HOW
def test_a_file_without_rows_is_empty(tmp_path, options):
    for name in (CURVES, IMAGES, COMMANDS, GRADIENT):
        file = write(tmp_path, name)
        pd.read_csv(file)[:0].to_csv(file, index=False)
        assert read_file(file, **options).empty
