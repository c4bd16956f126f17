"""The command line."""

import errno
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.core import TyperGroup

from star.bench import OWN
from star.common.console import UNREAD, console, let_go, note, print_table, unread, written_out
from star.common.errors import Interrupted, RunStopped, UserError
from star.common.launched import is_first
from star.common.malloc import keep_freed_memory, let_segments_grow
from star.common.plugins import own_errors
from star.common.words import own_words, take_flag
from star.method.arms import ARMS

if TYPE_CHECKING:
    from star.bench.table import Shown
    from star.common.statistics import Estimate
    from star.config import Config

SETTINGS_HELP = (
    f"Settings are words key=value: task=geneval, method=star ({', '.join(ARMS)}), scale=mini (or paper), seed=0, and all "
    "others that star settings shows, e.g. train.epochs=5."
)

CRASHED = 70
"""Exit code of an error that nobody foresaw: 1 already means that numbers differ, or that a run stopped for a reason."""


USAGE: type[Exception] = typer.BadParameter.__mro__[1]
"""What Typer raises for words that it does not understand; it has no name there."""


class Commands(TyperGroup):
    """Typer's group with errors of one line: by itself Typer says little or nothing where somebody interrupts or a file ends
    too early, and draws a box where a word is not understood."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """The words of the command line, with the home folder for ``~`` behind a ``=``, where shells leave it.

        Raises:
            UserError: a word is empty: a shell's variable that is not set, say.
        """
        for word in args:
            if not word.strip() or (word.startswith("--") and word.endswith("=")):
                raise UserError(f"{word!r} on the command line is empty; leave it out, or write what is meant")
        with _told_in_a_line():
            return super().parse_args(ctx, [_at_home(word) for word in args])

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run a command."""
        try:
            with _told_in_a_line():
                return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(str(interrupt) or "interrupted") from None
        except BrokenPipeError:
            raise BrokenPipeError from None  # without its number, by which Typer would end with exit code 1
        except EOFError as error:
            raise RunStopped(f"a file ended in the middle: {error}") from error


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    """Inside, words that Typer does not understand are bad input like any other; help that it shows for none stays."""
    try:
        yield
    except USAGE as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        place: typer.Context | None = getattr(error, "ctx", None)
        command = place.command_path if place else "star"
        message = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        raise UserError(f"{message.rstrip('.')}; see {command} --help") from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="STAR: reinforcement learning for text-to-image flow models with attention-allocated rewards, and the baselines "
    f"it is compared with.\n\n{SETTINGS_HELP}",
)
mini = typer.Typer(no_args_is_help=True, help="The embedded small base model and its world.")
bench = typer.Typer(no_args_is_help=True, help="Measurements: what maps gain and cost, where they lie, how fast all is.")
convert = typer.Typer(no_args_is_help=True, help="Published weights, in the form that this package reads.")
app.add_typer(convert, name="convert")
app.add_typer(mini, name="mini")
app.add_typer(bench, name="bench")


def _version(asked: bool) -> None:
    if asked:
        from star.common.machine import installed, versions
        from star.records.code import commit

        console().print(f"star {installed('star-rl') or 'not installed'}, commit {commit()}; {versions()}", soft_wrap=True)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which code and libraries these are.")
    ] = False,
) -> None: ...


Settings = Annotated[list[str] | None, typer.Argument(help="Settings, key=value.", metavar="[KEY=VALUE]...")]


