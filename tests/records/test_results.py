import hashlib
from dataclasses import replace

import numpy as np
import pytest

from star.common.errors import UserError
from star.config import config_hash
from star.records import results
from star.records.results import COLUMNS, Row, read, read_paper, upsert, write

ROW = Row(
    task="geneval",
    metric="geneval_official_macro",
    protocol="geneval-v1/mini-detector/mini",
    method="star",
    seed=0,
    value=0.5123456789,
    stderr=0.02,
    images=768,
    prompts=192,
    updates=90,
    images_seen=17280,
    seconds=312.345,
    commit="0123456789+dirty",
    config_hash="abcdef012345",
)
HEADER = ",".join(COLUMNS)
LINE = "geneval,geneval_official_macro,geneval-v1/mini-detector/mini,star,0,0.512346,0.020000,768,192,90,17280,312.3,"


def test_file_is_exactly_this(tmp_path):
    path = tmp_path / "new" / "geneval.csv"
    write([replace(ROW, seed=1, stderr=None), replace(ROW, machine="AMD EPYC, AVX2, 1 thread")], path)
    end = "0123456789+dirty,abcdef012345,"
    other = LINE.replace("star,0", "star,1").replace("0.020000", "")
    expected = f'{HEADER}\n{LINE}{end}"AMD EPYC, AVX2, 1 thread"\n{other}{end}\n'
    assert path.read_bytes().decode() == expected
    assert list(path.parent.iterdir()) == [path]  # no draft left behind


def test_a_file_from_before_machines_were_recorded_is_read_and_gets_the_column(tmp_path):
    path = tmp_path / "old.csv"
    lines = [line.rpartition(",")[0] for line in (HEADER, LINE + "0123456789,abcdef012345,")]
    path.write_text("\n".join(lines) + "\n")
    old = read(path)
    assert [row.machine for row in old] == [""]
    upsert(path, [replace(ROW, seed=1, machine="H100")])
    assert [(row.seed, row.machine) for row in read(path)] == [(0, ""), (1, "H100")]
    path.write_text("\n".join([lines[0], LINE + "0123456789,abcdef012345,H100"]) + "\n")
    with pytest.raises(UserError, match="15 cells; the header has 14 columns"):
        read(path)


