import io

import numpy as np
import pandas as pd
import pytest
import torch
from geneval_layout import save_folder
from PIL import Image
from tiny_clip import save_tiny_clip
from tiny_detector import image_of, save_detector, stored

from evaluators.geneval import evaluate, prompts
from evaluators.geneval.official import clips, compat, engines, mask2former, mmdetection
from evaluators.geneval.official.convert import FOLDER_VARIABLE
from evaluators.geneval.official.engines import ENGINES, OfficialDetector
from evaluators.geneval.official.instances import Instances
from evaluators.geneval.rules import Detection
from evaluators.score import score
from star.common.errors import UserError
from star.config import load


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny detector and a tiny CLIP."""
    root = tmp_path_factory.mktemp("weights")
    return save_detector(root, stored()[0]).folder, save_tiny_clip(root / "random_clip")


@pytest.fixture
def tiny(folders, monkeypatch):
    """The engines' weights, found as users name theirs."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(folders[0]))
    monkeypatch.setenv(clips.FOLDER_VARIABLE, str(folders[1]))


class FakeNetwork:
    """Finds a dog in the left half and a cat in the right; remembers what it saw."""

    name = "fake-1"

    def __init__(self):
        self.seen = []

    def __call__(self, images, floor=0.0):
        assert floor == 0.3
        for image in images:
            self.seen.append(image)
            masks = torch.zeros(2, *image.shape[:2], dtype=torch.bool)
            half = image.shape[1] // 2
            masks[0, :, :half], masks[1, :, half:] = True, True
            boxes = torch.tensor([[0, 0, half, len(image)], [half, 0, image.shape[1], len(image)]], dtype=torch.float32)
            yield Instances(torch.tensor([16, 15]), torch.tensor([0.9, 0.8]), boxes, masks)


class RedOrBlue:
    """A CLIP that tells red from blue by the pictures' channels."""

    name, side, device = "channels", 8, torch.device("cpu")

    def texts(self, texts):
        return torch.tensor([[float("red" in text.split()), float("blue" in text.split()), 0.1] for text in texts])

    def pictures(self, pixels):
        return torch.stack([pixels[:, 0].mean((1, 2)), pixels[:, 2].mean((1, 2)), torch.zeros(len(pixels))], dim=1)


def test_classes_boxes_and_masks_are_passed_on():
    detector = OfficialDetector(FakeNetwork(), RedOrBlue())
    (found,) = detector([image_of(0, 20, 30)])
    assert detector.name == "fake-1+channels"
    assert found == {
        "dog": [Detection((0, 0, 15, 20), pytest.approx(0.9))],
        "cat": [Detection((15, 0, 30, 20), pytest.approx(0.8))],
    }
    assert found["cat"][0].mask[:, 15:].all() and not found["cat"][0].mask[:, :15].any()


@pytest.mark.parametrize("flow_grpo_compat", [False, True])
def test_red_stays_red_for_the_colors(flow_grpo_compat):
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :15, 0], image[:, 15:, 2] = 255, 255
    detector = OfficialDetector(FakeNetwork(), RedOrBlue(), flow_grpo_compat)
    records = [prompts.color_attr("dog", "red", "cat", "blue"), prompts.color_attr("dog", "blue", "cat", "red")]
    assert [verdict.correct for verdict in evaluate.verdicts(records, [image] * 2, detector)] == [True, False]


def test_flow_grpos_detector_sees_a_jpeg_with_red_and_blue_exchanged():
    image, network = image_of(0, 24, 24), FakeNetwork()
    detector = OfficialDetector(network, RedOrBlue(), flow_grpo_compat=True)
    detector([image])
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")  # Pillow's defaults: quality 75, 4:2:0
    assert np.array_equal(network.seen[0], np.asarray(Image.open(buffer))[..., ::-1])
    assert detector.name == "fake-1+channels+flow_grpo_compat"


def test_the_padded_mean_counts_the_first_images_twice():
    values = np.random.default_rng(0).random(2212)
    expected = (values.sum() + values[:28].sum()) / 2240
    for processes in (4, 8, 16, 32):
        assert compat.padded_mean(values, 14, processes) == pytest.approx(expected)
    for processes in (1, 2):  # 158 batches
        assert compat.padded_mean(values, 14, processes) == pytest.approx(values.mean())
    assert compat.padded_mean([1, 0, 0], 2, 2) == 0.5  # 1 0 | 0 1
    assert compat.padded_mean([1, 0], 2, 3) == 0.5


def test_the_padded_mean_is_reported_for_compatible_protocols_only():
    """And of all images alone: of fewer it would be a mean of a few, all of the easiest kinds."""
    prompts = [str(number // 4) for number in range(2212)]
    correct = [number < 1120 for number in range(2212)]
    rows = pd.DataFrame({"tag": "counting", "prompt": prompts, "correct": correct, "strict": False, "score": 0.5})
    for protocol in ("geneval-v1/a+b+flow_grpo_compat", "geneval-v1/a+b"):
        for part in (rows, rows[::4]):
            summary = {score.metric: score for score in evaluate.summarise(part.assign(protocol=protocol))}
            padded = "geneval_official_padded_micro" in summary
            assert padded == (protocol.endswith("compat") and len(part) == 2212)
            if padded:
                assert summary["geneval_official_padded_micro"].value == pytest.approx((1120 + 28) / 2240)


def test_a_folder_is_scored_by_the_engines(tmp_path, tiny, folders, monkeypatch):
    records = [prompts.colors("orange", "red"), prompts.counting("dog", 2), prompts.position("cat", "left of", "dog")]
    save_folder(tmp_path / "run", records, [[image_of(seed, 40, 56)] for seed in range(3)])
    monkeypatch.setattr(mask2former, "PROXY", folders[0])
    digest = mask2former.official(folders[0], "cpu").name.split("-")[1]
    protocols = {
        "mask2former": f"geneval-v1/mask2former-{digest}-unofficial+random_clip@",
        "mask2former_flow_grpo_compat": f"geneval-v1/mask2former-{digest}-unofficial+random_clip@",
        "hf-coco": "geneval-v1/proxy-hf-coco-detector@",
    }
    precision = "fp16" if torch.cuda.is_available() else "fp32"
    for engine, protocol in protocols.items():
        scores = score("geneval", str(tmp_path / "run"), engine=engine)
        assert scores["protocol"][0].startswith(protocol)
        assert scores["images"].max() == 3
        clip = ("-gelu-{}+flow_grpo_compat" if "compat" in engine else "-quick_gelu-{}").format(precision)
        assert scores["protocol"][0].endswith(clip)
    assert len(pd.read_csv(tmp_path / "run" / "geneval.csv")) == 3


def test_the_paper_scale_names_an_engine_that_there_is():
    assert load(["scale=paper", "task=geneval"]).evaluators["geneval"] in ENGINES


def test_engines_that_cannot_be_had_say_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in (FOLDER_VARIABLE, mmdetection.FILE_VARIABLE, clips.FOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="no geneval engine 'yolo'; there are: mini, mask2former, .*, mmdet, .*hf-coco$"):
        evaluate.detector("yolo")
    for engine in ENGINES:
        with pytest.raises(UserError, match="gets |pip install"):
            engines.make(engine)


def test_without_mmdet_its_engine_says_how_to_install_it(monkeypatch):
    def absent(name):
        raise ImportError(name)

    mmdetection.load_mmdet.cache_clear()
    monkeypatch.setattr(mmdetection.importlib, "import_module", absent)
    with pytest.raises(UserError, match="pip install 'star-rl\\[mmdet\\]'$"):
        mmdetection.load_mmdet()
