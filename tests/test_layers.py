"""The layers of the house: a folder may import only what stands below it."""

import ast
import sys
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


def imports(file: Path, when_loaded: bool = False) -> set[str]:
    """Every module that a file imports, wherever the statement stands; or only those that loading it imports."""
    found, tree = set(), ast.parse(file.read_text())
    for node in tree.body if when_loaded else ast.walk(tree):
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


# What docs/bench_gpu.md says is there or is brought as wheels, and what these require.
FEW = set(["torch", "transformers", "accelerate", "scipy", "PIL", "requests", "diffusers", "peft", "hydra", "omegaconf"])
FEW |= set(["numpy", "safetensors", "huggingface_hub", "filelock", "psutil", "rich", "yaml", "packaging"])


def test_a_gpu_is_measured_with_few_libraries():
    files = {".".join(file.with_suffix("").parts).removesuffix(".__init__"): ROOT / file for file in FILES}
    waiting = [name for name in files if name.startswith(("star.bench.gpu", "star.training.trainer", "star.tasks"))]
    loaded, others = set(waiting), {}
    while waiting:
        name = waiting.pop()
        for module in imports(files[name], when_loaded=True):
            if module in files:
                waiting += {module} - loaded
                loaded.add(module)
            elif room_of(module) is None and (library := module.split(".")[0]) not in sys.stdlib_module_names | {"star"}:
                others.setdefault(library, name)
    assert "evaluators.ocr.reward" in loaded and {"torch", "diffusers"} <= set(others)
    assert not {library: name for library, name in others.items() if library not in FEW}
