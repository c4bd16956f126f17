from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import SIDE, save_tiny_clip
from tiny_detector import image_of

from evaluators.geneval.official import clips
from evaluators.geneval.official.clips import TransformersClip
from evaluators.geneval.official.colors import Colors, crop, pixels
from evaluators.geneval.prompts import PALETTE
from evaluators.geneval.rules import Detection
from star.common.errors import UserError


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return TransformersClip(save_tiny_clip(tmp_path_factory.mktemp("clip") / "random_clip"))


def masked(image, box, rng):
    return Detection(box, 1.0, mask=rng.random(image.shape[:2]) < 0.8)


def naive_color(clip, image, name, detection):
    """One object in plain steps: Pillow's composite and crop, three texts per colour, in their order."""
    shown, grey = Image.fromarray(image), Image.new("RGB", image.shape[1::-1], "#999")
    shown = Image.composite(shown, grey, Image.fromarray(detection.mask)).crop(detection.box)
    best, found = -np.inf, None
    vector = clip.pictures(pixels(np.asarray(shown), SIDE)[None])[0].double()
    for color in PALETTE:
        texts = [f"a photo of a {color} {name}", f"a photo of a {color}-colored {name}", f"a photo of a {color} object"]
        means = sum(row / row.norm() for row in clip.texts(texts).double())
        score = float(vector @ means / means.norm())
        best, found = (score, color) if score > best else (best, found)
    return found


def test_colors_are_those_of_plain_steps(clip):
    rng = np.random.default_rng(0)
    colors, named = Colors(clip), []
    for seed in range(20):
        image = image_of(seed, 70, 50)
        objects = [masked(image, box, rng) for box in ((3.0, 4.0, 40.0, 30.0), (0.0, 0.0, 50.0, 70.0), (9.0, 9.0, 10.0, 12.0))]
        found = colors(image, "circle", objects)
        assert found == [naive_color(clip, image, "circle", detection) for detection in objects]
        named += found
    assert len(set(named)) > 1


def test_of_colors_that_are_equally_near_the_first_is_taken(clip, monkeypatch):
    monkeypatch.setattr(clip, "texts", lambda wanted: torch.ones(len(wanted), 4))
    monkeypatch.setattr(clip, "pictures", lambda batch: torch.ones(len(batch), 4))
    found = Colors(clip)(image_of(0, 40, 40), "circle", [Detection((0, 0, 40, 40), 1.0)] * 2)
    assert found == [PALETTE[0]] * 2 == ["red", "red"]


def test_texts_of_a_class_are_embedded_once(clip, monkeypatch):
    asked = []
    texts = clip.texts
    monkeypatch.setattr(clip, "texts", lambda wanted: asked.append(wanted) or texts(wanted))
    colors, image = Colors(clip), image_of(0, 40, 40)
    for name in ("circle", "star", "circle"):
        colors(image, name, [Detection((0, 0, 40, 40), 1.0)] * 17)
    assert [len(wanted) for wanted in asked] == [30, 30]
    assert asked[0][3:6] == ["a photo of a orange circle", "a photo of a orange-colored circle", "a photo of a orange object"]


def test_the_background_is_grey_and_the_box_is_cut_out():
    image = np.full((6, 8, 3), 10, np.uint8)
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:7] = True
    shown = crop(image, Detection((2.0, 1.0, 7.0, 5.0), 1.0, mask=mask))
    assert shown.shape == (4, 5, 3)
    assert (shown[1:3, 1:] == 10).all() and (shown[0] == 153).all() and (shown[:, 0] == 153).all()
    assert np.array_equal(crop(image, Detection((2.0, 1.0, 7.0, 5.0), 1.0)), image[1:5, 2:7])


@pytest.mark.parametrize(("size", "corner"), [((40, 61), (0, 8)), ((61, 40), (8, 0)), ((32, 35), (0, 2)), ((32, 33), (0, 0))])
def test_the_centre_is_cut_as_torchvision_cuts_it(size, corner):
    """Offsets are rounded half to even: (48 - 32) / 2 = 8, (35 - 32) / 2 = 1.5 -> 2, (33 - 32) / 2 = 0.5 -> 0."""
    image = image_of(2, *size)
    short = min(size)
    resized = Image.fromarray(image).resize((32 * size[1] // short, 32 * size[0] // short), Image.Resampling.BICUBIC)
    top, left = corner
    expected = np.asarray(resized, np.float32)[top : top + 32, left : left + 32] / 255
    mean, std = (np.float32(v) for v in (((0.48145466, 0.4578275, 0.40821073)), ((0.26862954, 0.26130258, 0.27577711))))
    assert np.allclose(pixels(image, 32).numpy(), ((expected - mean) / std).transpose(2, 0, 1), atol=1e-6)


def test_quick_gelu_is_asserted(clip, tmp_path):
    assert clip.name.endswith("-quick_gelu-fp32")
    with pytest.raises(UserError, match="has the activation gelu, but OpenAI's has quick_gelu"):
        TransformersClip(save_tiny_clip(tmp_path / "gelu", "gelu"))


def test_flow_grpos_server_computes_with_the_ordinary_gelu(clip, tmp_path):
    folder = save_tiny_clip(tmp_path / "random_clip")
    other = TransformersClip(folder, activation="gelu")
    assert other.name == clip.name.replace("quick_gelu", "gelu")
    batch = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert (clip.pictures(batch) - other.pictures(batch)).abs().max() > 1e-4
    assert (clip.texts(["a red star"]) - other.texts(["a red star"])).abs().max() > 1e-4


def test_what_is_missing_is_one_line_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="^[^\n]*`hf download openai/clip-vit-large-patch14 --revision 32bd[^\n]*` gets it$"):
        TransformersClip()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="^the colours of GenEval cannot load their CLIP from [^\n]*empty[^\n]*$"):
        TransformersClip(tmp_path / "empty")
    if find_spec("open_clip") is None:
        with pytest.raises(UserError, match="pip install 'star-rl\\[open-clip\\]'$"):
            clips.published_open_clip("cpu")
