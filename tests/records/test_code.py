"""Which commit the code is at, as results say."""

import subprocess

import pytest

from star.records import code
from star.records.code import commit


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with one commit that stands for this project's own."""

    def git(*arguments):
        identity = [
            "-c",
            "core.hooksPath=/dev/null",
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "-c",
            "commit.gpgsign=false",
        ]
        done = subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)
        return done.stdout.decode().strip()

    for folder in code.PACKAGES:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "module.py").write_text("x = 1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--no-verify", "-m", "one")
    monkeypatch.setattr(code, "ROOT", tmp_path.resolve())
    return tmp_path, git


def test_commit_of_a_clean_and_of_a_changed_checkout(checkout):
    folder, git = checkout
    head = git("rev-parse", "HEAD")
    assert commit() == head[:10]
    (folder / "results").mkdir()
    (folder / "results" / "geneval.csv").write_text("")
    assert commit() == head[:10]  # results are not what made the results
    (folder / "star" / "new.py").write_text("")
    assert commit() == head[:10] + "+dirty"


def test_commit_is_unknown_where_git_cannot_say_what_has_changed(checkout):
    folder, _ = checkout
    (folder / ".git" / "index").write_bytes(b"damaged")
    assert commit() == "unknown"


def test_commit_of_code_that_is_no_checkout_is_unknown(checkout, monkeypatch):
    folder, _ = checkout
    monkeypatch.setattr(code, "ROOT", folder / "star")  # installed below somebody else's repository
    assert commit() == "unknown"
    monkeypatch.setattr(code, "ROOT", folder / "nowhere")
    assert commit() == "unknown"