@app.command(epilog=SETTINGS_HELP)
def train(overrides: Settings = None) -> None:
    """Train one method and evaluate it; an interrupted run goes on from its last checkpoint.

    By default that is star on geneval, seed 0, at the mini scale: a quarter of an hour on a core.

    Example: star train task=geneval method=star seed=0
    """
    settings = _checked(overrides)
    from star.training import runs
    from star.training.folder import kept

    with _resumable(lambda: kept(settings.run)):
        rows = runs.trained(settings)
    if not is_first():
        return  # of the processes of a run one is enough
    own = settings.task.name
    labels = [row.metric if row.task == own else f"{row.task} task: {row.metric}" for row in rows]
    scores = [(label, row.value, row.stderr) for label, row in zip(labels, rows, strict=True)]
    below = f"run folder: {settings.run}; star matrix with the same words puts it into tables, then star report shows it"
    _show(f"{settings.method.name}, seed {settings.seed}, {rows[0].protocol}", scores, below)


@app.command(epilog=SETTINGS_HELP)
def base(overrides: Settings = None) -> None:
    """Evaluate the untrained model on a task, which is what every method is compared with.

    Example: star base task=geneval
    """
    settings = _checked(overrides, own_folder=False)
    from star.training import runs

    with _resumable():
        rows = runs.base(settings)
    if is_first():
        _show(f"base, {rows[0].protocol}", [(row.metric, row.value, row.stderr) for row in rows])


MATRIX_HELP = """task, method and seed are lists and ranges; by default all tasks, the methods of the ablation and seed=0..2.
launcher.gpus_per_node=8 spreads each run over the GPUs of this machine; launcher=submitit makes a SLURM job of every run
(launcher.partition, .nodes, .gpus_per_node, .cpus, .timeout in minutes, .additional.NAME). Other settings go to every run.
dry_run=true is the same as --dry-run."""


@app.command(epilog=MATRIX_HELP)
def matrix(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[task=A,B method=A,B seed=0..4 launcher=local KEY=VALUE]...")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every cell's command, state and expected time.")] = False,
) -> None:
    """Every combination of tasks, methods and seeds; what is done is skipped, what was cut off goes on.

    Example: star matrix task=geneval method=flow_grpo,spatial,temporal,star seed=0..2 --dry-run
    """
    from star.matrix.run import matrix as run

    rest, asked = take_flag(words or [], "dry_run")
    with _resumable():
        raise typer.Exit(run(rest, dry_run or asked))


@app.command()
def settings(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[GROUP | NAME | KEY=VALUE]...", help="Which settings, and settings.")
    ] = None,
) -> None:
    """All settings, with their values and what they mean; or those of a group, or one.

    Example: star settings train scale=paper
    """
    from star import config
    from star.config.described import described

    names = [word for word in words or [] if "=" not in word]
    screen, indent = console(), " " * 4
    for group in described(config.load([word for word in words or [] if "=" in word]), names):
        screen.print(f"\n{group.title}\n", style="bold", soft_wrap=True)
        for name, value, text in group.settings:
            screen.print(f"{name}={value}", soft_wrap=True)
            if text:
                screen.print(fill(text, min(screen.width, 100), initial_indent=indent, subsequent_indent=indent), style="dim")


PUBLISH_HELP = """task, method and seed are lists and ranges; by default all tasks, the methods of the ablation and seed=0..2.
Other settings say which runs are meant. What is published already stays."""


@app.command(epilog=PUBLISH_HELP)
def publish(
    words: Annotated[list[str] | None, typer.Argument(metavar="[task=A,B method=A,B seed=0..4 KEY=VALUE]...")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="In place of rows that differ, which go.")] = False,
) -> None:
    """Put runs that are done into the results that ship with this project: results/SCALE. The words are those of star matrix.

    Example: star publish task=geneval method=flow_grpo,star seed=0..7
    """
    from star.matrix.publish import publish as run

    folder, count = run(words or [], replace)
    runs = "1 run" if count == 1 else f"{count} runs"
    console().print(f"{runs} put into {folder}; star report {folder} makes its page anew", soft_wrap=True)


REPRODUCE_HELP = """seed is a list or range, 0 by default; the methods are flow_grpo and star. Launchers (launcher=submitit,
launcher.gpus_per_node=8, ...) are those of star matrix; other settings go to every run, e.g. scale=paper train.epochs=5."""


