"""What the processes of a run tell each other."""

from types import SimpleNamespace

import pytest

from star.common import processes
from star.common.errors import RunStopped


def test_processes_that_read_other_things_do_not_go_on(monkeypatch):
    processes.check_agreed(3, "checkpoint")  # alone one agrees
    monkeypatch.setattr(processes, "PartialState", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(processes, "gather_object", lambda values: values + values)
    processes.check_agreed((3, "abc"), "checkpoint")
    monkeypatch.setattr(processes, "gather_object", lambda values: [*values, (2, "def")])
    with pytest.raises(
        RunStopped, match=r"do not see the same checkpoint \(process 0: \(3, 'abc'\), process 1: \(2, 'def'\)\)"
    ):
        processes.check_agreed((3, "abc"), "checkpoint")
