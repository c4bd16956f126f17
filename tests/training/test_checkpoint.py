"""A run's folder: what is damaged in it is noticed, and nothing that was good is lost; places are checked before the work."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_task import RedTask
from safetensors.torch import load_file, save_file
from tiny import FAST

from evaluators.interface import Score
from star.common.errors import RunStopped, UserError
from star.common.files import write_last
from star.common.machine import machine
from star.config import load
from star.matrix.cells import Cell, State
from star.records.code import commit
from star.records.results import read_rows
from star.training import checkpoint, runs
from star.training import folder as folder_module
from star.training.checkpoint import TrainingFolder
from star.training.evaluation import evaluate
from star.training.trainer import Trainer


def make_red(patch):
    for module in ("star.training.runs", "star.training.trainer"):
        patch.setattr(f"{module}.load_task", lambda config, name, evaluator=None: RedTask())


@pytest.fixture(autouse=True)
def red(monkeypatch):
    make_red(monkeypatch)


@pytest.fixture(scope="module")
def finished(pipeline_folder, tmp_path_factory) -> Path:
    """The folder of a run of three epochs, with the checkpoints of its first two."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    Trainer(load([*FAST.split(), f"model.path={pipeline_folder}", f"run={folder}", "train.keep=2"]), RedTask()).run()
    return folder


