import json
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from transformers import CLIPModel

from evaluators.geneval.prompts import MINI, TAGS, color_attr, colors, counting, draw, position, single_object, two_object
from evaluators.geneval.shapes import RGB, SIZE
from evaluators.pickscore import score as pickscore
from evaluators.pickscore.score import PickScore
from star.common.files import weights_digest
from star.common.shipped import Shipped
from star.mini import taste
from star.mini.scenes import Object, draw_scene
from star.mini.taste import Look, Preferences, Recipe, alignment
from star.mini.work import Checkpoint, pixels

BEST = Look(1.0, 1.0, 1.0)


def things(*words):
    """Objects like "red circle", from left to right."""
    pairs = [word.split() for word in words]
    return [Object(name, color, np.zeros(0), (20 * i, 0, 20 * i + 9, 9)) for i, (color, name) in enumerate(pairs)]


RED_RING = colors("ring", "red")
RING_AND_STAR = color_attr("ring", "red", "star", "blue")


@pytest.mark.parametrize(
    ("record", "shown", "wanted"),
    [
        (RED_RING, ["red ring"], 1),
        (RED_RING, ["blue ring"], 0.6),
        (RED_RING, ["red star"], 0.4),
        (RED_RING, ["blue star"], 0),
        (RED_RING, [], 0),
        (RED_RING, ["blue star", "red ring"], 1 - 0.25),
        (RED_RING, ["blue ring", "red star"], 0.6 - 0.25),
        (single_object("ring"), ["green ring"], 1),
        (single_object("ring"), ["green star", "red star"], 0),
        (RING_AND_STAR, ["blue star", "red ring"], 1),
        (RING_AND_STAR, ["blue ring", "red star"], 0.6),
        (RING_AND_STAR, ["red ring"], 0.5),
        (RING_AND_STAR, ["red ring", "red star"], (1 + 0.6) / 2),
        (two_object("ring", "star"), ["red star", "red heart"], 0.5),
        (counting("star", 3), ["red star", "blue star"], 2 / 3),
        (counting("star", 2), ["red star"] * 4, 1 - 2 * 0.25),
        (position("ring", "left of", "star"), ["red ring", "red star"], 1),
        (position("ring", "right of", "star"), ["red ring", "red star"], 1 - 0.5),
        (position("ring", "right of", "star"), ["red star"], 0.5),
        (position("ring", "right of", "star"), ["red star", "red ring", "red star"], 1 - 0.25),
    ],
)
def test_alignment(record, shown, wanted):
    assert alignment(record, things(*shown)) == pytest.approx(wanted)


def test_drawn_scenes_are_aligned_and_mistakes_cost():
    rng = np.random.default_rng(0)
    lower = 0
    for tag in TAGS * 12:
        record = draw(tag, MINI, rng)
        assert alignment(record, draw_scene(record, rng)[1]) == 1
        clauses = taste.mistaken(taste._flat(record), rng)
        shown = draw_scene({"include": clauses}, rng)[1] if clauses else []
        lower += alignment(record, shown) < 1
        again = taste.mistaken(clauses, rng)
        assert len(again) <= taste.MOST_CLAUSES
        if again:
            draw_scene({"include": again}, rng)
    assert lower == 12 * len(TAGS)


def test_an_inventory_lists_what_is_on_a_picture_from_left_to_right():
    assert taste.inventory(things("red ring", "blue star")[::-1]) == "red ring blue star"
    assert taste.inventory([]) == ""
    rng = np.random.default_rng(0)
    record = color_attr("ring", "red", "star", "blue")
    assert taste.draw_picture(record, record["include"][:1], BEST, rng).inventory == "red ring"


def test_an_empty_picture_has_no_quality_but_its_cleanness():
    rng = np.random.default_rng(0)
    picture = taste.draw_picture(colors("ring", "red"), [], Look(sharpness=1, contrast=0.75, cleanness=0.5), rng)
    assert picture.inventory == "" and picture.utility == pytest.approx(taste.QUALITY * 0.5 / 3)
    assert taste.draw_picture(colors("ring", "red"), colors("ring", "red")["include"], BEST, rng).utility == 32