@app.command(epilog=REPRODUCE_HELP)
def reproduce(task: Annotated[str, typer.Argument(help="geneval, ocr or pickscore")], overrides: Settings = None) -> None:
    """Base, Flow-GRPO and STAR on a task, beside the shipped results and the paper's numbers, with a report and pictures.

    Example: star reproduce geneval seed=0..2
    """
    from star.reproduce import reproduce as run

    with _resumable():
        raise typer.Exit(run(task, overrides or []))


@app.command()
def demo(
    overrides: Settings = None,
    out: Annotated[Path, typer.Option(help="The folder of the page.")] = Path("runs", "demo"),
) -> None:
    """See it work in a minute, without training: the small model before and after, scored, with STAR's maps, on one page.

    Example: star demo
    """
    _checked(overrides)
    from star.demo import METRICS
    from star.demo import demo as run

    found = run(out, overrides or [])
    print_table("one image of each held-out prompt, ± standard error", ("method", *METRICS.values()), found.rows)
    console().print("one training of each does not say which method is better; the page says what is known", soft_wrap=True)
    console().print(f"pictures and maps: {found.page}", soft_wrap=True)


EVALUATE_HELP = """task=geneval images=FOLDER in GenEval's layout (00000/metadata.jsonl, 00000/samples/0000.png).
task=ocr and task=pickscore images=FOLDER prompts=FILE: a line per image in the natural order of their names (2 before
10), or a .csv, .tsv or .jsonl with file and prompt; image by image the scores go to out=FILE.csv, by default FOLDER/TASK.csv,
which may replace older scores and nothing else. engine=NAME picks another evaluator; for geneval it is mini if the folder asks
for nothing else than its world has, else mask2former."""


@app.command(epilog=EVALUATE_HELP)
def evaluate(
    words: Annotated[list[str], typer.Argument(metavar="task=TASK images=FOLDER [prompts=FILE] [engine=NAME] [out=FILE]")],
) -> None:
    """Score any folder of images.

    Example: star evaluate task=ocr images=outputs prompts=prompts.txt
    """
    from evaluators.score import rows_file, score
    from star.common.numbers import sample_size

    names = ("task", "images", "prompts", "engine", "out")
    given, others = own_words(words, names)
    if others:
        raise UserError(f"{others[0]!r} is not understood here; write {', '.join(f'{name}=...' for name in names)}")
    if not {"task", "images"} <= given.keys():
        raise UserError("star evaluate needs task=TASK and images=FOLDER")
    scores = score(**given)
    protocol = scores["protocol"].iloc[0]
    _show(
        f"{given['images']}: {sample_size(scores['images'].max(), scores['prompts'].max())}, {protocol}",
        list(scores[["metric", "value", "stderr"]].itertuples(index=False, name=None)),
        f"image by image: {rows_file(given['task'], given['images'], given.get('out'))}",
    )


DOCTOR_HELP = f"""{SETTINGS_HELP} preset=gpu1, gpu4 or gpu8, variant=fast, nocfg, cps or guard, and model=sd3_medium or
sd35_large change what scale=paper says. dry_run=true is the same as --dry-run."""


@app.command(epilog=DOCTOR_HELP)
def doctor(
    words: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Run the model at its true size with random weights.")] = False,
) -> None:
    """Can this machine run these settings? Says what is fine, and what to do where it is not (exit code 1).

    With dry_run=true it needs no weights: a rollout and an update of the transformer at its true size are run and measured.

    Example: star doctor scale=paper preset=gpu1
    """
    overrides, asked = take_flag(words or [], "dry_run")
    settings = _checked(overrides)
    if dry_run or asked:
        from star.doctor.dry_run import dry_run as run
        from star.doctor.dry_run import report

        file, rows = report(run(overrides))
        print_table("dry run", ("what", "measured"), rows)
        console().print(f"written to {file}", soft_wrap=True)
        return
    from star.doctor.checks import check

    findings = check(settings)
    lines = [(finding.what, "fine" if finding.fine else "missing", finding.found) for finding in findings]
    print_table("doctor", ("what", "", "found"), lines)
    if todo := [f"- {finding.what}: {finding.todo}" for finding in findings if finding.todo]:
        console().print("\n".join(["what to do:", *todo]), soft_wrap=True)  # not in the table, which would break commands
    raise typer.Exit(0 if all(finding.fine for finding in findings) else 1)


