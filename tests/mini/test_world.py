from functools import cache, partial

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from tiny import small_pipeline

from evaluators.geneval.prompts import MINI, TAGS, draw, generate
from evaluators.geneval.rules import relations
from evaluators.geneval.shapes import RGB, SIZE
from star.common.errors import UserError
from star.method.tokens import token_columns
from star.mini import signs
from star.mini.pretrain import Recipe, pretrain
from star.mini.scenes import draw_scene
from star.mini.score import score
from star.mini.world import example
from star.models.ema import EMA
from star.models.tokenizers import TEXT_LENGTH, clip_tokenizer, t5_tokenizer
from star.tasks import sign_words
from star.tasks.core_words import of_quote, of_record


@pytest.mark.parametrize("tag", TAGS)
def test_scenes_show_what_the_record_asks_for(tag):
    for seed in range(20):
        rng = np.random.default_rng((7, seed))
        record = draw(tag, MINI, rng)
        image, objects = draw_scene(record, rng)
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        wanted = sorted(name for c in record["include"] for name in [c["class"]] * c["count"])
        assert sorted(o.name for o in objects) == wanted
        by_name = {o.name: o for o in objects}
        for clause in record["include"]:
            found = by_name[clause["class"]]
            assert clause.get("color") in (None, found.color)
            if "position" in clause:
                relation, target = clause["position"]
                assert relation in relations(found.box, by_name[record["include"][target]["class"]].box)
        for item in objects:
            middle = image[item.mask > 0.99].astype(float).mean(0)
            assert np.abs(middle - RGB[item.color]).max() < 25
        overlap = sum(o.mask > 0 for o in objects) if objects else np.zeros(1)
        assert overlap.max() == 1


@pytest.mark.parametrize("tag", ["two_object", "color_attr", "counting"])
def test_objects_without_relations_have_places_of_their_own(tag):
    half, places = SIZE // 2, set()
    for seed in range(30):
        rng = np.random.default_rng((8, seed))
        record = draw(tag, MINI, rng)
        objects = draw_scene(record, rng)[1]
        if len(objects) == 2:
            first, second = objects
            assert first.box[2] <= half <= second.box[0]
            assert tag == "counting" or [first.name, second.name] == [clause["class"] for clause in record["include"]]
        else:
            corners = np.array([item.box for item in objects])
            low, high = corners[:, :2] // half, (corners[:, 2:] - 1) // half
            assert np.array_equal(low, high) and len(np.unique(low, axis=0)) == len(objects)
        places.update(item.box for item in objects)
    assert len(places) > 20


def test_haze_fades_all_objects_alike_and_nothing_else():
    record = draw("color_attr", MINI, np.random.default_rng(1))
    plain, half, full = (draw_scene(record, np.random.default_rng(2), haze) for haze in (1e-9, 0.3, 0.6))
    images = [image.astype(float) for image, _ in (plain, half, full)]
    for item in plain[1]:
        inside = item.mask > 0.99
        by_half, by_full = (np.abs(image - images[0])[inside].mean() for image in images[1:])
        contrast = np.abs(images[0][inside] - images[0][~inside].mean(0)).mean()
        assert by_full == pytest.approx(2 * by_half, rel=0.1, abs=1) and by_full < 0.7 * contrast
    outside = sum(item.mask for item in plain[1]) == 0
    assert np.array_equal(images[0][outside], images[2][outside])


def test_haze_of_a_sign_fades_its_letters_and_nothing_else():
    drawn = [signs.draw_sign("EXIT", np.random.default_rng(2), haze=haze) for haze in (1e-9, 0.4, 0.8)]
    plain, half, full = (image.astype(float) for image in drawn)
    letters = np.abs(plain - full).max(-1) > 0
    assert 0.02 < letters.mean() < 0.3
    by_half, by_full = (np.abs(image - plain)[letters].mean() for image in (half, full))
    assert by_full == pytest.approx(2 * by_half, rel=0.1, abs=1) and by_full > 10


def test_world_is_keyed_by_seed_and_index():
    image, caption = example(3, 11)
    again, same = example(3, 11)
    other, _ = example(3, 12)
    assert np.array_equal(image, again) and caption == same
    assert not np.array_equal(image, other)