@pytest.fixture(scope="module")
def evaluated(pipeline_folder, tmp_path_factory) -> Path:
    """The folder of a run of two epochs that was evaluated."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    with pytest.MonkeyPatch.context() as patch:
        make_red(patch)
        runs.trained(load([*FAST.split(), f"model.path={pipeline_folder}", f"run={folder}", "train.epochs=2"]))
    return folder


@pytest.fixture
def judged(make_config, evaluated):
    """Settings and rows of a copy of that run."""
    config = make_config("train.epochs=2")
    shutil.copytree(evaluated, config.run)
    return config, read_rows(evaluated / "final" / "rows.json")


@pytest.fixture
def cut_off(make_config, finished):
    """Settings and folder of that run as if it had been killed in its last epoch, and the weights that it would end with."""
    config = make_config("train.keep=2")
    folder = Path(config.run)
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "final")
    return config, folder, load_file(finished / "final" / "trained.safetensors")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def empty(file: Path) -> None:
    if file.is_file():
        file.write_bytes(b"")


def halve(file: Path) -> None:
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)


def test_a_run_is_of_the_code_that_it_was_begun_with_and_goes_on_with(cut_off, monkeypatch):
    config, folder, _ = cut_off
    begun = json.loads((folder / "checkpoints" / "epoch-000002" / "progress.json").read_text())["commit"]
    assert begun == commit()
    monkeypatch.setattr("star.training.trainer.commit", lambda: "other")
    trainer = Trainer(config, RedTask())
    monkeypatch.setattr("star.training.trainer.commit", lambda: "what the checkout is when the run ends")
    assert trainer.run()["commit"] == f"{begun}..other"


def test_all_that_a_run_was_made_with_is_known_however_often_it_went_on(cut_off, monkeypatch):
    config, _, _ = cut_off
    monkeypatch.setattr("star.training.trainer.commit", lambda: "other")
    monkeypatch.setattr("star.training.trainer.machine", lambda processes: "4 x NVIDIA H100")
    second = Trainer(config, RedTask())
    second._save(second._restore())
    summary = Trainer(config, RedTask()).run()
    assert summary["commit"] == f"{commit()}..other" and summary["machine"] == f"{machine()}; 4 x NVIDIA H100"


def test_what_other_code_measures_is_not_said_to_be_of_the_code_that_trained(judged, monkeypatch):
    config, rows = judged
    assert {row.commit for row in rows} == {commit()}
    for module in ("trainer", "runs"):
        monkeypatch.setattr(f"star.training.{module}.commit", lambda: "other+dirty")
    assert runs.trained(config) == rows, "what was measured stays"
    (Path(config.run) / "final" / "rows.json").unlink()
    assert {row.commit for row in runs.trained(config)} == {f"{commit()}..other+dirty"}


def test_a_copy_of_a_checkpoint_under_another_name_is_not_looked_into(cut_off):
    config, folder, weights = cut_off
    shutil.copytree(folder / "checkpoints" / "epoch-000002", folder / "checkpoints" / "epoch-latest")
    Trainer(config, RedTask()).run()
    ended = load_file(folder / "final" / "trained.safetensors")
    assert all(torch.equal(ended[name], weight) for name, weight in weights.items())


def test_other_libraries_than_it_was_begun_with_are_told(cut_off, monkeypatch, capsys):
    config, _, _ = cut_off
    monkeypatch.setattr("star.training.trainer.versions", lambda: "torch 9.9")
    assert Trainer(config, RedTask()).run()["versions"] == "torch 9.9"
    assert re.search(
        r"star: caution: it was trained with torch \d.* so far, and goes on with torch 9.9", capsys.readouterr().err
    )


def test_the_loss_goes_on_with_the_scale_that_it_had(make_config):
    trainer, again = (Trainer(make_config("model.dtype=float16"), RedTask()) for _ in range(2))
    trainer.scaler = torch.amp.GradScaler(trainer.base.device.type, init_scale=8.0)
    trainer.folder.open("", "")
    trainer.folder.save(1, trainer.base.trained, trainer.state, {})
    again.folder.restore(again.base.trained, again.state)
    assert again.scaler.get_scale() == 8


def test_another_machine_than_it_was_begun_on_is_told_and_both_are_recorded(cut_off, monkeypatch, capsys):
    config, _, _ = cut_off
    monkeypatch.setattr("star.training.trainer.machine", lambda processes: "4 x NVIDIA H100")
    made = Trainer(config, RedTask()).run()["machine"]
    assert made == f"{machine()}; 4 x NVIDIA H100"
    told = f"star: caution: it was trained by {machine()} so far, and goes on by 4 x NVIDIA H100: digits may differ"
    assert told in capsys.readouterr().err


def test_a_run_says_what_it_trains_and_after_which_epoch_it_goes_on(cut_off, capsys):
    config, folder, _ = cut_off
    Trainer(config, RedTask()).run()
    train = config.train
    images = f"{train.epochs * train.groups * train.group_size:,}"
    told = f"star: note: star on geneval, seed 0: 3 epochs, {images} images, in {folder}; goes on after epoch 2\n"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("ranks", "told"), [(1, ""), (2, ", by 2 processes"), (3, ", by 3 processes")])
def test_processes_are_told_and_what_of_them_idles(make_config, capsys, ranks, told):
    trainer = Trainer(make_config("train.groups=4", "train.group_size=4", "train.micro_batch=2"), RedTask())
    trainer.accelerator = SimpleNamespace(num_processes=ranks)
    trainer._announce(0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(f", in {trainer.folder.path}{told}")
    assert trainer.config.train.updates_per_epoch == 2
    idle = "star: note: 8 micro-batches in 2 updates are no equal shares for 3 processes, which idle for 33% of the time; "
    assert [line.startswith(idle) for line in lines[1:]] == [True] * (ranks == 3)


def test_the_bar_counts_what_the_first_process_does(make_config):
    """Each update's share is spread over the processes, so that its last round may lack some of them."""
    trainer = Trainer(make_config("train.groups=3", "train.group_size=4", "train.micro_batch=1"), RedTask())
    for ranks in (1, 2, 4, 5):
        trainer.accelerator = SimpleNamespace(num_processes=ranks)
        assert sum(trainer._turns()) == sum(len(share[0::ranks]) for share in trainer.shares(12, 0))
    assert trainer._turns() == [2, 2]


def test_processes_agree_on_whether_an_evaluation_is_done(make_config, monkeypatch):
    """Or one would leave, and the others wait for what it draws."""
    asked = []
    monkeypatch.setattr("star.common.processes.check_agreed", lambda value, what: asked.append((value, Path(what).name)))
    config = make_config("train.epochs=1")
    runs.trained(config)
    runs.trained(config)
    assert [value for value, what in asked if what == "rows.json"] == [False, True]
    assert [value for value, what in asked if what == "config.yaml"] == [True, True]  # or they share no folder