def test_looks_do_what_they_say(monkeypatch):
    monkeypatch.setattr(taste, "WOBBLE", 0.0)
    monkeypatch.setattr(taste, "GRAIN", 0.0)
    rng = np.random.default_rng(1)
    record = colors("square", "yellow")
    image, (square,) = draw_scene(record, rng)
    inside, outside = square.mask == 1, square.mask == 0

    def spoilt(**degrees):
        return taste.spoilt(image, square.mask, Look(**{**vars(BEST), **degrees}), rng).astype(float)

    assert np.abs(spoilt() - image).max() <= 1
    ground = image[outside].mean(0)
    faded = spoilt(contrast=0.0)
    assert faded[outside] == pytest.approx(image[outside], abs=1)
    assert faded[inside].mean(0) - ground == pytest.approx((image[inside].mean(0) - ground) * 0.35, abs=1)
    noisy = spoilt(cleanness=0.5)
    assert np.std(noisy[outside] - image[outside]) == pytest.approx(11, rel=0.1)
    assert noisy[inside] == pytest.approx(image[inside], abs=1)
    blurred = gaussian_filter(image.astype(float), (1, 1, 0))
    assert spoilt(sharpness=0.5) == pytest.approx(blurred, abs=1)


def test_wobble_moves_shapes_a_little():
    rng = np.random.default_rng(2)
    image, (ring,) = draw_scene(colors("ring", "black"), rng)
    moved = taste.wobbled(np.dstack([image, ring.mask]), 1.0, rng)
    assert moved.shape == (SIZE, SIZE, 4)
    changed = np.abs(moved[..., 3] - ring.mask).mean() / ring.mask.mean()
    assert 0.02 < changed < 0.5
    assert moved[moved[..., 3] > 0.99][:, :3].mean(0) == pytest.approx(RGB["black"], abs=25)


def test_preferences_follow_bradley_and_terry():
    rng = np.random.default_rng(3)
    utilities = np.array([0.0, 1.0, -0.5, 3.0])
    rates = np.mean([taste.preferred(utilities, rng) for _ in range(20_000)], axis=0)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    wanted = [1 / (1 + math.exp(utilities[b] - utilities[a])) for a, b in pairs]
    assert rates == pytest.approx(wanted, abs=0.015)


def test_groups_are_keyed_and_their_first_picture_is_aligned(monkeypatch):
    drawn = []

    def spy(record, objects):
        drawn.append((record["prompt"], alignment(record, objects)))
        return drawn[-1][1]

    monkeypatch.setattr(taste, "alignment", spy)
    text, images, inventories, wins = Preferences(4)[7]
    same, again, listed, won = Preferences(4)[7]
    assert text == same and inventories == listed and torch.equal(images, again) and torch.equal(wins, won)
    assert not torch.equal(images, Preferences(4)[8][1]) and not torch.equal(images, Preferences(5)[7][1])
    assert images.shape == (4, 3, SIZE, SIZE) and images.min() >= -1 and images.max() <= 1
    assert len(inventories) == 4 and wins.shape == (6,) and set(wins.tolist()) <= {0.0, 1.0}
    for index in range(10):
        drawn.clear()
        prompt = Preferences(6)[index][0]
        assert drawn[0] == (prompt, 1.0) and len(drawn) == 4


def test_held_out_pairs_differ_as_told():
    for pair in taste.held_out_pairs(8, "quality"):
        difference = (pair.pictures[0].utility - pair.pictures[1].utility) / taste.QUALITY
        assert 0 < abs(difference) < 1
    distances = []
    for pair in taste.held_out_pairs(8, "alignment"):
        # Same look: what is left is a difference of alignments, a sum of a few fractions.
        steps = (pair.pictures[0].utility - pair.pictures[1].utility) / taste.ALIGNMENT * 60
        assert abs(steps) > 1 and steps == pytest.approx(round(steps), abs=1e-6)
        distances.append(steps)
    assert len(set(distances)) > 1
    assert len({pair.prompt for pair in taste.held_out_pairs(8)}) > 1


def test_agreement_counts_pairs_that_the_score_orders_as_the_utility_does():
    pairs = taste.held_out_pairs(6)
    utilities = {id(picture.image): picture.utility for pair in pairs for picture in pair.pictures}

    class Known:
        sign = 1

        def score(self, prompts, images):
            assert prompts == [pair.prompt for pair in pairs]
            return self.sign * np.array([utilities[id(image)] for image in images])

    scorer = Known()
    assert taste.agreement(scorer, pairs) == 1
    scorer.sign = -1
    assert taste.agreement(scorer, pairs) == 0
    flipped = pairs[:2] + [pair._replace(pictures=pair.pictures[::-1]) for pair in pairs[2:]]
    assert taste.agreement(scorer, flipped) == 0
    utilities[id(pairs[0].pictures[0].image)] = -np.sign(pairs[0].pictures[0].utility - pairs[0].pictures[1].utility) * 99
    assert taste.agreement(scorer, pairs) == pytest.approx(1 / 6)


