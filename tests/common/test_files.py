"""star.common.files: what is in files of weights, and who may write."""

import hashlib
import subprocess
import sys

import pytest

from star.common.files import locked, weights_digest


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
