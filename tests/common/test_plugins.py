"""What a user's own module does wrong is told with its place."""

import sys
from pathlib import Path

import pytest

from evaluators import registry
from star.cli import report_errors
from star.common.errors import RunStopped, UserError
from star.common.plugins import call_own, import_path, own_errors, own_place

MODULE = """import json

def boom(relevance, rollouts):
    return {}["gamma"]

def deep(relevance, rollouts):
    return json.loads("no JSON")

def stopped(relevance, rollouts):
    from star.common.errors import RunStopped
    raise RunStopped("enough")

class Judge:
    def __init__(self, device):
        pass
"""


@pytest.fixture(params=["own_plugin", "own_package.inner.own_plugin"])
def module(request, tmp_path, monkeypatch):
    """The path of a module in the working directory, on its own or in a package; forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    file = Path(*request.param.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    for package in file.parents[:-1]:
        (package / "__init__.py").touch()
    file.write_text(MODULE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield request.param
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("boom", "own_plugin.py, line 4, in boom: KeyError: 'gamma'"),
        ("deep", "own_plugin.py, line 7, in deep: JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_an_error_is_one_line_with_its_place(module, capsys, name, told):
    function = import_path(f"{module}:{name}", "method.arm")
    with pytest.raises(SystemExit) as ended, report_errors():
        call_own("method.arm", "a function", function, None, None)
    assert ended.value.code == 2 and capsys.readouterr().err == f"star: {told}\n"


def test_what_has_a_reason_already_stays_as_it_is(module):
    with pytest.raises(RunStopped, match="^enough$"), own_errors():
        import_path(f"{module}:stopped", "method.arm")(None, None)


def test_errors_of_this_project_are_none_of_the_users(module):
    import_path(f"{module}:boom", "method.arm")
    with pytest.raises(ZeroDivisionError) as caught, own_errors():
        _ = 1 / 0
    assert own_place(caught.value) == ""


def test_what_cannot_be_called_as_it_must_is_told(module):
    with pytest.raises(UserError, match=f"^evaluator {module}:Judge must be a class .* without arguments: .*'device'"):
        registry.create(f"{module}:Judge")
    with pytest.raises(UserError, match=f"^evaluator {module}:boom must be a class .* without arguments: .*'relevance'"):
        registry.create(f"{module}:boom")


def test_a_module_that_a_users_own_one_lacks_is_told_with_who_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "asking.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(UserError, match="there is no module 'not_installed_anywhere'; asking imports it$"):
        import_path("asking:x", "method.arm")
    with pytest.raises(UserError, match="there is no module 'nowhere'; install it, or put nowhere.deep into the folder"):
        import_path("nowhere.deep:x", "method.arm")
