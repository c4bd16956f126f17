"""A matrix that looks after its runs more often, so that tests wait less for it."""

import pytest


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    from star.matrix import commands, launchers

    for module in (commands, launchers):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
