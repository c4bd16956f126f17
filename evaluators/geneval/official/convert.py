"""``star convert geneval-detector``: the published checkpoint as a folder in transformers' format."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from transformers import Mask2FormerConfig, SwinConfig

from evaluators.geneval.official import names
from evaluators.geneval.official.checkpoint import SHA256, read, verify
from evaluators.geneval.prompts import COCO_NAMES
from star.common.errors import UserError
from star.common.files import check_output, check_room, model_digest

FOLDER = Path("data/geneval-detector")
FOLDER_VARIABLE = "STAR_GENEVAL_DETECTOR"
RECORD = "conversion.json"
FILES = {"config.json", "model.safetensors", RECORD}


class Conversion(NamedTuple):
    """What a conversion did.

    Attributes:
        folder: what was written.
        sha256: of the checkpoint.
        official: whether that is the published one.
        tensors, parameters: how many there are in the result.
        sizes: of the network.
    """

    folder: Path
    sha256: str
    official: bool
    tensors: int
    parameters: int
    sizes: names.Sizes


def convert(checkpoint: Path, folder: Path = FOLDER, any_checkpoint: bool = False) -> Conversion:
    """Write a detector's folder: config.json, model.safetensors, and :data:`RECORD`, which says where they come from.

    Args:
        checkpoint: a Mask2Former with Swin of mmdet 2.x.
        folder: an earlier conversion or an empty folder there is replaced; anything else is not, nor is a conversion to which
            something was added.
        any_checkpoint: accept a checkpoint other than the published one.

    Raises:
        UserError: the checkpoint is missing, not the published one or of another kind; the folder holds something else.
    """
    place = folder.resolve()  # "." has no name
    check_room(place.parent, "the detector")
    found = verify(checkpoint, any_checkpoint)
    _check_place(folder, checkpoint)
    content = read(checkpoint)
    weights = {name: tensor for name, tensor in content.items() if not names.derived(name)}
    sizes = _sizes(checkpoint, weights)
    positions = names.window_positions(sizes.window)
    if any(not torch.equal(content[name], positions) for name in content.keys() - weights.keys()):
        raise UserError(f"{checkpoint} orders the positions of a window in another way than mmdet 2.x")
    result = names.converted(weights, sizes)
    place.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{place.name}.", suffix=".part", dir=place.parent) as part:
        made = Path(part, place.name)  # within, since that folder is for its owner alone
        made.mkdir()
        save_file(result, made / "model.safetensors", {"format": "pt"})
        config(sizes).save_pretrained(made)
        record = {"checkpoint": checkpoint.name, "sha256": found, "weights": model_digest(made)}
        (made / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)
    parameters = sum(tensor.numel() for tensor in result.values())
    return Conversion(folder, found, found == SHA256, len(result), parameters, sizes)


def _check_place(folder: Path, checkpoint: Path) -> None:
    """Raise if the folder to be replaced holds anything but what a conversion writes."""
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if RECORD not in held and (held or folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} exists and is no conversion; name another folder with --out")
    check_output(folder, [checkpoint])
    if more := held - FILES:
        raise UserError(
            f"{folder} holds {min(more)}, which is no part of a conversion; move it, or name another folder with --out"
        )


def run(checkpoint: Path, folder: Path = FOLDER, any_checkpoint: bool = False) -> list[str]:
    """:func:`convert`, and then what it did, in lines of text."""
    done = convert(checkpoint, folder, any_checkpoint)
    which = "GenEval's official detector" if done.official else "NOT GenEval's official detector; protocols will say so"
    swin = f"Swin {done.sizes.width}, blocks {done.sizes.depths}"
    return [
        f"{checkpoint}: sha256 {done.sha256}, {which}",
        f"{done.tensors} tensors with {done.parameters:,} parameters ({swin}, {done.sizes.queries} queries): renamed, fused "
        "queries, keys and values split, channels of the patch merging put in transformers' order",
        f"written to {done.folder}; `star evaluate task=geneval images=FOLDER engine=mask2former` uses "
        + ("it" if done.folder == FOLDER else f"it with {FOLDER_VARIABLE}={done.folder}"),
    ]


def config(sizes: names.Sizes) -> Mask2FormerConfig:
    """The configuration with which transformers builds a detector of these sizes."""
    backbone = SwinConfig(
        embed_dim=sizes.width,
        depths=list(sizes.depths),
        num_heads=list(sizes.heads),
        window_size=sizes.window,
        drop_path_rate=0.0,
        out_features=[f"stage{i + 1}" for i in range(len(sizes.depths))],
    )
    return Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=sizes.channels,
        mask_feature_size=sizes.channels,
        hidden_dim=sizes.channels,
        num_attention_heads=sizes.detector_heads,
        encoder_layers=sizes.pixel_layers,
        encoder_feedforward_dim=sizes.pixel_hidden,
        decoder_layers=sizes.layers + 1,  # transformers counts the prediction before the first layer
        dim_feedforward=sizes.hidden,
        num_queries=sizes.queries,
        id2label=dict(enumerate(COCO_NAMES)),
        label2id={name: index for index, name in enumerate(COCO_NAMES)},
        architectures=["Mask2FormerForUniversalSegmentation"],
    )


def _sizes(checkpoint: Path, weights: dict) -> names.Sizes:
    """The sizes of a network, after a check that its weights are all there and no others."""
    try:
        sizes = names.measure(weights)
    except KeyError as error:
        hint = " (it has the names of mmdet 3.x)" if any(".cross_attn." in name for name in weights) else ""
        raise UserError(f"{checkpoint} is no Mask2Former with Swin of mmdet 2.x{hint}: it has no {error}") from None
    needed = {origin.name for origin in names.origins(sizes).values()}
    for fault, kind in ((needed - weights.keys(), "lacks"), (weights.keys() - needed, "has more than a Mask2Former:")):
        if fault:
            raise UserError(f"{checkpoint} {kind} {sorted(fault)[0]}, in all {len(fault)} tensors")
    if sizes.classes != len(COCO_NAMES):
        raise UserError(f"{checkpoint} knows {sizes.classes} classes, not the {len(COCO_NAMES)} of COCO")
    return sizes
