"""What the documents say of the code is so: tables, links, paths and commands."""

import re
from pathlib import Path

import pytest
import typer

from star.cli import app
from star.common.errors import UserError
from star.config import load, options
from star.matrix import launchers
from star.method.arms import ARMS, RATIOS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "star" / "weights").rglob("*.md"),
        ROOT / "baselines/README.md",
    ]
)


def test_the_readme_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_method_table_is_the_table_of_arms():
    own = [arm for arm in ARMS.values() if not arm.neighbour]
    rows = [f"| `{arm.name}` | {RATIOS[arm.ratio]} | {arm.weights} | {arm.question} |" for arm in own]
    assert "\n".join(rows) in (ROOT / "README.md").read_text()
    names = re.findall(r"^\| `(\w+)` \| (per [\w, ]+) \|", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted((arm.name, RATIOS[arm.ratio]) for arm in own)


def test_baselines_have_their_rows_in_their_folder():
    text = (ROOT / "baselines" / "README.md").read_text()
    ours = ("spatial", "temporal", "star")  # what is compared with them
    rows = re.findall(r"^\| `(\w+)` \| (per [\w, ]+) \|", text, re.MULTILINE)
    assert rows == [(arm.name, RATIOS[arm.ratio]) for arm in ARMS.values() if not arm.neighbour and arm.name not in ours]


def test_every_neighbour_has_its_row_on_a_page_of_its_kind():
    pages = {page: page.read_text() for page in (ROOT / "docs" / "neighbours").glob("*.md")}
    assert all(len(text.splitlines()) <= 60 and "Command" in text for text in pages.values())
    for arm in ARMS.values():
        row = f"| `{arm.name}` | {RATIOS[arm.ratio]} | {arm.weights} | {arm.question} |"
        assert sum(row in text for text in pages.values()) == arm.neighbour, row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith(("http", "mailto:")) or (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_are_there(page):
    if page.name in ("CHANGELOG.md", "extending.md"):
        return  # they name what was, and what one would add
    paths = re.findall(
        r"`((?:star|evaluators|baselines|tests|results|docs)/[\w./-]+\.(?:py|md|csv|yaml|toml))`", page.read_text()
    )
    for path in paths:
        assert (ROOT / path).exists() or path.startswith("results/paper/"), f"{page}: {path}"


def test_the_tree_of_the_readme_is_the_tree():
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2]
    named = set(re.findall(r"^    ((?:star/)?\w+/)(?![\w.])", tree, re.MULTILINE))
    folders = {f"star/{path.name}/" for path in (ROOT / "star").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders | {"evaluators/", "baselines/", "results/", "docs/"} == named


def test_every_command_is_in_the_documents():
    command = typer.main.get_command(app)
    names = [
        f"star {name} {inner}" if inner else f"star {name}"
        for name, found in command.commands.items()
        for inner in getattr(found, "commands", {"": None})
    ]
    text = (ROOT / "docs" / "README.md").read_text()
    assert len(names) > 10 and all(name in text for name in names)


COMMAND = re.compile(
    r"(?:^|`|-m |&& )star (train|base|matrix|reproduce|doctor|publish|demo|bench \w+)((?: [^`#|;&\n]*)?)", re.M
)
OWN = ("arms=", "epochs=", "prompts=", "only=", "budget=", "out=", "dry_run=")
"""Words of measurements that are no settings."""

PLACEHOLDER = re.compile(r"[A-Z]{2,}|=[A-Z]\b|\.\.\.|<")


def commands():
    """(page, command, its words) of every command with settings that the pages give in full."""
    for page in [*PAGES, *(ROOT / "results").glob("*.md")]:
        if page.name in ("CHANGELOG.md", "LOG.md", "extending.md"):
            continue  # they name what was, and what one would add
        for command, rest in COMMAND.findall(page.read_text().replace("\nmethod=", " method=")):
            if rest.strip() and not PLACEHOLDER.search(rest):
                yield page.relative_to(ROOT), command, rest.split()


def one(word: str) -> str:
    """A word of a matrix as a word of its first run."""
    axis, equals, value = word.partition("=")
    return f"{axis}={re.split(r',|[.][.]', value)[0]}" if axis in ("task", "method", "seed") else word


def test_commands_in_the_documents_are_understood():
    """Their words are settings that can be used together."""
    found = list(commands())
    assert len(found) > 30 and {"train", "matrix", "doctor", "bench gradient"} <= {command for _, command, _ in found}
    for page, command, words in found:
        words = [f"task={word}" if command == "reproduce" and re.fullmatch(r"\w+", word) else word for word in words]
        launcher = [word for word in words if word.startswith(("launcher=", "launcher."))]
        given = [one(word) for word in words if "=" in word and not word.startswith((*OWN, "-")) and word not in launcher]
        try:
            assert load([word for word in given if not word.endswith("=all")]) and launchers.load(launcher)
        except UserError as error:
            pytest.fail(f"{page}: star {command} {' '.join(words)}: {error}")


def test_variants_presets_and_models_are_told():
    text = (ROOT / "docs" / "paper_scale.md").read_text()
    for group in ("variant", "preset", "model"):
        assert all(name in text for name in options(group)), group
