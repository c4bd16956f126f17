import json
import math
import os
import shutil
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from tiny_clip import SIDE, save_tiny_clip
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from evaluators import hub
from evaluators.geneval.official import clips
from evaluators.pickscore import score as pickscore
from evaluators.pickscore.evaluator import Preference
from evaluators.pickscore.score import PickScore
from evaluators.score import score
from star.bench.gpu.sizes import TRUE
from star.common.errors import UserError
from star.common.files import model_digest
from star.common.shipped import MINI_PICKSCORE, Shipped
from star.models.tokenizers import TEXT_LENGTH, clip_tokenizer

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PROMPTS = ["a photo of a red circle", "a photo of two stars", "a ring", "a photo of a blue cross above a heart"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "random_clip")


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    sizes = [(48, 48), (40, 71), (90, 33), (32, 32)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def naive_score(folder, prompt, image):
    """One pair in float64: Pillow's bicubic to a short side of SIDE, centre crop, CLIP's normalisation, cosine, scale."""
    model = CLIPModel.from_pretrained(folder).double().eval()
    height, width = image.shape[:2]
    factor = SIDE / min(height, width)
    size = (int(width * factor), int(height * factor))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), dtype=np.float64) / 255
    top, left = (size[1] - SIDE) // 2, (size[0] - SIDE) // 2
    crop = resized[top : top + SIDE, left : left + SIDE]
    pixels = np.stack([(crop[..., c] - MEAN[c]) / STD[c] for c in range(3)])
    tokenizer = clip_tokenizer()
    ids = tokenizer(prompt).input_ids
    if len(ids) > TEXT_LENGTH:
        ids = [*ids[: TEXT_LENGTH - 1], tokenizer.eos_token_id]
    with torch.no_grad():
        seen = model.vision_model(torch.tensor(pixels)[None]).pooler_output[0].numpy()
        read = model.text_model(torch.tensor([ids])).pooler_output[0].numpy()
    v = [sum(w * x for w, x in zip(row, seen, strict=True)) for row in model.visual_projection.weight.tolist()]
    t = [sum(w * x for w, x in zip(row, read, strict=True)) for row in model.text_projection.weight.tolist()]
    dot = sum(a * b for a, b in zip(t, v, strict=True))
    norms = math.sqrt(sum(a * a for a in t)) * math.sqrt(sum(b * b for b in v))
    return math.exp(model.logit_scale.item()) * dot / norms


def test_what_gradients_and_patches_are_taken_of_is_what_the_processor_shows(folder, images):
    scorer = PickScore(folder)
    for image in images:
        shown = scorer.processor(Image.fromarray(image), return_tensors="pt").pixel_values
        own = scorer._seen(torch.from_numpy(image)[None] / 255)
        # Pillow rounds what it resizes to whole values, and cuts off what goes beyond 0 and 255.
        near = 1e-6 if min(image.shape[:2]) == SIDE else 0.01
        assert own.shape == shown.shape and (own - shown).abs().mean() < near
    patches = scorer.patches(images[3:])
    whole = scorer.model.vision_model(scorer._seen(torch.from_numpy(images[3])[None] / 255)).last_hidden_state
    assert patches.shape[1] * patches.shape[2] == whole.shape[1] - 1 and patches.shape[1] == patches.shape[2]
    torch.testing.assert_close(patches.flatten(1, 2), whole[:, 1:])


def test_scores_are_those_of_a_naive_computation(folder, images, monkeypatch):
    wanted = [naive_score(folder, prompt, image) for prompt, image in zip(PROMPTS, images, strict=True)]
    assert np.ptp(wanted) > 1
    scorer = PickScore(folder)
    found = scorer.score(PROMPTS, images)
    assert found.dtype == np.float32 and found.shape == (4,)
    assert found == pytest.approx(wanted, abs=2e-4)
    monkeypatch.setattr(pickscore, "BATCH", 3)
    assert scorer.score(PROMPTS, images) == pytest.approx(wanted, abs=2e-4)
    assert scorer.score([], []).shape == (0,)