CALIBRATE_HELP = f"""lora=FOLDER takes another LoRA, or its file of weights, in diffusers' layout or peft's, or the folder of
a run or a checkpoint; name=NAME is what its rows are called. {SETTINGS_HELP} scale=paper is the default here."""


@app.command(epilog=CALIBRATE_HELP)
def calibrate(words: Settings = None) -> None:
    """Evaluate the LoRA that Flow-GRPO's authors released for a task: do our evaluators give the published number?

    Example: star calibrate task=geneval
    """
    from star.calibrate import calibrate as run

    given, overrides = own_words(words or [], ("lora", "name"))
    with _resumable():
        found = run(overrides, given.get("lora"), given.get("name"))
    if not is_first():
        return  # of the processes of a run one is enough
    first = found[0][0]
    rows = [
        (row.metric, f"{row.value:.4f}", "" if row.stderr is None else f"{row.stderr:.4f}", published, again)
        for row, published, again in found
    ]
    columns = ("metric", "value", "± standard error", "published for Flow-GRPO", "measured by others on its LoRA")
    print_table(f"{first.method}, {first.protocol}", columns, rows)


@app.command()
def data(
    task: Annotated[str, typer.Argument(help="ocr or pickscore")],
    source: Annotated[Path | None, typer.Argument(help="A folder with train.txt and test.txt; by default a download.")] = None,
) -> None:
    """Put Flow-GRPO's prompts for the paper scale into data/TASK, checked.

    Example: star data ocr
    """
    from star.tasks.prompt_files import fetch

    console().print(f"prompts in {fetch(task, source)}", soft_wrap=True)


@app.command()
def diff(
    ours: Annotated[
        Path | None, typer.Argument(help="A result file, e.g. results/mini/geneval.csv; by default your latest results.")
    ] = None,
    reference: Annotated[Path | None, typer.Argument(help="Another one; by default the paper's numbers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every row as JSON.")] = False,
) -> None:
    """Your results beside the shipped and the published ones; or a result file beside the paper's numbers or another file.

    Exit code 0 if nothing differs beyond its interval, 1 if something does, 2 if a file cannot be used.

    Example: star diff results/mini/geneval.csv
    """
    if ours is None:
        from star.report.ending import overview

        raise typer.Exit(overview(as_json))
    from star.records.diff import run

    raise typer.Exit(run(ours, reference, as_json))


@app.command()
def report(
    folder: Annotated[
        Path | None, typer.Argument(help="A results folder, e.g. results/mini; by default your latest results.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where the run folders are; need not exist.")] = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="The page; by default report.html in the folder, which has its tables and pictures.")
    ] = None,
) -> None:
    """A results folder as one HTML page, and the same as Markdown beside it; tables and pictures go into the folder.

    Example: star report results/mini --out ours.html
    """
    from star.records.folder import latest_own_results
    from star.report import report as run

    folder = folder or latest_own_results()
    page, markdown = run(folder, runs, out)
    console().print(f"report: {page} and {markdown}", soft_wrap=True)


