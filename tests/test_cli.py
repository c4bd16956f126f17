import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from fake_results import write_matrix
from geneval_layout import save_folder
from PIL import Image
from tiny import FAST

from evaluators.geneval.prompts import MINI, TAGS, generate
from star.cli import app, main
from star.common.machine import versions
from star.mini.scenes import draw_scene
from star.records.results import read


@pytest.fixture
def star(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["star", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main()
        out, err = capsys.readouterr()
        return exit.value.code or 0, out, err

    return run


def test_the_drawings_backend_of_a_notebook_is_not_inherited(star, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    star("--version")
    assert os.environ["MPLBACKEND"] == "agg"


def test_who_interrupts_a_command_is_told_how_to_go_on(star, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("star.training.runs.trained", interrupted)
    anew = "there is no checkpoint yet, so the same command starts anew"
    assert star("train", "run=here") == (130, "", f"star: interrupted; {anew}\n")
    Path("here/checkpoints/epoch-000004").mkdir(parents=True)
    assert star("train", "run=here") == (130, "", "star: interrupted; the same command goes on after epoch 4\n")
    monkeypatch.setattr("star.training.folder.RunFolder.summary", lambda self: {})
    assert star("train", "run=here")[2].endswith("; the training is done; the same command evaluates it\n")
    monkeypatch.setattr("star.bench.gpu.run.run", interrupted)
    assert star("bench", "gpu") == (130, "", "star: interrupted; what was measured is written down\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seed=1", "seed=2"], "seed is given more than once; the last counts, seed=2 (seed=1,2 is both, for star matrix)"),
        (["train.lr=1", "train.lr=2"], "train.lr is given more than once; the last counts, train.lr=2"),
        (["preset=gpu1"], "preset=gpu1 is a budget of the paper's scale, and this is the mini scale: add scale=paper"),
        (["seed=1", "seed=1"], ""),
        (["preset=gpu1", "scale=paper"], ""),
        (["preset=gpu1", "preset=null"], "preset is given more than once; the last counts, preset=null"),
    ],
)
def test_words_that_have_no_effect_or_another_are_told(star, monkeypatch, words, told):
    monkeypatch.setattr("star.training.runs.trained", lambda config: 1 / 0)
    err = star("train", *words)[2]
    assert told in err and ("star: note:" in err) == bool(told)


def test_what_words_come_to_is_told_by_one_process_of_several(star, monkeypatch):
    monkeypatch.setattr("star.training.runs.trained", lambda config: 1 / 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert ("star: note: preset=gpu1" in star("train", "preset=gpu1")[2]) == (rank == "0")


def test_a_preset_is_told_nothing_where_the_paper_scale_is_meant(star, monkeypatch):
    monkeypatch.setattr("star.calibrate.calibrate", lambda *given: 1 / 0)
    monkeypatch.setattr("star.bench.gpu.run.run", lambda words: 1 / 0)
    for command in (["calibrate", "task=geneval"], ["bench", "gpu"]):
        assert "star: note:" not in star(*command, "preset=gpu1")[2]
        assert "star: note: preset=gpu1 is" in star(*command, "preset=gpu1", "scale=mini")[2]


def test_the_version_is_told_where_the_package_is_not_installed(star, monkeypatch):
    versions()  # kept from here on, so that no run of another test is said to have none
    monkeypatch.setattr("star.common.machine.installed", lambda package: None)
    code, out, _ = star("--version")
    assert code == 0 and out.startswith("star not installed, commit ")


def test_settings_are_told(star):
    code, out, _ = star("settings", "sampling.steps", "train.keep", "task=ocr")
    assert code == 0 and "\nsampling.steps=8\n    denoising steps.\n" in out and "\ntrain.keep=2\n    checkpoints that" in out
    assert star("settings", "model", "train.lr=much")[0] == star("settings", "modle")[0] == 2


def test_help_teaches(star):
    code, out, _ = star("--help")
    assert code == 0
    for word in ("train", "evaluate", "reproduce", "diff", "mini", "bench", "doctor", "calibrate", "key=value"):
        assert word in out


def commands(group, *names):
    """Every command below a group, by its words."""
    for name, command in group.commands.items():
        yield from commands(command, *names, name) if hasattr(command, "commands") else [((*names, name), command)]


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])
def test_every_help_names_one_example_of_its_command(words, command):
    (example,) = re.findall(r"Example: (.+)", command.help)
    assert example.split()[: len(words) + 1] == ["star", *words]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "method=foo"], "no method 'foo'"),
        (["train", "train.lr"], "write key=value"),
        (["train", "model.path=missing/folder"], "model.path=missing/folder: no SD3 pipeline could be loaded"),
        (["reproduce", "geneval", "scale=paper"], "hf download stabilityai/stable-diffusion-3.5-medium"),
        (["reproduce", "nothing"], "no task 'nothing'; there are: geneval"),
        (["evaluate", "task=geneval", "images=missing"], "no such folder: missing"),
        (["evaluate", "task=geneval"], "needs task=TASK and images=FOLDER"),
        (["evaluate", "task=geneval", "images=.", "engine=magic"], "no geneval engine 'magic'"),
        (["evaluate", "task=ocr", "images=."], "needs prompts=FILE"),
        (["evaluate", "task=ocr", "images=missing", "prompts=p.txt"], "no such folder of images: missing"),
        (["evaluate", "task=geneval", "images=.", "engine="], "engine= has no value"),
        (["bench", "localisation", "--image", "none/maps.png"], "name a .png file in a folder that exists"),
        (["bench", "localisation", "--image", "maps.csv"], "name a .png file in a folder that exists"),
        (["evaluate", "task=style", "images=."], "task=style has no evaluator"),
        (["data", "ocr", "missing"], "no such file or folder: missing"),
        (["diff", "missing.csv"], "missing.csv"),
        (["diff", "."], ". is a folder; name a result file in it, e.g. geneval.csv"),
        (["nothing"], "No such command 'nothing'; see star --help"),
        (["--nothing"], "No such option: --nothing"),
        (["mini", "nothing"], "No such command 'nothing'"),
        (["bench", "speed", "--rounds", "0"], "Invalid value for '--rounds': "),
        (["mini", "taste"], "Missing argument 'folder'; see star mini taste --help"),
        (["train", "--nothing"], "No such option: --nothing"),
        (["train", "relevance.blocks=[99]"], "block"),
        (["train", "model.resolution=60"], "model.resolution=60 must be a multiple of"),
        (["train", "model.resolution=4096"], "model.resolution=4096 is more than this model has positions for"),
        (["train", "tracker=nosuch"], "tracker=nosuch is not installed, or not known to accelerate"),
        (["train", "model.lora_targets=[nothing]"], "model.lora_targets"),
        (["train", "model.lora_targets=[attn.to_q,attn.nope]"], "the transformer has no module attn.nope"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(star, words, message, pipeline_folder, forked_cells):
    own = {word.partition("=")[0] for word in words}  # a word that is given twice is one line more
    fast = [word for word in (*FAST.split(), f"model.path={pipeline_folder}") if word.partition("=")[0] not in own]
    if words[0] == "train":
        words = [words[0], *fast, *words[1:]]
    code, _, err = star(*words)
    assert code == 2
    assert message in err and err.startswith("star: ") and err.count("\n") == 1
    assert not Path("runs").exists()


def test_evaluate_scores_a_folder_of_drawn_scenes(star, tmp_path):
    records = [next(r for r in generate(MINI) if r["tag"] == tag) for tag in TAGS]
    scenes = [[draw_scene(record, np.random.default_rng(i))[0] for i in range(2)] for record in records]
    save_folder(tmp_path / "images", records, scenes)
    code, out, _ = star("evaluate", "task=geneval", "images=images")
    assert code == 0
    assert re.search(r"geneval_official_macro\W+1\.0000", out)
    assert (
        "geneval-v1/mini-2" in out and "12 images of 6 prompts" in out and out.endswith("image by image: images/geneval.csv\n")
    )
    assert len(Path("images/geneval.csv").read_text().splitlines()) == 13

    (tmp_path / "images/00003/samples/00001.png").write_bytes(b"broken")
    code, _, err = star("evaluate", "task=geneval", "images=images", "out=new/folder/scores.csv")
    assert code == 2 and "the scores of the 6 images before it are in new/folder/scores.partial.csv" in err
    assert len(Path("new/folder/scores.partial.csv").read_text().splitlines()) == 7
    code, _, err = star("evaluate", "task=geneval", "images=images", "out=images")
    assert code == 2 and "the scores cannot go to 'images': it is a folder" in err


def test_evaluate_shows_its_scores_in_whatever_process_it_runs(star, monkeypatch):
    """It is no run of several processes, of which one speaks."""
    save_folder(Path("images"), list(generate(MINI))[:1], [[np.full((64, 64, 3), 128, np.uint8)]])
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    code, out, _ = star("evaluate", "task=geneval", "images=images")
    assert code == 0 and "1 image of 1 prompt" in " ".join(out.split())


def test_a_matrix_is_tried_dry_by_a_word_or_an_option(star):
    asked = ("matrix", "task=ocr", "method=star", "seed=0", "launcher.at_once=1")
    code, out, _ = star(*asked, "dry_run=true")
    assert code == 0 and "star train task=ocr method=star seed=0  # to do" in out
    assert star(*asked, "--dry-run")[1] == out and not Path("runs").exists()


NAMES = ["a[b]c", "[", "[/x]", "[red]a[/red]", "x:smile:y", "a\\\\", "$1 and $2", "naïve – 木"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_folders_are_shown_as_they_are(star, name):
    save_folder(Path(name, "images"), list(generate(MINI))[:1], [[np.full((64, 64, 3), 128, np.uint8)]])
    code, out, _ = star("evaluate", "task=geneval", f"images={name}/images")
    assert code == 0 and f"{name}/images: 1 image of 1 prompt" in " ".join(out.split())
    code, _, err = star("evaluate", "task=geneval", f"images={name}/none")
    assert (code, err) == (2, f"star: no such folder: {name}/none\n")
    code, _, err = star("diff", f"{name}/none.csv")
    assert code == 2 and f"{name}/none.csv: no such file" in err


def test_a_terminal_without_the_letters_shows_the_rest(star, tmp_path, monkeypatch):
    """Exit code 1 of diff means that numbers differ, and nothing else."""
    write_matrix(tmp_path, arms=("star",), seeds=(0,), tasks=("ocr",))
    words = ["diff", "results/mini/ocr.csv"]
    assert star(*words)[0] == 0
    with open(tmp_path / "out", "w", encoding="latin-1") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert star(*words)[0] == 0
    assert b"not comparable" in (tmp_path / "out").read_bytes()


def test_what_nobody_foresaw_is_no_difference(star, monkeypatch):
    def fails(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("star.records.diff.run", fails)
    code, _, err = star("diff", "x.csv")
    assert code == 70 and "ZeroDivisionError" in err


def test_reproduce_writes_tables_once(star, pipeline_folder, forked_cells):
    words = ["reproduce", "geneval", *FAST.split(), f"model.path={pipeline_folder}", "train.epochs=1"]
    code, out, _ = star(*words)
    assert code == 0
    rows = read(Path("runs/results/mini/geneval.csv"))
    assert {row.method for row in rows} == {"base", "flow_grpo", "star"}
    macro = {row.method: row for row in rows if row.metric == "geneval_official_macro"}
    assert macro["star"].prompts == macro["base"].prompts == 197
    assert (macro["star"].updates, macro["star"].images_seen, macro["base"].updates) == (2, 16, 0)
    assert all(row.protocol == "geneval-v1/mini-2/mini/steps=2" for row in rows)  # FAST evaluates in two steps
    for text in (out, Path("runs/results/mini/geneval.md").read_text()):
        assert "STAR minus Flow-GRPO" in text and "0.9759" in text
    table = [line.split() for line in out.splitlines() if "official macro" in line and "│" in line]
    assert [line[1] for line in table] == ["base", "Flow-GRPO", "STAR"] and len(out.splitlines()) < 30
    assert "No shipped run has your settings and seed" in out
    for name in ("geneval.png", "figures/samples-geneval.png", "figures/maps-geneval.png"):
        with Image.open(f"runs/results/mini/{name}") as picture:
            assert picture.width > 300 and (name == "geneval.png" or f"runs/results/mini/{name}" in out)
    assert not Path("results").exists()
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    assert star(*words)[0] == 0
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before

    assert star("diff")[1] in out
    code, out, _ = star("diff", "runs/results/mini/geneval.csv", "--json")
    assert code == 0
    statuses = {row["status"] for row in json.loads(out)["rows"]}
    assert {"not comparable (mini)", "not run"} <= statuses


def test_train_says_what_it_measured(star, few_prompts, pipeline_folder):
    words = [*FAST.split(), f"model.path={pipeline_folder}", "train.epochs=1"]
    code, out, _ = star("train", "method=spatial", *words)
    assert code == 0
    assert "spatial, seed 0, geneval-v1/mini-2/mini" in out and "geneval_official_macro" in out


def test_bench_localisation_without_pictures_says_so(star, pipeline_folder):
    code, _, err = star("bench", "localisation", *FAST.split(), f"model.path={pipeline_folder}")
    assert code == 2 and "no picture shows the objects" in err


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from star.cli import main
for words in sys.argv[1:]:
    sys.argv = ["star", *words.split(), "train.epoch=1"]
    try:
        main()
    except SystemExit as exit:
        print(exit.code)
"""


def test_a_mistyped_setting_is_told_before_torch_is_imported():
    """Which takes seconds."""
    benches = [f"bench {name}" for name in ("overhead", "speed", "gradient", "first_updates", "influence", "localisation")]
    commands = ["train", "base", "demo", "doctor", "doctor --dry-run", *benches]
    ended = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *commands], capture_output=True, text=True)
    assert ended.stdout.split() == ["2"] * len(commands), ended.stderr
    assert ended.stderr.count("did you mean train.epochs") == len(commands) and "Traceback" not in ended.stderr