def test_long_texts_are_cut_at_the_models_context(folder, images):
    long = "a photo of " + "a red circle and a blue square " * 70
    assert PickScore(folder).score([long], images[:1]) == pytest.approx([naive_score(folder, long, images[0])], abs=2e-4)


def test_the_model_is_in_float32_and_in_eval_mode_however_it_is_stored(folder, images, tmp_path):
    model = CLIPModel.from_pretrained(folder)
    model.to(torch.float16).save_pretrained(tmp_path / "half")
    scorer = PickScore(tmp_path / "half", folder)
    assert scorer.model.dtype == torch.float32 and not scorer.model.training
    assert scorer.score(PROMPTS, images) == pytest.approx(PickScore(folder).score(PROMPTS, images), abs=0.1)


def test_the_name_follows_the_weights(folder, tmp_path):
    name = PickScore(folder).name
    assert name.startswith("random_clip@") and PickScore(folder).name == name
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        model.logit_scale += 1
    model.save_pretrained(tmp_path / "random_clip")
    assert PickScore(tmp_path / "random_clip", folder).name != name
    assert Preference(str(folder)).protocol == f"pickscore-v1/{name}"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("config.json", '"num_attention_heads": 2', '"num_attention_heads": 4'),
        ("processor_config.json", "0.48145466", "0.5"),
        ("tokenizer.json", '"single_word": false', '"single_word": true'),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_the_name_follows_all_that_scores_depend_on(folder, tmp_path, file, old, new, beside):
    changed = shutil.copytree(folder, tmp_path / folder.name)
    text = (changed / file).read_text()
    assert text.count(old)
    (changed / file).write_text(text.replace(old, new, 1))
    model, processor = (folder, changed) if beside and file != "config.json" else (changed, None)
    assert PickScore(model, processor).name != PickScore(folder).name


def test_the_shipped_model_keeps_the_name_of_its_weights_and_is_what_results_were_made_with():
    """Whoever changes a file here changes what the shipped rows of this name mean."""
    assert pickscore.engine("mini").name == "taste_weights@19f14e68"
    assert model_digest(MINI_PICKSCORE.folder)[:8] == "deec363e"


def test_a_text_encoder_that_looks_for_another_end_of_a_text_is_refused(folder, tmp_path):
    changed = shutil.copytree(folder, tmp_path / "other")
    settings = json.loads((changed / "config.json").read_text())
    settings["text_config"]["eos_token_id"] = 7
    (changed / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="the tokenizer ends texts with token 1, but its encoder looks for 7; get it again"):
        PickScore(changed)


def test_what_goes_by_its_published_name_computes_as_published(folder, monkeypatch):
    text, vision, width = TRUE.clip_h
    fine = {
        "config": CLIPConfig(text_config=dict(text), vision_config=dict(vision), projection_dim=width),
        "processor": CLIPImageProcessorPil(image_mean=list(MEAN)),
        "tokenizer": lambda text: {"input_ids": [49406, 320, 1125, 539, 320, 2368, 49407]},
    }
    hub.check_published(pickscore.MODEL, pickscore.PUBLISHED, **fine)
    text_heads, size = deepcopy(fine["config"]), CLIPImageProcessorPil(size={"shortest_edge": 336})
    text_heads.text_config.num_attention_heads = 8
    for name, other in (
        ("config", text_heads),
        ("processor", size),
        ("processor", CLIPImageProcessorPil(image_std=[0.5] * 3)),
    ):
        with pytest.raises(UserError, match=f"is not as it was published: {name}.* gets it again$"):
            hub.check_published(pickscore.MODEL, pickscore.PUBLISHED, **(fine | {name: other}))
    monkeypatch.setattr(hub, "cached", lambda repository, revision: folder)
    for load in (lambda: pickscore.engine("pickscore"), clips.TransformersClip):
        with pytest.raises(UserError, match="^[^\n]*is not as it was published: tokens is [^\n]* gets it again$"):
            load()


