import json

import pytest
import torch
from tiny_detector import IMAGES, SIDES, TINY, image_of, random_weights, save_checkpoint, save_detector, stored

from evaluators.geneval.official import checkpoint, convert, mask2former, names
from evaluators.geneval.official.mask2former import Mask2Former
from evaluators.geneval.official.preprocess import prepare
from star.cli import main
from star.common.errors import UserError

SHAPES, EXPECTED = stored()


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector"), SHAPES)


def errors(folder):
    """Largest differences of class and mask logits from mmdet's own, over the stored images."""
    network = Mask2Former(folder, "tiny", **SIDES)
    found = []
    for seed, (kind, size) in enumerate(IMAGES.items()):
        classes, masks = network.logits([prepare(image_of(seed, *size), **SIDES)])
        pairs = ((classes[0], f"{kind}_classes"), (masks[0, :, ::2, ::2], f"{kind}_masks"))
        found += [float((ours - torch.from_numpy(EXPECTED[name])).abs().max()) for ours, name in pairs]
    return found


def test_the_converted_network_computes_what_mmdet_computes(detector):
    assert detector.sizes == TINY
    assert max(errors(detector.folder)) < 1e-4


def test_a_checkpoint_inside_the_folder_to_be_replaced_stays(tmp_path):
    folder = tmp_path / "detector"
    folder.mkdir()
    (folder / convert.RECORD).write_text("{}")
    checkpoint_file = save_checkpoint(folder / "own.pth", SHAPES)
    with pytest.raises(UserError, match="is an input of this command"):
        convert.convert(checkpoint_file, folder, any_checkpoint=True)
    assert checkpoint_file.exists()


def test_nothing_is_deleted_that_a_conversion_did_not_make(tmp_path):
    file = save_checkpoint(tmp_path / "tiny.pth", SHAPES)
    beside = tmp_path / "out.partial"
    beside.mkdir()
    for _ in range(2):
        convert.convert(file, tmp_path / "out", any_checkpoint=True)
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="out holds notes.txt, which is no part of a conversion; move it, or name another"):
        convert.convert(file, tmp_path / "out", any_checkpoint=True)
    assert beside.is_dir() and (tmp_path / "out/notes.txt").read_text() == "mine"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*convert.FILES, "notes.txt"}


