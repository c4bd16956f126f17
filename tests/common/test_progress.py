import errno
import io
import sys

import pytest

from star.common import progress
from star.common.console import log, note, tell
from star.common.progress import bar, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr("rich.console.monotonic", lambda: now[0])
    return now


def test_track_gives_the_items_and_counts_them(capsys):
    assert list(track(range(3), "counting")) == [0, 1, 2]
    assert list(track(iter("ab"), "letters")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")  # nothing lasted long enough for a line


def test_a_log_gets_a_plain_line_soon_and_every_half_minute(capsys, clock):
    with bar("train", total=12) as progress_bar:
        for step in range(12):
            clock[0] += 10.0
            progress_bar.advance()
            if step == 6:
                progress_bar.update("train, reward 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["train: 1/12", "train: 4/12", "train: 7/12", "train"]
    assert lines[3].startswith("train, reward 0.5: 10/12, 0:01:40 elapsed, 0:00:20 left")
    assert not any("\x1b" in line for line in lines)


def test_a_forced_colour_does_not_bring_the_bar_into_a_log(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    list(track(range(3), "counting"))
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_the_bar_on_standard_error(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with bar("epochs [star]", total=2) as outer:
        for _ in range(2):
            list(track(range(5), "images"))
            outer.advance()
    last = terminal.getvalue().splitlines()[-2:]
    assert any("epochs [star]" in line and "2/2" in line for line in last)
    assert not any("images" in line for line in last)  # the inner bars are gone


@pytest.mark.parametrize(
    ("seconds", "told"), [(3723.4, "1:02:03"), (float("inf"), "?"), (float("nan"), "?"), (1e15, "?"), (1e300, "?")]
)
def test_a_time_that_is_none_is_a_question_mark(seconds, told):
    assert progress.clock(seconds) == told


def test_a_bar_after_a_failure_starts_afresh(capsys):
    with pytest.raises(RuntimeError), bar("first", total=1):
        raise RuntimeError
    assert progress._display is None


def test_a_line_that_a_full_disk_does_not_take_is_lost(monkeypatch):
    class Full:
        error = errno.ENOSPC

        def write(self, text):
            raise OSError(self.error, "full")

        def flush(self):
            """Nothing is held back."""

    monkeypatch.setattr("sys.stderr", Full())
    for line in (tell, note, log):
        line("on its way")
    Full.error = errno.EPIPE
    with pytest.raises(BrokenPipeError):
        log("nobody reads it")