def test_a_checkpoint_is_written_after_so_many_minutes_too(make_config):
    config = make_config("train.epochs=3", "train.checkpoint_every=100", "train.checkpoint_minutes=1e-9", "train.keep=9")
    Trainer(config, RedTask()).run()
    assert [folder.name for folder in TrainingFolder(Path(config.run)).checkpoints()] == ["epoch-000001", "epoch-000002"]


def test_the_weights_that_scored_highest_on_the_way_are_kept(make_config, monkeypatch):
    scores = iter([0.5, 0.7, 0.7, 0.6, 0.65])
    asked = []
    monkeypatch.setattr(Trainer, "evaluate", lambda self, n: asked.append(n) or [Score("red", next(scores), None, 1, 1)])
    words = ("train.epochs=4", "train.checkpoint_every=1", "train.keep=9", "evaluation.every=1", "evaluation.every_images=3")
    config = make_config(*words)
    Trainer(config, RedTask()).run()
    assert asked == [3] * 4
    folder = Path(config.run)
    assert json.loads((folder / "best" / "score.json").read_text()) == {"epoch": 2, "red": 0.7}
    ours, theirs = (folder / part / "lora" for part in ("best", "checkpoints/epoch-000002"))
    names = [file.name for file in sorted(ours.iterdir())]
    assert names and all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)
    assert (theirs / names[-1]).read_bytes() != (folder / "checkpoints/epoch-000003/lora" / names[-1]).read_bytes()
    # Cut off after its third epoch, it compares the fourth with those before.
    shutil.rmtree(folder / "final")
    Trainer(config, RedTask()).run()
    assert json.loads((folder / "best" / "score.json").read_text())["epoch"] == 2


def test_scores_of_other_evaluations_are_not_compared(make_config, monkeypatch):
    scores = iter([0.9, 0.5, 0.6, 0.4])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, images: [Score("red", next(scores), None, 1, 1)])
    words = ("train.epochs=2", "evaluation.every=1", "evaluation.every_images=3")
    folder = Path(make_config().run)
    best, log = folder / "best" / "score.json", folder / "metrics.jsonl"
    Trainer(make_config(*words), RedTask()).run()
    assert json.loads(best.read_text())["red"] == 0.9
    shutil.rmtree(folder / "final")  # it goes on after its first epoch, which scored 0.9
    Trainer(make_config(*words, "evaluation.steps=3"), RedTask()).run()
    assert json.loads(best.read_text())["red"] == 0.6
    shutil.rmtree(folder / "final")
    log.write_text("".join(re.sub(r', "eval/by": "\w+"', "", line) for line in log.read_text().splitlines(True)))
    Trainer(make_config(*words, "evaluation.steps=3"), RedTask()).run()
    assert json.loads(best.read_text())["red"] == 0.6, "an older version's log does not say how it was evaluated"


def test_a_checkpoint_that_cannot_be_deleted_ends_no_run(make_config, monkeypatch, capsys):
    delete = shutil.rmtree

    def busy(folder, *arguments, **named):
        if folder.name == "epoch-000001" and not named:  # and errors are not to be ignored
            raise OSError(39, "Directory not empty")
        delete(folder, *arguments, **named)

    monkeypatch.setattr(shutil, "rmtree", busy)
    config = make_config("train.epochs=4", "train.checkpoint_every=1", "train.keep=1")
    Trainer(config, RedTask()).run()
    assert "epoch-000001 could not be deleted: Directory not empty" in " ".join(capsys.readouterr().err.split())
    assert [folder.name for folder in TrainingFolder(Path(config.run)).checkpoints()] == ["epoch-000001", "epoch-000003"]


