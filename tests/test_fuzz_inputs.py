"""Whatever stands in a file that is given as an input: it is used or refused in a line, and stays what it is."""

import io
import json
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluators.folder import score_folder
from evaluators.geneval.evaluate import engine_for
from evaluators.geneval.records import read_record
from evaluators.images import read_image
from star.common.errors import UserError
from star.records.diff import diff, to_json
from star.records.folder import AS_TEXT, CURVES, IMAGES, TYPED, read_file
from star.records.results import COLUMNS, Row, write

FUZZ = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["a.png", "prompt", 'say "hi"', "../x.png", "=1", "nan", "1e999", "-1", "\ud800", "x" * 5000, "[", "½"]),
    st.integers().map(str),
    st.floats().map(str),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), CELLS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(CELLS, inner, max_size=3)),
    max_leaves=6,
)


def used_or_refused(file, data, use):
    """Runs ``use`` on a file of these bytes: what it gives, or None where it refuses in a line."""
    file.write_bytes(data)
    found = None
    try:
        found = use(file)
    except UserError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 2000
    assert file.read_bytes() == data
    return found


def damaged(data):
    """Copies of some bytes with a few of them changed, cut out or put in."""
    places = st.integers(0, len(data))
    edit = st.tuples(places, st.integers(0, 8), st.binary(max_size=8))

    def edited(edits):
        changed = bytearray(data)
        for place, length, new in edits:
            changed[place : place + length] = new
        return bytes(changed)

    return st.one_of(st.lists(edit, min_size=1, max_size=4).map(edited), places.map(lambda end: data[:end]))


@cache
def picture(kind):
    noise = np.random.default_rng(0).integers(0, 255, (6, 5, 3), dtype=np.uint8)
    image, buffer = Image.fromarray(noise), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    {"palette": image.convert("P"), "gray": image.convert("L"), "alpha": image.convert("RGBA")}.get(kind, image).save(
        buffer, {"palette": "PNG", "gray": "PNG", "alpha": "PNG"}.get(kind, kind), exif=exif
    )
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "palette", "gray", "alpha", "JPEG", "WEBP", "BMP"])
def test_images(tmp_path, kind):
    @FUZZ
    @given(damaged(picture(kind)))
    def fuzz(data):
        pixels = used_or_refused(tmp_path / "a.png", data, read_image)
        assert pixels is None or (pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3)

    fuzz()


def table(suffix):
    """Tables of prompts, nearly right."""
    if suffix == ".jsonl":
        row = st.dictionaries(st.one_of(st.sampled_from(["file", "prompt"]), CELLS), st.one_of(st.just("a.png"), VALUES))
        return st.lists(st.one_of(row, VALUES), max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)))
    separator = "\t" if suffix == ".tsv" else ","
    cells = st.lists(st.one_of(st.just("a.png"), CELLS), max_size=3).map(separator.join)
    header = st.sampled_from([f"file{separator}prompt", f"prompt{separator}file{separator}note", "file"])
    return st.tuples(header, st.lists(cells, max_size=4)).map(lambda parts: "\n".join([parts[0], *parts[1]]))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt"])
def test_tables_of_prompts(tmp_path, suffix):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "images/a.png")
    image = (tmp_path / "images/a.png").read_bytes()

    def judge(prompts, images):
        return [{"length": len(prompt)} for prompt in prompts]

    def use(file):
        return score_folder(tmp_path / "images", file, judge, "v", tmp_path / "out.csv")

    @FUZZ
    @given(st.one_of(table(suffix).map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60)))
    def fuzz(data):
        rows = used_or_refused(tmp_path / f"p{suffix}", data, use)
        if rows is not None:  # what was scored is what the file says, word by word
            assert all(row["file"] == "a.png" and row["length"] == len(row["prompt"]) for row in rows.to_dict("records"))
            if suffix != ".jsonl":
                said = data.decode("utf-8-sig").replace('""', '"').replace("\r\n", "\n").replace("\r", "\n")
                assert all(prompt.replace('""', '"') in said for prompt in rows["prompt"])
        assert (tmp_path / "images/a.png").read_bytes() == image

    fuzz()


def test_records(tmp_path):
    clause = st.dictionaries(st.sampled_from(["class", "count", "color", "position", "x"]), VALUES, max_size=4)
    clauses = st.one_of(VALUES, st.lists(clause, max_size=3), st.lists(clause, max_size=2).map(str))
    record = st.fixed_dictionaries({"tag": CELLS, "prompt": CELLS, "include": clauses}, optional={"exclude": clauses})
    text = st.one_of(record, VALUES).map(json.dumps).map(str.encode)

    @FUZZ
    @given(st.one_of(text, text.flatmap(damaged)))
    def fuzz(data):
        found = used_or_refused(tmp_path / "metadata.jsonl", data, read_record)
        assert found is None or engine_for([found]) in ("mini", "mask2former")

    fuzz()


ROW = Row("ocr", "ocr_accuracy", "ocr-v1/rapidocr/mini", "star", 0, 0.5, 0.01, 8, 4, 2, 8, 1.5, "abc", "def")


def test_result_files(tmp_path):
    write([ROW, Row(**vars(ROW) | {"seed": 1, "value": 0.25})], tmp_path / "whole.csv")
    whole = (tmp_path / "whole.csv").read_bytes()
    cells = st.tuples(st.sampled_from(COLUMNS), CELLS).map(lambda change: pd.DataFrame([vars(ROW) | dict([change])]))
    texts = cells.map(lambda frame: frame.to_csv(index=False).encode("utf-8", "surrogatepass"))

    @FUZZ
    @given(st.one_of(texts, damaged(whole)))
    def fuzz(data):
        used_or_refused(tmp_path / "ocr.csv", data, lambda file: to_json(diff(file)))

    fuzz()


@pytest.mark.parametrize(("name", "options"), [(CURVES, TYPED), (CURVES, AS_TEXT), (IMAGES, TYPED)])
def test_files_beside_them(tmp_path, name, options):
    columns = {"task": "ocr", "method": "star", "seed": 0, "config_hash": "def", "epoch": 1, "updates": 2, "images_seen": 8}
    columns |= {"seconds": 1.5, "reward": 0.5, "stratum": "all", "prompt": "None", "image": 0}
    pd.DataFrame([columns, columns | {"epoch": 2}]).to_csv(tmp_path / name, index=False)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / "again").mkdir()

    @FUZZ
    @given(damaged(whole))
    def fuzz(data):
        used_or_refused(tmp_path / "again" / name, data, lambda file: read_file(file, **options))

    fuzz()
