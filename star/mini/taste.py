"""A taste for pictures of the mini world: a hidden utility, preferences drawn from it, and a small CLIP that learns them.

Pictures are drawn and degraded by known amounts, so that the utility is exact::

    utility = 16 alignment + 16 quality

Alignment is how much of the prompt a picture shows. Quality is the mean of its sharpness, the contrast of its objects with the
ground, and the cleanness of its ground; without objects the first two are 0. The CLIP sees none of these numbers: only which
of two pictures was preferred, and words for what is on each.
"""

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import linear_sum_assignment
from scipy.special import expit
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from evaluators.geneval import prompts
from evaluators.geneval.prompts import MINI, Record
from evaluators.geneval.rules import relations
from evaluators.geneval.shapes import SIZE
from evaluators.pickscore.score import PickScore
from star.common.files import append_jsonl
from star.common.shipped import MINI_PICKSCORE
from star.mini.scenes import SIDES, Object, background, draw_scene, to_uint8
from star.mini.work import METRICS, Checkpoint, loads_in_single, optimizers, pixels, set_lr, steps, working_in
from star.models.tokenizers import TEXT_LENGTH, clip_tokenizer

Clause = dict

ALIGNMENT, QUALITY = 16.0, 16.0
# In alignment: the credit for an object's shape if its colour is wrong, and the deductions for an object too many and for a
# relation that does not hold.
SHAPE_CREDIT, EXTRA, RELATION = 0.6, 0.25, 0.5
# At degree 0: standard deviation of the blur in pixels, share of the way from object to ground, noise in grey levels.
BLUR, FADE, NOISE = 2.0, 0.65, 22.0
# Faults of generated pictures that do not lower the utility: largest std of the wobble of shapes, in pixels, and of the grain,
# in grey levels.
WOBBLE, GRAIN = 1.2, 3.0
TAG_SHARES = dict(zip(prompts.TAGS, (0.1, 0.2, 0.1, 0.2, 0.1, 0.3), strict=True))
# Objects that a scene has room for, without and with a relation between two of them.
MOST_CLAUSES, MOST_RELATED = max(SIDES), 3
CANDIDATES = 4
FIRST, SECOND = np.array(list(combinations(range(CANDIDATES), 2))).T
HELD_OUT_SEED = 1_000_003
DIFFERENCES = ("both", "alignment", "quality")


@dataclass(frozen=True)
class Look:
    """Degrees in [0, 1] of what makes a picture good to look at; 1 is best."""

    sharpness: float
    contrast: float
    cleanness: float

    @property
    def quality(self) -> float:
        """The mean of the three, in [0, 1]."""
        return (self.sharpness + self.contrast + self.cleanness) / 3


class Picture(NamedTuple):
    """uint8 (SIZE, SIZE, 3), its utility for the prompt that it was drawn for, and a list of what is really on it."""

    image: np.ndarray
    utility: float
    inventory: str


class Pair(NamedTuple):
    """Two pictures for one prompt; their utilities differ."""

    prompt: str
    pictures: tuple[Picture, Picture]


@dataclass(frozen=True)
class Recipe:
    """How the shipped CLIP was made; a batch counts prompts, each with four pictures and six preferences."""

    seed: int = 0
    steps: int = 6000
    batch: int = 32
    lr: float = 1e-3
    warmup: int = 100
    contrastive: float = 0.5
    workers: int = 1
    held_out: int = 1000
    save_every: int = 200


def alignment(record: Record, objects: Sequence[Object]) -> float:
    """How much of what a record asks for is there, in [0, 1].

    Objects are matched with clauses so as to maximise the sum of credits: 1 for the right object, 0.6 if only its colour is
    wrong, 0.4 if only its shape is. The mean credit loses 0.25 per object too many, and 0.5 if a relation is broken.
    """
    wanted = _flat(record)
    credits = np.array([[_credit(clause, thing) for thing in objects] for clause in wanted])
    matched = linear_sum_assignment(credits, maximize=True)
    extra = max(0, len(objects) - len(wanted))
    broken = not all(_holds(clause, wanted, objects) for clause in wanted if "position" in clause)
    return max(0.0, float(credits[matched].sum()) / len(wanted) - EXTRA * extra - RELATION * broken)


def draw_record(rng: np.random.Generator) -> Record:
    """A random prompt, of each kind with the share in :data:`TAG_SHARES`."""
    return prompts.draw(rng.choice(prompts.TAGS, p=list(TAG_SHARES.values())), MINI, rng)


def draw_look(rng: np.random.Generator) -> Look:
    """Degrees that are often near 0 or 1: reinforcement learning starts from the worst pictures and moves to the best."""
    return Look(*rng.beta(0.5, 0.5, 3).tolist())