DAMAGES = {
    "a flipped bit": ("trained.safetensors", flip),
    "an empty file": ("trained.safetensors", lambda file: file.write_bytes(b"")),
    "half precision": ("trained.safetensors", halve),
    "a cut state": ("state.pt", lambda file: os.truncate(file, file.stat().st_size // 2)),
    "a flipped bit of the state": ("state.pt", flip),
    "no state": ("state.pt", Path.unlink),
    "no progress": ("progress.json", lambda file: file.write_text("")),
    "no digests": ("SHA256SUMS", Path.unlink),
    "empty digests": ("SHA256SUMS", lambda file: file.write_text("")),
    "fewer digests": ("SHA256SUMS", lambda file: file.write_text("".join(file.read_text().splitlines(True)[:2]))),
    "a power cut": ("*", empty),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_left_out_for_the_one_before_it(cut_off, capsys, damage):
    config, folder, final = cut_off
    name, spoil = DAMAGES[damage]
    newest = folder / "checkpoints" / "epoch-000002"
    for file in newest.glob(name):
        spoil(file)
    capsys.readouterr()
    Trainer(config, RedTask()).run()
    told = [line for line in capsys.readouterr().err.splitlines() if "caution" in line]
    assert len(told) == 1 and "epoch-000002 is damaged (" in told[0] and "the one before it is tried" in told[0]
    again = load_file(folder / "final" / "trained.safetensors")
    assert all(torch.equal(again[name], final[name]) for name in final)
    assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert (folder / "checkpoints" / "epoch-000002.damaged").is_dir()


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").touch()
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino) or sync(number))
    TrainingFolder(tmp_path).save(1, {"a": torch.zeros(2)}, {}, {}, lambda folder: write_file(folder / "w.safetensors"))
    files = [file for file in (tmp_path / "checkpoints" / "epoch-000001").rglob("*") if file.is_file()]
    assert len(files) == 5 and {file.stat().st_ino for file in files} <= set(synced)


def write_file(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("adapters")


def test_where_all_checkpoints_are_damaged_nothing_is_begun_anew(cut_off):
    config, folder, _ = cut_off
    for part in (folder / "checkpoints").iterdir():
        flip(part / "trained.safetensors")
    with pytest.raises(UserError, match="all checkpoints in .* are damaged; delete the folder"):
        Trainer(config, RedTask()).run()


def rewrite(file: Path, **changes) -> None:
    """Change what a file of progress or a summary says, as somebody who writes its digest anew; None leaves a name out."""
    told = json.loads(file.read_text()) | changes
    write_last(file, json.dumps({name: value for name, value in told.items() if value is not None}), [])


def test_a_checkpoint_or_an_end_of_another_run_is_refused_and_nothing_changes(cut_off):
    config, folder, _ = cut_off
    newest = folder / "checkpoints" / "epoch-000002" / "progress.json"
    own = json.loads(newest.read_text())["run"]
    assert (folder / "config.yaml").read_text().startswith(f"# training settings {own}\n")
    rewrite(newest, run="0123456789ab")
    before = kept(folder)
    with pytest.raises(UserError, match=r"epoch-000002 is of a run with other settings \(.* 0123456789ab\); take it away"):
        Trainer(config, RedTask()).run()
    assert kept(folder) == before
    rewrite(newest, run=None)  # as older versions left it
    assert Trainer(config, RedTask()).run()["run"] == own
    rewrite(folder / "final" / "summary.json", run="0123456789ab")
    with pytest.raises(UserError, match="run/final is of a run with other settings"):
        runs.trained(config)
    rewrite(folder / "final" / "summary.json", run=None)
    Trainer(config, RedTask()).run()


def test_a_renamed_checkpoint_is_refused(cut_off):
    config, folder, _ = cut_off
    (folder / "checkpoints" / "epoch-000002").rename(folder / "checkpoints" / "epoch-000009")
    before = kept(folder)
    with pytest.raises(UserError, match="epoch-000009 was renamed: it is of epoch 2; give it that name again"):
        Trainer(config, RedTask()).run()
    assert kept(folder) == before


def kept(folder):
    """What a run has of its past, byte for byte."""
    return {file: file.read_bytes() for file in [folder / "metrics.jsonl", *folder.glob("checkpoints/*/*.*")]}


def test_a_run_whose_checkpoints_are_out_of_reach_does_not_begin_anew(cut_off, make_config):
    config, folder, _ = cut_off
    (folder / "checkpoints").rename(folder.with_name("elsewhere"))
    before = kept(folder)
    for there in (False, True):  # not there at all; the empty place where a disk is mounted
        with pytest.raises(UserError, match=r"^3 epochs are logged in .*metrics.jsonl, but there are no checkpoints in "):
            Trainer(config, RedTask()).run()
        assert kept(folder) == before
        if not there:
            (folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds a run with other settings"):
        Trainer(make_config("seed=1"), RedTask()).run()
    assert kept(folder) == before
    (folder / "saved").unlink()  # as if it had died before its first checkpoint
    Trainer(config, RedTask()).run()


def test_checkpoints_that_cannot_be_read_now_are_not_called_damaged(cut_off, monkeypatch):
    config, folder, _ = cut_off
    before = kept(folder)

    def unreachable(file):
        raise OSError(5, "Input/output error", str(file))

    monkeypatch.setattr("star.common.files.sha256", unreachable)
    with pytest.raises(RunStopped, match=r"epoch-000002.* cannot be read now \(Input/output error\); nothing was changed"):
        Trainer(config, RedTask()).run()
    assert kept(folder) == before


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore"), KeyError("a parameter of another name")]
)
def test_checkpoints_that_are_whole_and_do_not_load_are_not_called_damaged(cut_off, monkeypatch, error):
    config, folder, _ = cut_off
    before = kept(folder)

    def fail(*arguments, **named):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    told = (
        r"epoch-000002 is as it was written, by torch .*, and could not be loaded \(.*(memory|name).*\); nothing was changed$"
    )
    with pytest.raises(RunStopped, match=told):
        Trainer(config, RedTask()).run()
    assert kept(folder) == before


def test_what_is_left_of_a_checkpoint_that_was_never_complete_goes(cut_off):
    config, folder, _ = cut_off
    part = folder / "checkpoints" / "epoch-000001.part"
    part.mkdir()
    (part / "state.pt").write_bytes(b"half")
    Trainer(config, RedTask()).run()
    assert not part.exists()


def test_missing_lines_of_the_log_are_told(cut_off, capsys):
    config, folder, _ = cut_off
    log = folder / "metrics.jsonl"
    log.write_text(log.read_text().splitlines()[1] + "\n")
    Trainer(config, RedTask()).run()
    assert "metrics.jsonl has no line of the epochs 1" in capsys.readouterr().err


def test_of_an_epoch_that_was_logged_twice_the_last_line_stays(cut_off):
    config, folder, _ = cut_off
    log = folder / "metrics.jsonl"
    one, two, *_ = map(json.loads, log.read_text().splitlines())
    lines = [one, two | {"reward": 9.0}, two, {"epoch": "2"}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    Trainer(config, RedTask()).run()
    after = [json.loads(line) for line in log.read_text().splitlines()]
    assert after[:2] == [one, two] and [line["epoch"] for line in after] == [1, 2, 3]


@pytest.mark.parametrize("damage", [lambda file: file.write_text(""), lambda file: file.write_text('{"updates": 1'), flip])
@pytest.mark.parametrize("name", ["final/summary.json", "final/rows.json"])
def test_what_is_damaged_at_the_end_is_made_again(judged, name, damage):
    config, rows = judged
    damage(Path(config.run, name))
    assert [row.value for row in runs.trained(config)] == [row.value for row in rows]


@pytest.mark.parametrize("damage", [flip, lambda file: file.write_bytes(file.read_bytes()[:-20]), Path.unlink])
def test_results_that_were_changed_afterwards_are_never_taken(judged, capsys, damage):
    config, rows = judged
    cell = Cell((), config, config.seed)
    folder = Path(config.run)
    whole = {name: Path(folder, name).read_bytes() for name in ("final/images.csv", "metrics.jsonl")}
    assert cell.state() is State.DONE
    damage(folder / "final" / "images.csv")
    assert cell.state() is not State.DONE and cell.fault().startswith(str(folder / "final" / "images.csv"))
    assert runs.trained(config) == rows and (folder / "final" / "images.csv").read_bytes() == whole["final/images.csv"]
    told = capsys.readouterr().err
    assert f"{folder / 'final' / 'images.csv'} is" in told and "; it is measured again" in told
    damage(folder / "metrics.jsonl")
    assert cell.state() is not State.DONE and cell.fault().startswith(str(folder / "metrics.jsonl"))
    with pytest.raises(UserError, match=r"metrics.jsonl is (missing|not what was written); put it back, or delete the folder"):
        runs.trained(config)
    (folder / "metrics.jsonl").write_bytes(whole["metrics.jsonl"])
    assert runs.trained(config) == rows and cell.state() is State.DONE


def test_a_summary_that_was_changed_is_told_and_made_again(judged, capsys):
    config, rows = judged
    cell = Cell((), config, config.seed)
    summary = Path(config.run, "final", "summary.json")
    for text in (summary.read_text().replace('"updates"', ' "updates"'), "", '{"updates": 1}'):
        summary.write_text(text)
        assert cell.state() is not State.DONE
        capsys.readouterr()
        assert [row.value for row in runs.trained(config)] == [row.value for row in rows] and cell.state() is State.DONE
        assert f"{summary} is not what was written; the last epochs are trained again" in capsys.readouterr().err
    log, summary_whole = Path(config.run, "metrics.jsonl").read_bytes(), summary.read_text()
    shutil.rmtree(Path(config.run, "checkpoints"))
    summary.write_text(summary_whole + " ")
    with pytest.raises(UserError, match="summary.json is not what was written; put it back, or delete the folder"):
        runs.trained(config)
    assert Path(config.run, "metrics.jsonl").read_bytes() == log
    summary.write_text(summary_whole)
    assert [row.value for row in runs.trained(config)] == [row.value for row in rows]


def test_other_weights_than_those_that_were_judged_are_judged_anew(judged, monkeypatch):
    """A GPU may train other digits the second time."""
    config, _ = judged
    final = Path(config.run, "final")
    again = []
    monkeypatch.setattr(runs, "evaluate", lambda *arguments: again.append(1) or evaluate(*arguments))
    weights, summary = load_file(final / "trained.safetensors"), json.loads((final / "summary.json").read_text())
    TrainingFolder(Path(config.run)).finish(weights, summary)
    runs.trained(config)
    assert not again, "the same weights"
    TrainingFolder(Path(config.run)).finish(
        {n: v + 1 for n, v in weights.items()}, json.loads((final / "summary.json").read_text())
    )
    runs.trained(config)
    assert again == [1]


@pytest.mark.parametrize("place", ["final", "checkpoints/epoch-000001"])
def test_changed_weights_are_not_loaded_by_anybody(judged, place):
    config, _ = judged
    file = Path(config.run, place, "trained.safetensors")
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    with pytest.raises(UserError, match="trained.safetensors is not what was written; put it back, or name other weights"):
        checkpoint.load_trained(file, load_file(file))


def test_a_digit_of_the_rows_that_was_changed_is_measured_again(judged):
    config, rows = judged
    file = Path(config.run, "final", "rows.json")
    text = file.read_text()
    file.write_text(text.replace(f'"value": {json.dumps(rows[0].value)}', '"value": 0.987', 1))
    assert read_rows(file)[0].value == 0.987 and Cell((), config, config.seed).state() is not State.DONE
    assert runs.trained(config) == rows and file.read_text() == text


def test_damaged_final_weights_are_not_judged(judged):
    config, _ = judged
    Path(config.run, "final", "rows.json").unlink()
    flip(Path(config.run, "final", "trained.safetensors"))
    with pytest.raises(UserError, match="trained.safetensors is not what was written; delete .*summary.json"):
        runs.trained(config)
    Path(config.run, "final", "summary.json").unlink()
    runs.trained(config)


def test_a_damaged_config_is_named(cut_off):
    config, folder, _ = cut_off
    (folder / "config.yaml").write_bytes((folder / "config.yaml").read_bytes()[:60] + b"\n\xff{")
    with pytest.raises(UserError, match="config.yaml cannot be read"):
        runs.trained(config)


@pytest.mark.parametrize("file", ["transformer/diffusion_pytorch_model.safetensors", "tokenizer_3/tokenizer.json"])
def test_a_model_that_changed_since_the_run_was_begun_is_refused(make_config, pipeline_folder, tmp_path, file):
    model = tmp_path / "model"
    shutil.copytree(pipeline_folder, model)
    config = make_config(f"model.path={model}", "train.epochs=2")
    Trainer(config, RedTask()).run()
    changed = model / file
    before = changed.read_bytes()
    changed.write_bytes(before + b"\n" if file.endswith("json") else before[:-1] + bytes([before[-1] ^ 1]))
    for done in (True, False):
        with pytest.raises(UserError, match=f"model.path={model} is another model than when {config.run} was begun"):
            Trainer(config, RedTask()).run()
        if done:
            shutil.rmtree(Path(config.run, "final"))
    changed.write_bytes(before)
    Trainer(config, RedTask()).run()


def a_file(path: Path) -> None:
    path.write_text("mine")


def a_folder_of_others(path: Path) -> None:
    path.mkdir()
    (path / "config.yaml").write_text("a: b\n")


PLACES = {
    "file": (a_file, "Not a directory"),
    "others": (a_folder_of_others, r"something else than a run of this project \(config.yaml\)"),
    "x" * 300: (lambda path: None, "File name too long"),
    "nul\0": (lambda path: None, "null byte"),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_that_cannot_be_a_run_are_refused_before_the_model_is_loaded(make_config, monkeypatch, tmp_path, name):
    make, told = PLACES[name]
    make(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(runs, "Trainer", lambda config: pytest.fail("it began to work"))
    config = make_config()
    config.run = str(tmp_path / name)
    with pytest.raises(UserError, match=told):
        runs.trained(config)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_that_a_launcher_prepared_is_a_run_s(tmp_path):
    for name in ("lock", "log.txt", "log-1.txt", "job", ".running.lock"):
        (tmp_path / name).touch()
    TrainingFolder(tmp_path).check_place()


def test_a_folder_that_vanishes_stops_the_run(make_config, monkeypatch):
    trainer = Trainer(make_config(), RedTask())
    log = trainer.folder.log
    monkeypatch.setattr(trainer.folder, "log", lambda line: (log(line), shutil.rmtree(trainer.folder.path)))
    with pytest.raises(RunStopped, match="was deleted or moved while its run went on"):
        trainer.run()
    assert not trainer.folder.path.exists()


@pytest.mark.parametrize(
    ("module", "what"), [(checkpoint, "save_file"), (folder_module, "append_jsonl"), (folder_module, "write_text")]
)
def test_a_full_disk_stops_the_run_with_the_reason(make_config, monkeypatch, module, what):
    def full(*_):
        raise OSError(28, "No space left on device")

    trainer = Trainer(make_config("train.epochs=2"), RedTask())
    monkeypatch.setattr(module, what, full)
    with pytest.raises(RunStopped, match="cannot be written to: No space left on device; the same command goes on"):
        trainer.run()
    monkeypatch.undo()
    Trainer(trainer.config, RedTask()).run()


def test_a_finished_run_needs_no_disk_that_can_be_written_to(judged, monkeypatch):
    config, rows = judged
    assert runs.trained(config) == rows  # and says in its config.yaml where it is now

    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    for writer in ("os.replace", "os.mkdir", "os.open"):
        monkeypatch.setattr(writer, refused)
    assert runs.trained(config) == rows