@pytest.mark.parametrize(("differ", "least"), [("both", 0.85), ("alignment", 0.9), ("quality", 0.88)])
def test_the_shipped_clip_agrees_with_the_hidden_utility(differ, least):
    # On 1,000 pairs 0.900, 0.952 and 0.937; the bounds leave three standard errors of 300.
    assert taste.agreement(pickscore.engine("mini"), taste.held_out_pairs(300, differ)) >= least


def test_losses_are_those_of_naive_loops():
    scores = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0)) * 3
    wins = torch.tensor([[1.0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 1, 0]])
    s = scores.double().numpy()
    total, count = 0.0, 0
    for i in range(3):
        p = 0
        for a in range(4):
            for b in range(a + 1, 4):
                winner, loser = (a, b) if wins[i, p] else (b, a)
                total -= math.log(1 / (1 + math.exp(s[i, i, loser] - s[i, i, winner])))
                p, count = p + 1, count + 1
    assert taste.preference_loss(scores, wins).item() == pytest.approx(total / count, rel=1e-5)

    texts, total = ["a ring", "a star", "a ring"], 0.0
    for i in range(3):
        rivals = [j for j in range(3) if j == i or texts[j] != texts[i]]
        total -= math.log(math.exp(s[i, i, 0]) / sum(math.exp(s[j, i, 0]) for j in rivals))
    assert taste.contrastive_loss(scores[:, :, 0], texts).item() == pytest.approx(total / 3, rel=1e-5)


def test_training_resumes_exactly_and_exports_a_plain_clip(tmp_path, monkeypatch):
    recipe = Recipe(steps=4, batch=2, warmup=1, workers=0, held_out=3, save_every=2)
    whole = taste.train(tmp_path / "whole", recipe)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "log", _failing(Checkpoint.log, at=2))  # the third step is lost
        taste.train(tmp_path / "cut", recipe)
    cut = taste.train(tmp_path / "cut", recipe)
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    assert (whole / "model.safetensors").stat().st_size < 4e6

    line = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["stage"] == "agreement" and all(0 <= line[kind] <= 1 for kind in taste.DIFFERENCES)

    trained = torch.load(tmp_path / "whole" / "taste.pt")["model"]
    loaded = CLIPModel.from_pretrained(whole)
    assert loaded.dtype == torch.float32
    for name, value in loaded.state_dict().items():
        if name in trained and trained[name].is_floating_point():
            assert torch.equal(value, trained[name].half().float()), name
    untrained = taste.untrained().state_dict()["visual_projection.weight"]
    assert not torch.equal(untrained, loaded.visual_projection.weight)

    scorer = PickScore(whole)
    text, images, *_ = Preferences(0)[0]
    pictures = list(((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    tokens = taste.clip_tokenizer()([text], return_tensors="pt")
    with torch.no_grad():
        wanted = loaded(tokens.input_ids, pixels(pictures), tokens.attention_mask).logits_per_text[0]
    assert scorer.score([text] * 4, pictures) == pytest.approx(wanted.numpy(), abs=1e-4)

    shipped = tmp_path / "shipped"
    for module in (taste, pickscore):
        monkeypatch.setattr(module, "MINI_PICKSCORE", Shipped(shipped, "shipped"))
    shipped.mkdir()
    (shipped / "README.md").write_text("card")
    taste.install(whole)
    assert (shipped / "README.md").read_text() == "card"
    assert pickscore.engine("mini").name == f"shipped@{weights_digest(whole)[:8]}"


def test_worker_processes_draw_the_same_groups():
    loader = torch.utils.data.DataLoader(Preferences(1), 2, sampler=range(4, 8), num_workers=1)
    texts, inventories = [], []
    for batch, _, listed, _ in loader:
        texts += batch
        inventories += [list(group) for group in zip(*listed, strict=True)]
    groups = [Preferences(1)[index] for index in range(4, 8)]
    assert texts == [group[0] for group in groups] and inventories == [group[2] for group in groups]


def _failing(log, at):
    def wrapped(self, step, **values) -> None:
        if step == at:
            raise KeyboardInterrupt
        log(self, step, **values)

    return wrapped