@convert.command("geneval-detector")
def geneval_detector(
    checkpoint: Annotated[Path, typer.Argument(help="The .pth file of mmdet 2.x.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write; by default data/geneval-detector.")] = None,
    any_checkpoint: Annotated[bool, typer.Option("--any-checkpoint", help="Take another file than the official one.")] = False,
) -> None:
    """GenEval's official Mask2Former, from mmdet's format to transformers'.

    Example: star convert geneval-detector mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth
    """
    from evaluators.geneval.official.convert import FOLDER, run

    console().print("\n".join(run(checkpoint, out or FOLDER, any_checkpoint)), soft_wrap=True)


@mini.command()
def pretrain(
    folder: Annotated[Path, typer.Argument(help="Work folder; continued if it holds a run that was cut off.")],
    install: Annotated[bool, typer.Option(help="Put the result into the package, as its shipped base.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the transformer: 1.4 times faster.")] = False,
    start: Annotated[Path | None, typer.Option(help="Train this pipeline further instead of random weights.")] = None,
    flow_steps: Annotated[int, typer.Option(help="Steps of 64 images for text encoders and transformer.", min=1)] = 20_000,
) -> None:
    """Build a base model from nothing, by a recipe like the shipped one's: about five hours on two cores.

    Example: star mini pretrain runs/base --compile
    """
    from star.mini.pretrain import Recipe, install_base
    from star.mini.pretrain import pretrain as run

    with _resumable():
        pipeline = run(folder, Recipe(compile=compiled, flow_steps=flow_steps), start)
    if install:
        install_base(pipeline)


@mini.command()
def taste(
    folder: Annotated[Path, typer.Argument(help="Work folder; continued if it holds a run that was cut off.")],
    install: Annotated[bool, typer.Option(help="Put the result into the package, as its shipped scorer.")] = False,
    steps: Annotated[int, typer.Option(help="Steps of 32 prompts with four pictures each.", min=1)] = 6000,
) -> None:
    """Rebuild the small CLIP that stands in for PickScore: about three quarters of an hour on two cores.

    Example: star mini taste runs/taste
    """
    from star.mini.taste import Recipe, train
    from star.mini.taste import install as install_taste

    with _resumable():
        model = train(folder, Recipe(steps=steps))
    if install:
        install_taste(model)


@bench.command(epilog=SETTINGS_HELP)
def overhead(overrides: Settings = None) -> None:
    """What STAR's maps cost: epochs with and without them in turn, and the ratio of their times.

    Example: star bench overhead
    """
    _checked(overrides)
    from star.bench.overhead import measure

    _show_means("seconds of an epoch, and their ratio", measure(overrides or []))


@bench.command(epilog=SETTINGS_HELP)
def speed(
    overrides: Settings = None,
    rounds: Annotated[int, typer.Option(help="Epochs that are timed.", min=1)] = 5,
) -> None:
    """How fast training is: epochs here and in Flow-GRPO's loop as published in turn, and the ratios of their times.

    Example: star bench speed --rounds 3
    """
    _checked(overrides)
    from star.bench.speed import measure

    _show_means("ours and Flow-GRPO's loop as published, without judging", measure(overrides or [], rounds))


GRADIENT_HELP = f"""arms= takes the place of method=: flow_grpo and any others, functions as my_module:my_map among them;
star@mix=1 has method.mix=1 for itself. weights= is a run folder, a checkpoint or a file; by default the model's initial
weights, where LoRA's A has no gradient. The table goes to out=runs/results/SCALE/gradient.csv, all gradients to runs/gradient.
{SETTINGS_HELP}"""


@bench.command(epilog=GRADIENT_HELP)
def gradient(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[epochs=12] [arms=A,B] [weights=RUN_OR_FILE] [out=FILE] [KEY=VALUE]..."),
    ] = None,
) -> None:
    """Do the maps help? Signal and noise of every arm's policy gradient at fixed weights, without training; resumable.

    Example: star bench gradient task=geneval epochs=12 arms=flow_grpo,star,star_shifted,oracle
    """
    _checked(own_words(words or [], OWN["gradient"])[1])
    from star.bench.gradient import run

    with _resumable():
        _print_measured(run(words or []))