def test_a_published_model_is_taken_from_the_cache_at_its_commit(folder, monkeypatch):
    def cached(repository, revision):
        if repository != pickscore.MODEL.repository:
            raise LocalEntryNotFoundError("not here")
        assert revision == "a4e4367c6dfa7288a00c550414478f865b875800"
        return folder

    monkeypatch.setattr(hub, "cached", cached)
    assert PickScore(pickscore.MODEL).name == f"PickScore_v1@{folder.name[:8]}"
    with pytest.raises(UserError, match="`hf download laion/CLIP-ViT-H-14.* --revision 1c2b8495.* gets it"):
        pickscore.engine("pickscore")


def test_what_is_missing_is_one_line_with_the_command(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pickscore, "MINI_PICKSCORE", Shipped(tmp_path / "none", "none"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="PickScore needs a model, but there is no folder /no/such/folder$"):
        pickscore.PickScore("/no/such/folder")
    for source in (pickscore.MODEL, "someone/not-in-the-cache"):
        with pytest.raises(UserError, match="`hf download [^\n]*` gets it$"):
            PickScore(source)
    with pytest.raises(UserError, match="`star mini taste` builds it"):
        pickscore.engine("mini")
    with pytest.raises(UserError, match="no pickscore engine 'clip'; there are mini, pickscore"):
        pickscore.engine("clip")


def test_a_folder_that_is_no_clip_model_is_one_line(folder, tmp_path):
    tmp_path.joinpath("empty").mkdir()
    with pytest.raises(UserError, match="^PickScore cannot load its model from [^\n]*empty[^\n]*$"):
        PickScore(tmp_path / "empty")
    partly = tmp_path / "partly"
    model = CLIPModel.from_pretrained(folder)
    kept = {name: value for name, value in model.state_dict().items() if "visual_projection" not in name}
    model.save_pretrained(partly, state_dict=kept)
    with pytest.raises(UserError, match="^[^\n]*the CLIP model lacks weights that [^\n]*: visual_projection[^\n]*$"):
        PickScore(partly, folder)
    settings = json.loads((folder / "config.json").read_text())
    (partly / "config.json").write_text(json.dumps(settings | {"projection_dim": settings["projection_dim"] + 1}))
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "config.json").write_text((partly / "config.json").read_text())
    with pytest.raises(UserError, match="^PickScore cannot load [^\n]*$"):
        PickScore(tmp_path / "whole", folder)
    (partly / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="^PickScore cannot load [^\n]*$"):
        PickScore(partly, folder)
    with pytest.raises(UserError, match="^PickScore cannot load [^\n]*processor from [^\n]*empty[^\n]*$"):
        PickScore(folder, tmp_path / "empty")


def test_wrong_inputs_are_refused(folder, images):
    scorer = PickScore(folder)
    with pytest.raises(ValueError, match="1 prompts for 2 images"):
        scorer.score(PROMPTS[:1], images[:2])
    with pytest.raises(ValueError, match=r"float64 \(4, 4, 3\)"):
        scorer.score(["a ring"], [np.zeros((4, 4, 3))])


def test_a_folder_of_images_is_scored(folder, images, tmp_path):
    scorer = PickScore(folder)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))

    scores = score(
        "pickscore", str(tmp_path / "images"), str(tmp_path / "prompts.txt"), str(folder), str(tmp_path / "out.csv")
    )
    rows = pd.read_csv(tmp_path / "out.csv")
    assert rows["score"].tolist() == pytest.approx(scorer.score(PROMPTS, images).tolist(), abs=1e-4)
    assert set(rows["protocol"]) == set(scores["protocol"]) == {f"pickscore-v1/{scorer.name}"}
    assert scores["value"].tolist() == pytest.approx([rows["score"].mean()])


def test_scoring_does_not_need_diffusers():
    code = "import sys, evaluators.pickscore.score, star.tasks.pickscore; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=300).returncode == 0