def test_test_words_are_never_drawn_for_training():
    assert len(sign_words.TEST_WORDS) == 128 and not sign_words.TEST_WORDS & set(sign_words.TRAIN_WORDS)
    assert all(len(word) in signs.LENGTHS and set(word) <= set(signs.LETTERS) for word in sign_words.WORDS)
    rng = np.random.default_rng(0)
    assert not {signs.draw_word(rng) for _ in range(3000)} & sign_words.TEST_WORDS
    captions = {example(0, index)[1] for index in range(300)}
    assert not captions & {sign_words.prompt(word) for word in sign_words.TEST_WORDS}


def test_every_caption_fits_and_its_words_have_columns():
    tokenizers = (clip_tokenizer(), clip_tokenizer(), t5_tokenizer())
    rng = np.random.default_rng(0)
    records = [draw(tag, MINI, rng) for tag in TAGS for _ in range(20)]
    texts = [record["prompt"] for record in records] + [sign_words.prompt("QUEEN"), sign_words.prompt("ZIP")]
    for tokenizer in tokenizers:
        ids = tokenizer(texts).input_ids
        assert max(map(len, ids)) <= TEXT_LENGTH
        assert tokenizer.unk_token_id not in ids[0][:-1]
    spans = [of_record(r["prompt"], r) for r in records] + [of_quote(t) for t in texts[-2:]]
    mask = token_columns(tokenizers, texts, spans, clip_length=TEXT_LENGTH, t5_length=TEXT_LENGTH)
    assert mask[-2].sum() >= 7  # five T5 letters, and CLIP's letters or endings
    assert mask.any(1).all()


def test_pretraining_resumes_exactly_and_loads_in_plain_diffusers(tmp_path, monkeypatch):
    recipe = Recipe(
        autoencoder_steps=2,
        autoencoder_batch=2,
        bank=6,
        flow_steps=4,
        flow_batch=2,
        warmup=1,
        score_every=100,
        save_every=2,
    )
    monkeypatch.setattr("star.mini.pretrain.untrained_pipeline", small_pipeline)
    monkeypatch.setattr("star.mini.pretrain.example", cache(example))  # the same five hundred each time
    monkeypatch.setattr("star.mini.pretrain.score", partial(score, steps=2))
    monkeypatch.setattr("star.mini.score.generate", lambda vocabulary: generate(vocabulary)[::4])
    monkeypatch.setattr("star.mini.score.SIGNS", 4)
    whole = pretrain(tmp_path / "whole", recipe)
    monkeypatch.setattr("star.mini.pretrain.score", lambda *given: {})  # once is enough: it draws all test prompts
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        updates = iter([None, None, KeyboardInterrupt()])  # the third step is lost, the second is in the checkpoint
        patch.setattr(EMA, "update", _failing(EMA.update, updates))
        pretrain(tmp_path / "cut", recipe)
    cut = pretrain(tmp_path / "cut", recipe)
    for part in ("transformer", "vae", "text_encoder_3"):
        files = [next((folder / part).glob("*.safetensors")) for folder in (whole, cut)]
        one, other = map(load_file, files)
        assert all(torch.equal(one[name], other[name]) for name in one)
    pipeline = StableDiffusion3Pipeline.from_pretrained(cut)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a photo of a ring", num_inference_steps=2, max_sequence_length=TEXT_LENGTH).images[0]
    assert image.size == (SIZE, SIZE)

    further = pretrain(tmp_path / "further", recipe, start=cut)
    files = [next((folder / "vae").glob("*.safetensors")) for folder in (cut, further)]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(UserError, match="bank.pt holds pictures of another autoencoder or recipe"):
        pretrain(tmp_path / "further", recipe)
    with pytest.raises(UserError, match="flow.pt started from other weights"):
        pretrain(tmp_path / "further", recipe, start=further)


def _failing(update, outcomes):
    def wrapped(self, tensors) -> None:
        if outcome := next(outcomes):
            raise outcome
        update(self, tensors)

    return wrapped