FIRST_UPDATES_HELP = f"""arms= takes the place of method=, as in star bench gradient. The learning rate is the scale's own; a
lower one (train.lr=5e-4 on the mini scale) keeps arms near each other, where differences can be told best. The rewards of all
epochs go to out=runs/results/SCALE/first_updates.csv; with epochs=30 out=runs/results/SCALE/lasting.csv a report shows
what is left of leads.
{SETTINGS_HELP}"""


@bench.command("first_updates", epilog=FIRST_UPDATES_HELP)
def first_updates(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[epochs=6] [arms=A,B] [seed=0..7] [out=FILE] [KEY=VALUE]..."),
    ] = None,
) -> None:
    """Do the first updates of a training gain more with maps? Arms side by side from the same weights, many seeds; resumable.

    Example: star bench first_updates task=geneval train.lr=5e-4 train.schedule=constant seed=0..7
    """
    _checked(own_words(words or [], OWN["first_updates"])[1])
    from star.bench.first_updates import run

    with _resumable():
        _print_measured(run(words or []))


INFLUENCE_HELP = f"""tokens= are those drawn at every trained step of every rollout. weights= is a run folder, a checkpoint or
a file; by default the model's initial weights. The table goes to out=runs/results/SCALE/influence.csv, all draws to
runs/influence.
{SETTINGS_HELP}"""


@bench.command(epilog=INFLUENCE_HELP)
def influence(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[prompts=48] [tokens=16] [weights=RUN_OR_FILE] [out=FILE] [KEY=VALUE]..."),
    ] = None,
) -> None:
    """What does the noise of one token do? It is drawn anew, all else fixed: changes of image and reward; resumable.

    Example: star bench influence task=geneval prompts=48 tokens=16
    """
    _checked(own_words(words or [], OWN["influence"])[1])
    from star.bench.influence import run

    with _resumable():
        _print_measured(run(words or []))


BENCH_GPU_HELP = f"""only= picks steps, budget=600 is the command's time in seconds: a step that would not fit is left out.
out=runs/results/gpu is the folder of the table and of all figures. {SETTINGS_HELP} scale=paper is the scale here. Without a
GPU a model of toy size shows that every step runs."""


@bench.command(epilog=BENCH_GPU_HELP)
def gpu(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[only=A,B] [budget=SECONDS] [out=FOLDER] [KEY=VALUE]...")
    ] = None,
) -> None:
    """What one GPU does, at true size and with random weights: pace, memory, arithmetic, and the parts beside the model.

    Example: star bench gpu only=machine,on_policy,pace budget=300
    """
    from star.bench.gpu.run import run

    with _resumable(lambda: "what was measured is written down"):
        raise typer.Exit(run(words or []))


@bench.command(epilog=SETTINGS_HELP)
def localisation(
    overrides: Settings = None,
    image: Annotated[Path | None, typer.Option(help="Write a picture of the configured blocks' maps.")] = None,
) -> None:
    """Where the maps lie: share of relevance on the objects over their share of the area, per block and step.

    Example: star bench localisation --image maps.png
    """
    _checked(overrides)
    from star.bench.localisation import measure, picture, shown

    if image and (image.suffix != ".png" or not image.parent.is_dir()):
        raise UserError(f"--image {image}: name a .png file in a folder that exists")
    if image and image.exists():
        raise UserError(f"--image {image}: there is such a file, which would be overwritten; name another")
    result = measure(overrides or [], drawn=image is not None)
    _print_measured(shown(result))
    if image:
        picture(result, image)


