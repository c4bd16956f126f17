"""star.common.files: what is in files of weights, and who may write."""

import errno
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from star.common.errors import RunStopped, UserError
from star.common.files import (
    HOST,
    READ_BESIDE,
    alone_in,
    append_jsonl,
    changing,
    check_output,
    check_room,
    fault,
    last_of_jsonl,
    locked,
    model_digest,
    parse_json,
    read_json,
    read_jsonl,
    replacing,
    visible,
    weights_digest,
    write_last,
    writing,
)


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


def test_a_models_digest_is_of_all_that_its_results_depend_on(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    digests = [model_digest(tmp_path)]
    for name in READ_BESIDE:
        (tmp_path / name).write_text("{}")
        digests.append(model_digest(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    digests.append(model_digest(tmp_path))
    assert len(set(digests)) == len(READ_BESIDE) + 2
    (tmp_path / "README.md").write_text("words")
    assert model_digest(tmp_path) == model_digest(tmp_path, tmp_path) == digests[-1]


def test_older_formats_count_where_there_are_no_safetensors(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"three")
    assert weights_digest(tmp_path) == hashlib.sha256(b"three").hexdigest()


def waiting(lock, path):
    """Another process that enters the same lock, seen to wait for it; it says "in" as soon as it may."""
    imports = f"from pathlib import Path; from star.common.files import {lock.__name__}"
    enter = f"{imports}\nprint('here', flush=True)\nwith {lock.__name__}(Path({str(path)!r})): print('in')"
    other = subprocess.Popen([sys.executable, "-c", enter], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "here\n"
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(0.5)
    return other


def test_nobody_else_is_in_a_locked_folder(tmp_path):
    folder = tmp_path / "results"
    with locked(folder):
        other = waiting(locked, folder)
    assert other.communicate(timeout=60)[0] == "in\n" and other.returncode == 0


@pytest.mark.parametrize("fault", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_goes_without(tmp_path, monkeypatch, fault):
    """And no marker is left in place of one, which would keep other machines from a run whose process was killed."""
    fcntl = pytest.importorskip("fcntl")

    def none(*given):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(fcntl, "flock", none)
    for enter in (alone_in, locked, lambda folder: changing(folder / "table.csv")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with enter(tmp_path / "run"), enter(tmp_path / "run"):
                assert not any(file.is_file() and file.stat().st_size for file in tmp_path.rglob("*"))


OTHERS = """
import os, sys
from pathlib import Path
from star.common.errors import UserError
from star.common.files import alone_in, changing, locked
os.setuid(12345)
for enter in (alone_in, locked, lambda folder: changing(folder / "table.csv")):
    try:
        with enter(Path(sys.argv[1])):
            print("in")
    except UserError as error:
        print(error)
"""


@pytest.fixture
def others_too():
    """A folder that other users may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize(
    ("of_folder", "of_lock", "told"),
    [(0o777, None, "in"), (0o777, 0o644, ".* cannot be locked: Permission denied; if another .*"), (0o755, 0o644, "in")],
)
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can be another user")
def test_another_users_lock_is_one(others_too, of_folder, of_lock, told):
    """Where nothing can be written it is not needed; else each is made so that the others can take it."""
    top = others_too / "shared"
    (top / "run").mkdir(parents=True)
    for folder in (top, top / "run"):
        folder.chmod(of_folder)
    with alone_in(top / "run"), locked(top / "run"), changing(top / "run" / "table.csv"):
        pass
    for lock in top.rglob(".*.lock"):
        assert lock.stat().st_mode & 0o777 == of_folder & 0o666
        if of_lock:
            lock.chmod(of_lock)
    done = subprocess.run([sys.executable, "-c", OTHERS, top / "run"], capture_output=True, text=True, check=True)
    assert [bool(re.fullmatch(told, line)) for line in done.stdout.splitlines()] == [True] * 3


def test_a_lock_that_fails_for_another_reason_is_one_line(tmp_path, monkeypatch):
    def denied(self, timeout):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", denied)
    with pytest.raises(UserError, match=r"\.running\.lock cannot be locked: Permission denied"), alone_in(tmp_path / "run"):
        pytest.fail("it went on")


def test_a_file_is_changed_by_one_at_a_time(tmp_path):
    file = tmp_path / "results" / "table.csv"
    with changing(file):
        file.write_text("mine")
        other = waiting(changing, file)
    assert other.communicate(timeout=60)[0] == "in\n" and other.returncode == 0 and file.read_text() == "mine"


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


KILLED = """
import os, sys
from pathlib import Path
from star.common.files import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_text("half")
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("alone", [alone_in, locked])
def test_what_a_kill_left_of_a_file_goes_at_the_next_opening_and_nothing_else_does(tmp_path, alone):
    (tmp_path / "run" / "final").mkdir(parents=True)
    for file in (tmp_path / "run" / "config.yaml", tmp_path / "run" / "final" / "summary.json"):
        subprocess.run([sys.executable, "-c", KILLED, file], check=False)
    mine = tmp_path / "run" / ".backup.2024"
    mine.write_text("mine")
    (left,) = (tmp_path / "run").glob(".*.part")
    elsewhere = left.with_name(left.name.replace(HOST, "elsewhere"))  # whose processes cannot be asked from here
    elsewhere.write_text("being written by another machine")
    assert len(list((tmp_path / "run").rglob(".*.part"))) == 3
    with replacing(tmp_path / "run" / "alive.txt") as part:
        part.write_text("being written")
        with alone(tmp_path / "run"):
            assert set((tmp_path / "run").rglob(".*.part")) == {part, elsewhere}
    assert mine.exists() and (tmp_path / "run" / "alive.txt").exists()


def test_a_line_that_was_cut_off_costs_no_other_line(tmp_path):
    file = tmp_path / "attempts.jsonl"
    append_jsonl(file, {"a": 1})
    with open(file, "a") as log:
        log.write('{"a": 2, "b')
    append_jsonl(file, {"a": 3})
    with open(file, "ab") as log:
        log.write(b'\xff\n[1]\n{"a": NaN}\n\n{"a": 4')
    assert read_jsonl(file) == [{"a": 1}, {"a": 3}]
    assert read_jsonl(tmp_path / "none.jsonl") == []
    assert last_of_jsonl(file, bool) == {"a": 3} and last_of_jsonl(tmp_path / "none.jsonl", bool) is None
    assert last_of_jsonl(file, lambda line: line["a"] < 3) == {"a": 1}


@pytest.mark.parametrize("size", [3, 20, 40, 10_000])
def test_the_last_line_of_a_long_file_is_found_from_its_end(tmp_path, monkeypatch, size):
    monkeypatch.setattr("star.common.files.TAIL", size)
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps({"epoch": n, "reward": 0.5}) + "\n" for n in range(300)) + '{"epoch": 300, "rew')
    assert last_of_jsonl(file, bool) == {"epoch": 299, "reward": 0.5}
    assert last_of_jsonl(file, lambda line: line["epoch"] < 10) == {"epoch": 9, "reward": 0.5}
    file.write_text("")
    assert last_of_jsonl(file, bool) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_json_file_is_as_none(tmp_path, content):
    (tmp_path / "rows.json").write_bytes(content)
    assert read_json(tmp_path / "rows.json") is None
    assert read_json(tmp_path) is None and read_json(tmp_path / "missing") is None
    (tmp_path / "rows.json").write_text(json.dumps([1, None]))
    assert read_json(tmp_path / "rows.json") == [1, None]


def test_files_are_known_by_their_digests(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    assert fault(tmp_path) == ""
    write_last(tmp_path / "b", "two", ["a"])
    assert fault(tmp_path) == "" and (tmp_path / "b").read_text() == "two"
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path).returncode == 0
    (tmp_path / "b").write_bytes(b"twp")
    changed = f"{tmp_path / 'b'} is not what was written"
    assert fault(tmp_path) == fault(tmp_path, "a", "b", "c") == changed and fault(tmp_path, "a") == ""
    (tmp_path / "below").mkdir()
    write_last(tmp_path / "below" / "c", "three", ["../b"])
    assert fault(tmp_path / "below") == ""
    write_last(tmp_path / "c", "three", [])
    assert fault(tmp_path) == changed, "digests of other files stay"
    (tmp_path / "b").unlink()
    assert fault(tmp_path) == fault(tmp_path / "below") == f"{tmp_path / 'b'} is missing"


def test_what_holds_the_digests_is_known_too(tmp_path):
    write_last(tmp_path / "a", "one", [])
    sums = (tmp_path / "SHA256SUMS").read_text()
    (tmp_path / "SHA256SUMS").write_text(f"\n{sums}\n")
    assert fault(tmp_path, "a") == ""
    for damage in ("half a line", sums[:-5] + "é", "0" * 63 + "  a"):
        (tmp_path / "SHA256SUMS").write_text(sums + damage)
        assert fault(tmp_path, "a") in (
            f"{tmp_path / 'SHA256SUMS'} is not what was written",
            f"{tmp_path / 'a'} is not what was written",
        )
    write_last(tmp_path / "b", "two", [])
    assert fault(tmp_path) == ""


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_digests_that_were_taken_away_are_missed(tmp_path, left):
    write_last(tmp_path / "a", "one", [])
    write_last(tmp_path / "b", "two", ["a"])
    write_last(tmp_path / "c", "three", [])
    sums = tmp_path / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    assert fault(tmp_path) == "" and len(lines) == 4
    for some in (lines[:left], lines[: left + 1] + lines[left + 2 :]):
        sums.write_text("".join(some))
        assert fault(tmp_path, "c") == (f"{sums} is not what was written" if len(some) < 4 else "")
    sums.write_text("".join(lines[1:]))
    assert fault(tmp_path) == "", "as older versions wrote it"
    sums.write_bytes(bytes(100))
    assert fault(tmp_path, "c") == f"{sums} is not what was written"


def test_what_gets_its_name_is_on_the_disk(tmp_path, monkeypatch):
    done: list[tuple[str, int]] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(("sync", os.fstat(number).st_size)) or sync(number))
    monkeypatch.setattr(os, "replace", lambda old, new: done.append(("name", Path(old).stat().st_size)) or replace(old, new))
    with replacing(tmp_path / "a") as part:
        part.write_bytes(b"one")
    assert done == [("sync", 3), ("name", 3)]
    append_jsonl(tmp_path / "log", {})
    assert done[2:] == [("sync", 3)]


LONG = "x" * 300


@pytest.mark.parametrize(
    "name",
    ["file", "file/below", "link", "link/below", "/proc/x", "/dev/null/x", LONG, f"new/{LONG}", "x/" * 3000, "nul\0"],
)
def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="^result files cannot go to .*; name another folder or make room there$"):
        check_room(tmp_path / name, "result files")
    assert (tmp_path / "file").read_text() == "mine"
    check_room(tmp_path / "new" / "folder", "result files")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_looking_for_room_takes_no_folder_from_a_process_that_has_just_made_it(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append([*tmp_path.iterdir()]))
    check_room(tmp_path / "new" / "folder", "result files")
    assert seen == [[]]


def test_a_disk_that_takes_only_empty_files_has_no_room(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(UserError, match="^result files cannot go to .*: File too large; .* or make room there$"):
            check_room(tmp_path, "result files")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_stops_with_its_reason(tmp_path):
    told = "cannot be written to: No space left on device; the same command goes on"
    with pytest.raises(RunStopped, match=told), writing(tmp_path), open("/dev/full", "w") as full:
        full.write("x" * 1_000_000)
