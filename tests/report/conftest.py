"""Reports of made-up results: those of this repository do not stand beside them."""

import pytest


@pytest.fixture(scope="package", autouse=True)
def nothing_ships(tmp_path_factory):
    """A checkout without results, for as long as these tests take."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "results").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("star.records.folder.ROOT", root)
        yield