def draw_clauses(record: Record, rng: np.random.Generator) -> list[Clause]:
    """The objects of a picture for a record: as asked, with one or two mistakes, or those of another record."""
    match rng.choice(4, p=(0.35, 0.35, 0.15, 0.15)):
        case 3:
            return _flat(draw_record(rng))
        case mistakes:
            clauses = _flat(record)
            for _ in range(mistakes):
                clauses = mistaken(clauses, rng)
            return clauses


def mistaken(clauses: Sequence[Clause], rng: np.random.Generator) -> list[Clause]:
    """The clauses with one more thing wrong: a shape, a colour, swapped colours, a relation, an object missing or too many."""
    colored = [i for i, clause in enumerate(clauses) if "color" in clause]
    related = [i for i, clause in enumerate(clauses) if "position" in clause]
    possible = {
        "shape": bool(clauses),
        "missing": bool(clauses),
        "extra": len(clauses) < (MOST_RELATED if related else MOST_CLAUSES),
        "color": bool(colored),
        "swap": len({clauses[i]["color"] for i in colored}) > 1,
        "relation": bool(related),
    }
    changed = [dict(clause) for clause in clauses]
    match rng.choice([kind for kind, applies in possible.items() if applies]):
        case "shape":
            changed[rng.integers(len(changed))]["class"] = _other(MINI.names, [c["class"] for c in clauses], rng)
        case "missing":
            del changed[rng.integers(len(changed))]
            for clause in changed:  # a relation needs both
                clause.pop("position", None)
        case "extra":
            changed.append({"class": _other(MINI.names, [], rng), "count": 1})
        case "color":
            clause = changed[rng.choice(colored)]
            clause["color"] = _other(MINI.colors, [clause["color"]], rng)
        case "swap":
            for i, j in zip(colored, colored[1:] + colored[:1], strict=True):
                changed[i]["color"] = clauses[j]["color"]
        case "relation":
            clause = changed[rng.choice(related)]
            relation, target = clause["position"]
            clause["position"] = [_other(prompts.RELATIONS, [relation], rng), target]
    return changed


def draw_picture(record: Record, clauses: Sequence[Clause], look: Look, rng: np.random.Generator) -> Picture:
    """A picture of the clauses' objects with a look, and its utility for the record."""
    if clauses:
        image, objects = draw_scene({"include": list(clauses)}, rng)
    else:
        image, objects = to_uint8(background(rng)), []
        look = replace(look, sharpness=0.0, contrast=0.0)  # these are of objects, and there are none
    cover = np.clip(sum((thing.mask for thing in objects), np.zeros((SIZE, SIZE), np.float32)), 0, 1)
    utility = ALIGNMENT * alignment(record, objects) + QUALITY * look.quality
    return Picture(spoilt(image, cover, look, rng), utility, inventory(objects))


def inventory(objects: Sequence[Object]) -> str:
    """Colours and shapes from left to right, such as "red ring blue star"."""
    return " ".join(f"{thing.color} {thing.name}" for thing in sorted(objects, key=lambda thing: thing.box))