def test_round_trip_and_order_do_not_depend_on_the_order_of_writing(tmp_path):
    rows = [
        replace(ROW, task=task, protocol=protocol, method=method, seed=seed, value=0.25, seconds=1.5)
        for task in ("ocr", "geneval")
        for method, protocol in (("star", "v1"), ("base", "v1, with a comma"))
        for seed in (10, 2)
    ]
    write(rows, tmp_path / "a.csv")
    write(rows[::-1], tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert read(tmp_path / "a.csv") == sorted(rows, key=lambda row: row.key)
    assert [row.seed for row in read(tmp_path / "a.csv")[:2]] == [2, 10]


def test_upsert_replaces_the_same_key_and_keeps_the_rest(tmp_path):
    path = tmp_path / "r.csv"
    upsert(path, [ROW, replace(ROW, seed=1)])
    upsert(path, [replace(ROW, value=0.75), replace(ROW, method="base")])
    assert [(row.method, row.seed, row.value) for row in read(path)] == [
        ("base", 0, 0.512346),
        ("star", 0, 0.75),
        ("star", 1, 0.512346),
    ]


def test_the_largest_seed_that_training_takes_is_written(tmp_path):
    write([replace(ROW, seed=2**63 - 1)], tmp_path / "r.csv")
    assert [row.seed for row in read(tmp_path / "r.csv")] == [2**63 - 1]


def test_numpy_scalars_are_written_like_numbers(tmp_path):
    write([replace(ROW, value=np.float32(0.25), seed=np.int64(3))], tmp_path / "r.csv")
    (row,) = read(tmp_path / "r.csv")
    assert (row.value, row.seed) == (0.25, 3)


@pytest.mark.parametrize(
    "wrong",
    [{"value": float("nan")}, {"value": 97.6}, {"stderr": -0.1}, {"seed": -1}, {"method": ""}, {"task": "two\nlines"}]
    + [{"seed": 2**63}, {"protocol": "=v1"}, {"protocol": "mine-\ud800"}, {"protocol": "mine\0"}],
)
def test_what_could_not_be_read_is_not_written(tmp_path, wrong):
    path = tmp_path / "r.csv"
    write([ROW], path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"r\.csv: the new row .*column {next(iter(wrong))}: "):
        write([replace(ROW, **wrong)], path)
    with pytest.raises(ValueError, match="two rows"):
        write([ROW, ROW], path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "column, text, allowed",
    [
        ("value", "high", "a number from 0 to 1"),
        ("value", "nan", "a number from 0 to 1"),
        ("value", "", "a number from 0 to 1"),
        *(
            ("value", text, "a number from 0 to 1, since geneval_official_macro is a rate")
            for text in ("97.6", "-0.9", "0_9.7")
        ),
        *(("seconds", text, "a number, 0 or more") for text in ("1_0", " 1", "inf", "٣", "1e")),
        ("stderr", "-1", "0 or more, or nothing"),
        ("seed", "1.5", "a whole number, 0 or more"),
        ("seed", "-1", "a whole number, 0 or more"),
        ("images", "", "a whole number, 0 or more"),
        ("method", "", "a method's name, like star, flow_grpo@released or star+fast:ocr"),
        ("method", "star:", "a method's name"),
        ("task", "", "a word, not empty"),
        *((column, f"{sign}1+1", "begins with none of = + - @") for column in ("task", "protocol") for sign in "=+-@"),
        ("method", "-1", "a method's name"),
        ("seconds", "1e300", "a number, 0 or more"),
        ("seed", "9" * 19, "a whole number, 0 or more"),
    ],
)
def test_bad_cell_names_file_line_column_and_what_is_allowed(tmp_path, column, text, allowed):
    path = tmp_path / "bad.csv"
    write([ROW, replace(ROW, seed=1)], path)
    lines = path.read_text().splitlines()
    cells = lines[2].split(",")
    cells[COLUMNS.index(column)] = text
    path.write_text("\n".join([*lines[:2], ",".join(cells)]))
    with pytest.raises(UserError) as error:
        read(path)
    message = str(error.value)
    assert f"{path} line 3, column {column}: {text!r}" in message and allowed in message and "\n" not in message


@pytest.mark.parametrize(
    "content, message",
    [
        ("", r"line 1: the columns are \(none\); allowed: task,metric"),
        ("task,value\n", "line 1: the columns are task,value; allowed: task,metric"),
        (f"{HEADER}\na,b\n", "line 2: 2 cells; the header has 15 columns"),
        (f"{HEADER}\n{LINE}c,h,\n{LINE}c,h,\n", "line 3: a second row for geneval, geneval_official_macro,"),
        ("\xff\x00", "line 1"),
        (f"{HEADER}\n{LINE}c,{'h' * 140_000}\n", "line 2: no line of a CSV file: field larger than field limit"),
        (f'{HEADER}\n{LINE}c,"h\n', "line 2: no line of a CSV file: unexpected end of data"),
    ],
)
def test_bad_file(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_copy_beside_a_file_is_told_and_not_taken_for_more_seeds(tmp_path):
    write([ROW, replace(ROW, seed=1)], tmp_path / "geneval.csv")
    write([replace(ROW, seed=2), replace(ROW, seed=1, value=0.111111)], tmp_path / "geneval_old.csv")
    with pytest.raises(UserError) as error:
        results.read_together([tmp_path / "geneval.csv", tmp_path / "geneval_old.csv"])
    row = "geneval, geneval_official_macro, geneval-v1/mini-detector/mini, star, 1"
    assert f"{tmp_path / 'geneval.csv'} and {tmp_path / 'geneval_old.csv'} both have a row for {row}; " in str(error.value)
    write([replace(ROW, seed=2)], tmp_path / "geneval_old.csv")
    assert [row.seed for row in results.read_together([tmp_path / "geneval.csv", tmp_path / "geneval_old.csv"])] == [0, 1, 2]


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        read(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "binary.csv")


def test_spreadsheet_output_is_read(tmp_path):
    path = tmp_path / "excel.csv"
    write([ROW], path)
    rows = read(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read(path) == rows


def test_paper_reader_checks_its_own_schema(tmp_path):
    path = tmp_path / "paper.csv"
    header = "task,metric,protocol,method,value,images,prompts,updates,images_seen,source,note\n"
    path.write_text(header + 'ocr,ocr_accuracy,"OCR, 512 px",star,0.970,,,900,,STAR,\n')
    (row,) = read_paper(path)
    assert results.is_paper(path)
    path.write_text('"' + header.strip().replace(",", '","') + '"\n')
    assert results.is_paper(path) and read_paper(path) == []
    path.write_text(header + "ocr,ocr_accuracy,OCR,star,97.0,,,,,STAR,\n")
    with pytest.raises(UserError, match="column value: '97.0' is not allowed; allowed: a number from 0 to 1"):
        read_paper(path)
    assert str(row.value) == "0.970" and row.rounding == pytest.approx(0.0005) and row.images is None and row.updates == 900
    path.write_text(header + "ocr,ocr_accuracy,OCR,star,about 1,,,,,STAR,\n")
    with pytest.raises(UserError, match="line 2, column value: 'about 1'"):
        read_paper(path)
    path.write_text(header + "ocr,ocr_accuracy,OCR,star,1,,,,,,\n")
    with pytest.raises(UserError, match="column source"):
        read_paper(path)


def test_config_hash_is_the_sha256_of_sorted_json():
    text = '{"a":[1,2],"b":{"c":true,"d":"x"}}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert config_hash({"b": {"d": "x", "c": True}, "a": (1, 2)}) == expected
    assert config_hash({"b": {"d": "x", "c": True}, "a": [2, 1]}) != expected
    with pytest.raises(ValueError, match="plain data"):
        config_hash({"a": object()})
    with pytest.raises(ValueError):
        config_hash({"a": float("nan")})


def test_a_result_file_is_known_as_one_in_every_form_that_is_read(tmp_path):
    """As a spreadsheet saves it, and from before rows said which machine made them."""
    file = tmp_path / "rings.csv"
    write([ROW], file)
    text = file.read_text()
    older = "\n".join(line.rpartition(",")[0] for line in text.splitlines()) + "\n"
    quoted = "\n".join(f'"{line.replace(",", chr(34) + "," + chr(34))}"' for line in text.splitlines()) + "\n"
    for content in (text.encode(), quoted.encode(), b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), older.encode()):
        file.write_bytes(content)
        assert results.is_of_rows(file) and [row.value for row in read(file)] == [pytest.approx(ROW.value, abs=1e-6)]
    file.write_text("task,arm\n")
    assert not results.is_of_rows(file)