@pytest.mark.parametrize("old", [True, False])
def test_a_conversion_that_fails_leaves_no_trace(tmp_path, monkeypatch, old):
    file = save_checkpoint(tmp_path / "tiny.pth", SHAPES)
    if old:
        convert.convert(file, tmp_path / "out", any_checkpoint=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(convert, "model_digest", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert.convert(file, tmp_path / "out", any_checkpoint=True)
    assert sorted(tmp_path.rglob("*")) == before


def swapped_norms(ours, theirs, norms, right=names._norms_and_hidden):
    return right(ours, theirs, norms[::-1])


MISTAKES = {
    "_neighbours_first": names._as_it_is,
    "_third": lambda index: lambda weights: weights.chunk(3)[(1, 0, 2)[index]],
    "_norms_and_hidden": swapped_norms,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_comparison_would_see_a_mistake(name, tmp_path, monkeypatch):
    monkeypatch.setattr(names, name, MISTAKES[name])
    assert min(errors(save_detector(tmp_path, SHAPES).folder)) > 1e-2


def test_each_weight_is_used_and_once(detector):
    origins = names.origins(TINY)
    used = {origin.name for origin in origins.values()}
    assert used == {name for name in SHAPES if not names.derived(name)}
    assert detector.parameters == sum(torch.Size(SHAPES[name]).numel() for name in used)
    assert detector.tensors == len(origins)


def test_only_the_official_checkpoint_is_taken_unless_told(tmp_path, monkeypatch):
    file = save_checkpoint(tmp_path / "tiny.pth", SHAPES)
    with pytest.raises(UserError, match="^[^\n]*tiny.pth is not the detector of GenEval[^\n]*curl -LO https[^\n]*$"):
        convert.convert(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(checkpoint, "SHA256", checkpoint.sha256(file))
    monkeypatch.setattr(convert, "SHA256", checkpoint.SHA256)
    monkeypatch.setattr(mask2former, "SHA256", checkpoint.SHA256)
    assert convert.convert(file, tmp_path / "out").official
    assert mask2former.official(tmp_path / "out", "cpu").name == f"mask2former-{checkpoint.SHA256[:8]}"


def test_another_checkpoint_is_called_unofficial(detector):
    name = mask2former.official(detector.folder, "cpu").name
    assert name == f"mask2former-{detector.sha256[:8]}-unofficial"


def test_a_conversion_that_was_changed_is_refused(tmp_path):
    folder = save_detector(tmp_path, SHAPES).folder
    record = json.loads((folder / convert.RECORD).read_text())
    (folder / convert.RECORD).write_text(json.dumps(record | {"weights": "0" * 64}))
    with pytest.raises(UserError, match="are not what was converted"):
        mask2former.official(folder, "cpu")
    (folder / convert.RECORD).write_text(json.dumps(record))
    settings = json.loads((folder / "config.json").read_text())  # other heads fit the same weights
    (folder / "config.json").write_text(json.dumps(settings | {"num_attention_heads": 2 * settings["num_attention_heads"]}))
    with pytest.raises(UserError, match="are not what was converted"):
        mask2former.official(folder, "cpu")
    for content in ("{}", "[" * 100_000, '{"sha256": "a", "sha256": "b", "weights": "c"}'):
        (folder / convert.RECORD).write_text(content)
        with pytest.raises(UserError, match="conversion.json cannot be read"):
            mask2former.official(folder, "cpu")


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    file = save_checkpoint(tmp_path / "tiny.pth", SHAPES)
    with pytest.raises(UserError, match="is no conversion"):
        convert.convert(file, tmp_path, any_checkpoint=True)
    for _ in range(2):  # a conversion is
        convert.convert(file, tmp_path / "out", any_checkpoint=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny.pth"]


class Trap:
    """Pickled, it would create a file when it is read."""

    def __reduce__(self):
        return open, ("trap", "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"x": Trap()}}, "cannot be read as a checkpoint of plain weights"),
        ({"state_dict": {"x": 3}}, "has no state_dict of tensors"),
        ([1, 2], "has no state_dict of tensors"),
        ({"state_dict": {"x": torch.zeros(1)}}, "no Mask2Former with Swin of mmdet 2.x: it has no"),
    ],
)
def test_other_files_are_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "other.pth")
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        convert.convert(tmp_path / "other.pth", tmp_path / "out", any_checkpoint=True)
    assert not (tmp_path / "trap").exists() and not (tmp_path / "out").exists()


def test_faults_of_a_checkpoint_are_named(tmp_path):
    def refused(weights):
        torch.save({"state_dict": weights}, tmp_path / "x.pth")
        with pytest.raises(UserError) as caught:
            convert.convert(tmp_path / "x.pth", tmp_path / "out", any_checkpoint=True)
        return str(caught.value)

    weights = random_weights(SHAPES)
    assert "mmdet 3.x" in refused({names.newer(name): value for name, value in weights.items()})
    assert "lacks panoptic_head.mask_embed.2.bias" in refused(
        {name: value for name, value in weights.items() if name != "panoptic_head.mask_embed.2.bias"}
    )
    assert "has more than a Mask2Former: neck.weight" in refused(weights | {"neck.weight": torch.zeros(1)})
    index = next(name for name in weights if names.derived(name))
    assert "orders the positions of a window" in refused(weights | {index: weights[index].T})
    head = {f"panoptic_head.cls_embed.{kind}": torch.zeros(54, *size) for kind, size in (("weight", (32,)), ("bias", ()))}
    assert "knows 53 classes, not the 80 of COCO" in refused(weights | head)
    (tmp_path / "x.pth").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        convert.convert(tmp_path / "x.pth", tmp_path / "out", any_checkpoint=True)


def command(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["star", *map(str, words)])
    try:
        main()
    except SystemExit as done:
        return done.code
    return 0


def test_the_command_says_what_it_did(tmp_path, monkeypatch, capsys):
    file = save_checkpoint(tmp_path / "tiny.pth", SHAPES)
    words = ("convert", "geneval-detector", file, "--out", tmp_path / "out")
    assert command(monkeypatch, *words) == 2
    assert "is not the detector of GenEval" in capsys.readouterr().err
    assert command(monkeypatch, *words, "--any-checkpoint") == 0
    said = capsys.readouterr().out
    assert "NOT GenEval's official detector" in said
    assert f"STAR_GENEVAL_DETECTOR={tmp_path / 'out'}" in said
    assert command(monkeypatch, "convert", "geneval-detector", tmp_path / "none.pth") == 2
    assert "no such file" in capsys.readouterr().err