def spoilt(image: np.ndarray, cover: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """A picture degraded to a given look, with wobble and grain added.

    Args:
        image: uint8 (SIZE, SIZE, 3).
        cover: where objects are, (SIZE, SIZE) in [0, 1].
        look: how good it is to look.
        rng: source of all noise.
    """
    layers = np.dstack([image.astype(np.float32), cover])
    layers = wobbled(layers, WOBBLE * max(0.0, rng.uniform(-0.5, 1)), rng)
    canvas, objects = layers[..., :3], layers[..., 3:]
    ground = np.average(canvas.reshape(-1, 3), axis=0, weights=1 - objects.ravel())
    canvas = canvas + FADE * (1 - look.contrast) * objects * (ground - canvas)
    sigma = BLUR * (1 - look.sharpness)
    canvas, objects = gaussian_filter(canvas, (sigma, sigma, 0)), gaussian_filter(objects, (sigma, sigma, 0))
    # Noise comes after the blur, which would remove it, in blotches of one or two pixels.
    blotch = rng.integers(1, 3)
    noise = rng.normal(0, 1, (SIZE // blotch, SIZE // blotch, 3)).repeat(blotch, 0).repeat(blotch, 1)
    canvas = canvas + NOISE * (1 - look.cleanness) * (1 - objects) * noise
    return to_uint8(canvas + rng.uniform(0, GRAIN) * rng.normal(0, 1, canvas.shape))


def wobbled(layers: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    """Layers (SIZE, SIZE, C), displaced by a smooth random field: normal values of std ``pixels``, interpolated."""
    fields = [Image.fromarray(rng.normal(0, pixels, (6, 6)).astype(np.float32)) for _ in range(2)]
    shift = np.stack([np.asarray(field.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for field in fields])
    places = np.mgrid[0:SIZE, 0:SIZE] + shift
    return np.dstack([map_coordinates(layer, places, order=1, mode="nearest") for layer in np.moveaxis(layers, -1, 0)])


def preferred(utilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whether FIRST[p] beats SECOND[p], bool (6,), drawn by Bradley-Terry: P = ``sigmoid(u_first - u_second)``."""
    return rng.random(len(FIRST)) < expit(utilities[FIRST] - utilities[SECOND])


class Preferences(Dataset):
    """The groups of a seed: a prompt, four pictures, of which the first is aligned, their inventories and preferences.
    Pictures are (4, 3, SIZE, SIZE) as ``pixels`` gives them, preferences (6,), 1 where the first of a pair wins, else 0."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, index: int) -> tuple[str, Tensor, list[str], Tensor]:
        rng = np.random.default_rng((self.seed, index))
        record = draw_record(rng)
        shown = [_flat(record), *(draw_clauses(record, rng) for _ in range(CANDIDATES - 1))]
        pictures = [draw_picture(record, clauses, draw_look(rng), rng) for clauses in shown]
        wins = preferred(np.array([picture.utility for picture in pictures]), rng)
        images, inventories = pixels([picture.image for picture in pictures]), [picture.inventory for picture in pictures]
        return record["prompt"], images, inventories, torch.from_numpy(wins).float()


def held_out_pairs(count: int, differ: str = "both") -> list[Pair]:
    """Pairs that training never sees.

    Args:
        count: how many.
        differ: in what the two pictures differ: ``alignment`` (their looks are the same, as far as there are objects to
            see them in), ``quality`` (the scene is the same) or ``both``.
    """
    return [_pair((HELD_OUT_SEED, DIFFERENCES.index(differ), index), differ) for index in range(count)]


def agreement(scorer: PickScore, pairs: Sequence[Pair]) -> float:
    """Share of pairs that the score orders as the utility does."""
    texts = [pair.prompt for pair in pairs]
    first, second = (scorer.score(texts, [pair.pictures[side].image for pair in pairs]) for side in (0, 1))
    better = [pair.pictures[0].utility > pair.pictures[1].utility for pair in pairs]
    return float(np.mean((first > second) == better))


def untrained() -> CLIPModel:
    """The small CLIP with random weights (from torch's global generator): patches of 8 pixels, a context of 16 tokens."""
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": TEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
    }
    # A scale of 30 puts scores near those of the published model, around 20.
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=96, logit_scale_init_value=math.log(30))
    )


def train(folder: Path, recipe: Recipe) -> Path:
    """Train the small CLIP on preferences and save it in transformers' format, in half precision.

    Pictures are drawn as they are needed, by worker processes, and none is seen twice. ``metrics.jsonl`` holds the losses
    and, at the end, the agreement with the hidden utility on held-out pairs.

    Args:
        folder: work folder; created, or continued if it holds a run that was cut off.
        recipe: sizes, lengths and rates.

    Returns:
        the folder of the finished model, ``folder / "clip"``.

    Raises:
        UserError: the work folder cannot be written to, or holds something else.
    """
    with working_in(folder, ("taste.pt", "clip", "clip.part")):
        return _trained(folder, recipe)


def _trained(folder: Path, recipe: Recipe) -> Path:
    torch.manual_seed(recipe.seed)
    # Waiting for a thread that shares its core with a worker is slower than doing without it.
    torch.set_num_threads(max(1, torch.get_num_threads() - recipe.workers))
    model = untrained().train()
    tokenizer = clip_tokenizer()
    muon, adam = optimizers(dict(model.named_parameters()), recipe.lr, r"\.(self_attn|mlp)\.")
    state = Checkpoint(folder / "taste.pt", {"model": model, "muon": muon, "adam": adam})
    groups = range(state.step * recipe.batch, recipe.steps * recipe.batch)
    batches = DataLoader(Preferences(recipe.seed), recipe.batch, sampler=groups, num_workers=recipe.workers)
    left = steps("taste", state, recipe.steps, folder, recipe.save_every)
    for step, (texts, images, inventories, wins) in zip(left, batches, strict=False):
        for optimizer in (muon, adam):
            set_lr(optimizer, recipe.lr, step, recipe.steps, recipe.warmup)
        described = [shown[group] for group in range(len(texts)) for shown in inventories]
        tokens = tokenizer([*texts, *described], padding=True, truncation=True, return_tensors="pt")
        logits = model(tokens.input_ids, images.flatten(0, 1), tokens.attention_mask).logits_per_text
        scores = logits[: len(texts)].unflatten(1, (len(texts), CANDIDATES))
        preference = preference_loss(scores, wins)
        aligned = contrastive_loss(scores[:, :, 0], texts)
        shown = contrastive_loss(logits[len(texts) :], described)
        loss = preference + recipe.contrastive * (aligned + shown)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
        model.zero_grad()
        state.log(step, loss=loss, preference=preference, aligned=aligned, shown=shown)
    exported = export(model, folder / "clip")
    scorer = PickScore(exported)
    agreements = {kind: agreement(scorer, held_out_pairs(recipe.held_out, kind)) for kind in DIFFERENCES}
    append_jsonl(folder / METRICS, {"stage": "agreement", "pairs": recipe.held_out} | agreements)
    print(" ".join(f"{kind} {share:.3f}" for kind, share in agreements.items()), flush=True)
    return exported


def preference_loss(scores: Tensor, wins: Tensor) -> Tensor:
    """Mean of ``-log sigmoid(score of the preferred - score of the other)`` over the pairs of each prompt.

    Args:
        scores: (B, B, 4) of text i and picture k of group j.
        wins: (B, 6), 1 where the first of a pair is preferred.
    """
    own = scores[torch.arange(len(scores)), torch.arange(len(scores))]
    return F.binary_cross_entropy_with_logits(own[:, FIRST] - own[:, SECOND], wins)


def contrastive_loss(logits: Tensor, texts: Sequence[str]) -> Tensor:
    """Which text describes each picture: CLIP's loss (arXiv 2103.00020) in one of its two directions.

    Prompts with their aligned pictures put scores of different prompts on one scale; inventories with their pictures teach the
    model to see. The other direction, which picture a text describes, would penalise higher scores for better quality.

    Args:
        logits: (N, N) of text i and the picture that text j describes.
        texts: the N texts; copies of a picture's text are not its negatives.
    """
    numbers = torch.tensor([texts.index(text) for text in texts])
    same = (numbers[:, None] == numbers) & ~torch.eye(len(texts), dtype=torch.bool)
    return F.cross_entropy(logits.masked_fill(same, -math.inf).T, torch.arange(len(texts)))


def export(model: CLIPModel, folder: Path) -> Path:
    """Save model, tokenizer and image processor; stored in half precision, loaded in single."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.to(torch.float16).save_pretrained(part)
    loads_in_single(part / "config.json")
    clip_tokenizer().save_pretrained(part)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return folder


def install(model: Path) -> None:
    """Put a finished model in place of the one that ships with the package; the model card stays."""
    MINI_PICKSCORE.folder.mkdir(exist_ok=True)
    for file in model.iterdir():
        shutil.copy(file, MINI_PICKSCORE.folder / file.name)


def _flat(record: Record) -> list[Clause]:
    """A clause per object."""
    return [{**clause, "count": 1} for clause in record["include"] for _ in range(clause["count"])]


def _credit(clause: Clause, thing: Object) -> float:
    shape = float(clause["class"] == thing.name)
    if "color" not in clause:
        return shape
    return SHAPE_CREDIT * shape + (1 - SHAPE_CREDIT) * (clause["color"] == thing.color)


def _holds(clause: Clause, wanted: Sequence[Clause], objects: Sequence[Object]) -> bool:
    """Whether a clause's relation holds between the first objects of its classes; True if either is missing."""
    relation, target = clause["position"]
    boxes = {thing.name: thing.box for thing in reversed(objects)}
    subject, reference = clause["class"], wanted[target]["class"]
    return not {subject, reference} <= boxes.keys() or relation in relations(boxes[subject], boxes[reference])


def _other(words: Sequence[str], taken: Sequence[str], rng: np.random.Generator) -> str:
    free = [word for word in words if word not in taken]
    return free[rng.integers(len(free))]


def _pair(key: tuple[int, ...], differ: str) -> Pair:
    rng = np.random.default_rng(key)
    record = draw_record(rng)
    while True:
        clauses, look, scene = draw_clauses(record, rng), draw_look(rng), rng.integers(2**32, size=2)
        other_clauses = clauses if differ == "quality" else draw_clauses(record, rng)
        other_look = look if differ == "alignment" else draw_look(rng)
        first = draw_picture(record, clauses, look, np.random.default_rng(scene[0]))
        second = draw_picture(record, other_clauses, other_look, np.random.default_rng(scene[int(differ != "quality")]))
        if not math.isclose(first.utility, second.utility):
            return Pair(record["prompt"], (first, second))
