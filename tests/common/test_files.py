"""star.common.files: what is in files of weights, and who may write."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from star.common.errors import UserError
from star.common.files import check_output, locked, parse_json, visible, weights_digest


def test_a_digest_is_of_all_weights_in_the_order_of_their_paths_and_of_nothing_else(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "a.safetensors").write_bytes(b"one")
    alone = weights_digest(tmp_path)
    assert alone == hashlib.sha256(b"one").hexdigest()
    (tmp_path / "vae" / "b.safetensors").write_bytes(b"two")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.bin").write_bytes(b"three")
    assert weights_digest(tmp_path) == hashlib.sha256(b"onetwo").hexdigest() != alone
    assert weights_digest(tmp_path / "vae") == hashlib.sha256(b"two").hexdigest()


def test_older_formats_count_where_there_are_no_safetensors(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"three")
    assert weights_digest(tmp_path) == hashlib.sha256(b"three").hexdigest()


def test_nobody_else_is_in_a_locked_folder(tmp_path):
    folder = tmp_path / "results"
    imports = "from pathlib import Path; from star.common.files import locked"
    enter = f"{imports}\nwith locked(Path({str(folder)!r})): print('in', flush=True)"
    with locked(folder):
        other = subprocess.Popen([sys.executable, "-c", enter], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(3)
    assert other.communicate(timeout=60)[0] == "in\n" and other.returncode == 0


@pytest.mark.parametrize("out", ["in.csv", "./in.csv", "sub/../in.csv", "hard.csv", "soft.csv", "sub", "."])
def test_no_output_lands_on_an_input_by_whatever_name(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("in.csv", "sub/in.csv"):
        (tmp_path / name).write_text("mine")
    os.link("in.csv", "hard.csv")
    os.symlink("in.csv", "soft.csv")
    with pytest.raises(UserError, match="is an input of this command .* would be overwritten"):
        check_output(Path(out), [Path("missing.csv"), Path("sub/in.csv"), Path("in.csv")])
    check_output(Path("new.csv"), [Path("missing.csv"), Path("in.csv")])


def test_what_macos_leaves_on_foreign_disks_is_not_seen(tmp_path):
    for name in ("b.safetensors", "a.safetensors", "._a.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    assert [file.name for file in visible(tmp_path.iterdir())] == ["a.safetensors", "b.safetensors"]
    assert weights_digest(tmp_path) == hashlib.sha256(b"a.safetensorsb.safetensors").hexdigest()


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]', "1" * 5000])
def test_json_that_is_none_or_says_a_thing_twice_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json('{"a": {"a": [1, null]}}') == {"a": {"a": [1, None]}}
