"""The layers of the house: a folder may import only what stands below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top down. Those in one line stand side by side, and none knows another.
LAYERS = (
    ("star.__main__",),
    ("star.cli",),
    ("star.reproduce", "star.calibrate", "star.demo"),
    ("star.report", "star.matrix", "star.doctor", "star.mini"),
    ("star.bench",),
    ("star.training",),
    ("star.tasks",),
    ("star.models",),
    ("star.records",),
    ("star.config",),
    ("baselines",),
    ("star.method",),
    ("evaluators",),
    ("star.common",),
)
ROOMS = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}


def room_of(module: str) -> str | None:
    """The folder that a module lies in; None for those of others, and for the bare package."""
    return next((room for room in ROOMS if module == room or module.startswith(room + ".")), None)


def imports(file: Path) -> set[str]:
    """Every module that a file imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative imports hide where they go"
            # "from star import config" imports star.config.
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


FILES = sorted(
    file.relative_to(ROOT) for package in ("star", "evaluators", "baselines") for file in (ROOT / package).rglob("*.py")
)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_down(file):
    own = room_of(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
    if own is None:
        assert file == Path("star/__init__.py"), f"{file} lies in no layer"
        return
    for module in imports(ROOT / file):
        room = room_of(module)
        if room and room != own:
            assert ROOMS[room] > ROOMS[own], f"{file} imports {module}, which does not stand below {own}"


def test_the_test_sees_an_upward_import(tmp_path):
    (tmp_path / "low.py").write_text("def late():\n    from star import training\n    from star.report.blocks import Page\n")
    assert {"star.training", "star.report.blocks"} <= imports(tmp_path / "low.py")
    assert room_of("star.training") == "star.training" and ROOMS["star.training"] < ROOMS["star.common"]