def main() -> None:
    """Entry point: bad input is one line and exit code 2, a run that was stopped one line and exit code 1."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called; a run goes on without
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (to the end)
    # Before the libraries are imported: they would warn of optional packages that nothing here uses.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of loading; nothing is downloaded
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for train.deterministic; later cuBLAS does not look
    os.environ["MPLBACKEND"] = "agg"  # a notebook exports its own, which may not be installed here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the letters of a name shows the rest
    let_segments_grow()
    keep_freed_memory()
    if is_first():
        _tell_odd(sys.argv[1:])
    with report_errors(), written_out():
        app(prog_name="star")


def _tell_odd(words: Sequence[str]) -> None:
    """Say which words of a command have no effect or hardly the one that was meant; they are allowed."""
    last: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and not key.startswith("-"):
            if last.setdefault(key, value) != value:
                several = f" ({key}={last[key]},{value} is both, for star matrix)" if key in ("task", "method", "seed") else ""
                note(f"{key} is given more than once; the last counts, {word}{several}")
            last[key] = value
    of_paper = list(words[:1]) == ["calibrate"] or list(words[:2]) == ["bench", "gpu"]
    if last.get("preset", "null") != "null" and last.get("scale", "paper" if of_paper else "mini") == "mini":
        note(
            f"preset={last['preset']} is a budget of the paper's scale, and this is the mini scale: add scale=paper or drop it"
        )


@contextmanager
def report_errors() -> Iterator[None]:
    """Inside, an error that has a reason ends the process with one line and its exit code, any other with a traceback and
    :data:`CRASHED`."""
    try:
        with own_errors():
            yield
    except UserError as error:
        _fail(str(error), 2)
    except RunStopped as error:
        _fail(str(error), 1)
    except Interrupted as interrupt:
        _fail(str(interrupt), 130)
    except BrokenPipeError as error:
        if not unread(sys.stdout, sys.stderr):
            _fail(f"{type(error).__name__}: a process that this one talked to has ended", 1)
        _end(UNREAD)
    except OSError as error:  # of a place that nobody looked at before: a full disk behind standard output, say
        place = error.filename or ("what is printed" if error.errno == errno.ENOSPC else type(error).__name__)
        reason = " ".join((error.strerror or str(error)).split())
        _fail(f"{place}: {reason}", 2)
    except Exception:
        traceback.print_exc()
        sys.exit(CRASHED)


def _checked(overrides: Sequence[str] | None, own_folder: bool = True) -> "Config":
    """The settings, before torch is imported, for which a mistyped word would wait for seconds."""
    from star import config

    return config.load(overrides or [], own_folder)


@contextmanager
def _resumable(told: Callable[[], str] = lambda: "the same command goes on where it was") -> Iterator[None]:
    """Inside, an interruption says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {told()}") from None


def _fail(message: str, code: int) -> NoReturn:
    with suppress(OSError):  # nobody could be told
        console(stderr=True).print(f"star: {message}", soft_wrap=True)
    _end(code)


def _end(code: int) -> NoReturn:
    let_go(sys.stdout, sys.stderr)
    for worker in multiprocessing.active_children():
        worker.kill()  # Python would wait for what they do, and one that hangs never ends
    sys.exit(code)


def _at_home(word: str) -> str:
    name, equals, value = word.partition("=")
    if not equals:  # in quotes; ``~key`` takes a setting away
        return os.path.expanduser(word) if word.startswith("~/") else word
    return name + equals + os.path.expanduser(value)


def _print_measured(found: "Shown") -> None:
    print_table(found.title, found.columns, found.rows)
    console().print(found.below, soft_wrap=True)


def _show_means(title: str, means: Sequence[tuple[str, "Estimate"]]) -> None:
    if is_first():
        _show(title, [(what, mean.value, mean.stderr) for what, mean in means])


def _show(title: str, scores: Sequence[tuple[str, float, float | None]], below: str = "") -> None:
    rows = [
        (metric, f"{value:.4f}", "" if stderr is None or stderr != stderr else f"{stderr:.4f}")
        for metric, value, stderr in scores
    ]
    print_table(title, ("metric", "value", "± standard error"), rows)
    if below:
        console().print(below, soft_wrap=True)
