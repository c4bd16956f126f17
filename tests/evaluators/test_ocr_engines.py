import re
import subprocess
import sys
import types
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from evaluators.interface import Text
from evaluators.ocr import paddle
from evaluators.ocr.evaluator import PROTOCOL, TextRendering, engine
from evaluators.ocr.paddle import Paddle
from evaluators.ocr.pool import Pool
from evaluators.ocr.rapid import Rapid
from star.common.errors import UserError
from star.mini import signs
from star.tasks import sign_words

BLANK = np.full((64, 64, 3), 128, np.uint8)


def judge(prompts, images, engine):
    """The verdicts of the evaluator with an engine, in this process."""
    evaluator = TextRendering("rapidocr")
    evaluator.pool = Pool(engine, 0)
    return evaluator.submit([Text(prompt) for prompt in prompts], images)()


def drawn(words, seed):
    return [signs.draw_sign(word, np.random.default_rng((seed, i))) for i, word in enumerate(words)]


@pytest.fixture(scope="module")
def rapid():
    return Rapid()


def test_fresh_signs_are_read_at_native_size(rapid):
    rng = np.random.default_rng(11)
    words = [signs.draw_word(rng) for _ in range(30)] + sorted(sign_words.TEST_WORDS)[1::4]
    verdicts = judge([sign_words.prompt(word) for word in words], drawn(words, 11), rapid)
    assert np.mean([verdict["reward"] for verdict in verdicts]) >= 0.95
    assert np.mean([verdict["exact"] for verdict in verdicts]) >= 0.9
    assert [verdict["target"] for verdict in verdicts] == words


def test_switches_of_another_call_do_not_stick(rapid):
    (sign,) = drawn(["STAR"], 3)
    before = rapid.lines(sign)
    rapid._engine(sign, use_det=False, use_cls=True, use_rec=True)
    rapid._engine(sign, use_det=True, use_cls=False, use_rec=False)
    assert rapid.lines(sign) == before == ("STAR",)


def test_rapidocr_gets_bgr(monkeypatch):
    seen = []

    def recognise(image, **switches):
        seen.append(image)
        return types.SimpleNamespace(txts=("STAR",), boxes=None)

    made, image = Rapid(), np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    monkeypatch.setattr(made, "_engine", recognise)
    assert made.lines(image) == ("STAR",) and made.outlines(image) == []
    assert all(np.array_equal(given[..., channel], image[..., 2 - channel]) for given in seen for channel in range(3))
    assert len(seen) == 2


def test_rapidocr_keeps_lines_of_any_confidence(monkeypatch):
    made = []
    monkeypatch.setattr("rapidocr.RapidOCR", lambda params: made.append(params))
    Rapid()._engine  # noqa: B018
    assert made[0]["Global.text_score"] == 0.0


def test_nothing_to_read_gives_no_lines_and_no_reward(rapid):
    assert rapid.lines(BLANK) == ()
    (verdict,) = judge([sign_words.prompt("STAR")], [BLANK], rapid)
    assert verdict == {"stratum": "all", "reward": 0.0, "exact": False, "target": "STAR", "text": ""}


def test_the_real_engine_works_in_a_worker():
    pool = Pool(Rapid())
    batch = [*drawn(["STAR", "ROBOT"], 3), BLANK]
    assert pool.submit(batch)() == [["STAR"], ["ROBOT"], []]
    pool.close()


def test_engines_by_name(monkeypatch):
    assert TextRendering("rapidocr").protocol.startswith(f"{PROTOCOL}/rapidocr-3.")
    with pytest.raises(
        UserError, match="no ocr engine 'tesseract'; there are: rapidocr, paddleocr, paddleocr_flow_grpo_compat"
    ):
        engine("tesseract")


class FakePaddleOCR:
    """PaddleOCR 3.7's interface, as far as it is used: unknown arguments are errors, an image gives a dict of lists."""

    made: list[dict] = []
    seen: list[np.ndarray] = []
    ARGUMENTS = """text_detection_model_name text_detection_model_dir text_recognition_model_name
        text_recognition_model_dir text_recognition_batch_size use_doc_orientation_classify use_doc_unwarping
        use_textline_orientation text_det_limit_side_len text_det_limit_type text_det_max_side_limit text_det_thresh
        text_det_box_thresh text_det_unclip_ratio text_rec_score_thresh lang ocr_version device engine engine_config
        cpu_threads enable_mkldnn""".split()  # noqa: SIM905

    def __init__(self, **arguments):
        assert arguments.keys() <= set(self.ARGUMENTS)
        self.made.append(arguments)

    def predict(self, image):
        assert isinstance(image, np.ndarray) and image.flags.c_contiguous
        self.seen.append(image)
        found = ["Grand", "OPENING"] if image.any() else []
        return [{"rec_texts": found, "rec_scores": [0.9] * len(found), "dt_polys": []}]


@pytest.fixture
def fake(monkeypatch):
    """A made-up paddleocr 3.7.0 with PaddlePaddle, where neither is installed."""
    module = types.ModuleType("paddleocr")
    module.PaddleOCR = FakePaddleOCR
    monkeypatch.setitem(sys.modules, "paddleocr", module)
    monkeypatch.setattr(paddle, "version", lambda name: "3.7.0")
    monkeypatch.setattr(paddle, "find_spec", lambda name: object())
    monkeypatch.delenv(paddle.MODELS_VARIABLE, raising=False)
    monkeypatch.setattr(FakePaddleOCR, "made", [])
    monkeypatch.setattr(FakePaddleOCR, "seen", [])
    return FakePaddleOCR


def model_folder(folder, names=("PP-OCRv6_small_det", "PP-OCRv6_small_rec"), model="inference.pdiparams"):
    for part, name in zip(("det", "rec"), names, strict=True):
        (folder / part).mkdir(parents=True)
        (folder / part / "inference.yml").write_text(yaml.safe_dump({"Global": {"model_name": name}}))
        (folder / part / model).touch()
    return folder


def test_paddle_uses_the_published_settings(fake):
    made = engine("paddleocr")
    assert made.name == "paddleocr-3.7.0+PP-OCRv4_mobile_det+en_PP-OCRv4_mobile_rec"
    assert fake.made == []  # models are loaded by the first image
    made.lines(BLANK)
    made.lines(BLANK)
    assert fake.made == [
        {
            "text_detection_model_name": "PP-OCRv4_mobile_det",
            "text_recognition_model_name": "en_PP-OCRv4_mobile_rec",
            "text_det_limit_side_len": 960,
            "text_det_limit_type": "max",
            "text_det_thresh": 0.3,
            "text_det_box_thresh": 0.6,
            "text_det_unclip_ratio": 1.5,
            "text_rec_score_thresh": 0.5,
            "text_recognition_batch_size": 6,
            "use_doc_orientation_classify": False,
            "use_doc_unwarping": False,
            "use_textline_orientation": False,
            "device": "cpu",
            "cpu_threads": 1,
            "enable_mkldnn": False,
        }
    ]


def test_paddle_gets_bgr_but_rgb_as_the_published_reward(fake):
    image = np.random.default_rng(0).integers(1, 256, (8, 8, 3), dtype=np.uint8)
    compat = engine("paddleocr_flow_grpo_compat")
    assert compat.name == "paddleocr-3.7.0+PP-OCRv4_mobile_det+en_PP-OCRv4_mobile_rec+flow_grpo_compat"
    assert engine("paddleocr").lines(image) == compat.lines(image) == ["Grand", "OPENING"]
    assert np.array_equal(fake.seen[0][..., 0], image[..., 2]) and np.array_equal(fake.seen[0][..., 2], image[..., 0])
    assert np.array_equal(fake.seen[1], image)
    assert compat.lines(np.zeros_like(image)) == []


def test_paddle_takes_local_models(fake, tmp_path, monkeypatch):
    onnx = model_folder(tmp_path / "onnx", model="inference.onnx")
    monkeypatch.setenv(paddle.MODELS_VARIABLE, str(onnx))
    monkeypatch.setattr(paddle, "find_spec", lambda name: None)
    made = engine("paddleocr")
    assert made.name == "paddleocr-3.7.0+PP-OCRv6_small_det+PP-OCRv6_small_rec"
    made.lines(BLANK)
    assert (
        fake.made[0].items()
        >= {
            "text_detection_model_dir": str(onnx / "det"),
            "text_recognition_model_dir": str(onnx / "rec"),
            "engine": "onnxruntime",
            "engine_config": {"intra_op_num_threads": 1},
        }.items()
    )
    monkeypatch.setattr(paddle, "find_spec", lambda name: object())
    Paddle(models=model_folder(tmp_path / "paddle")).lines(BLANK)
    assert "engine" not in fake.made[1] and fake.made[1]["text_detection_model_dir"] == str(tmp_path / "paddle" / "det")


def test_what_paddle_lacks_is_told(fake, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="det/inference.yml is missing: .*STAR_PADDLEOCR_MODELS"):
        Paddle(models=tmp_path / "none")
    broken = model_folder(tmp_path / "broken")
    (broken / "rec" / "inference.yml").write_text("Hello")
    with pytest.raises(UserError, match="rec/inference.yml does not name its model"):
        Paddle(models=broken)
    monkeypatch.setattr(paddle, "find_spec", lambda name: None)
    assert f'"{paddle.RUNTIME}"' in (Path(__file__).parents[2] / "pyproject.toml").read_text()
    with pytest.raises(UserError, match=re.escape(f"pip install '{paddle.RUNTIME}'")):
        engine("paddleocr")

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(paddle, "version", missing)
    with pytest.raises(UserError, match=r"pip install 'star-rl\[paddleocr\]'"):
        engine("paddleocr")


def test_real_paddleocr_reads_signs_with_the_weights_of_rapidocr(tmp_path):
    pytest.importorskip("paddleocr", reason="needs the extra paddleocr")
    weights = Path(find_spec("rapidocr").origin).parent / "models"
    folder = model_folder(tmp_path, model="inference.onnx")
    for part in ("det", "rec"):
        (file,) = weights.glob(f"PP-OCRv6_{part}_small.onnx")
        (folder / part / "inference.onnx").write_bytes(file.read_bytes())
    write_inference_files(folder)
    real, words = Paddle(models=folder), ["STAR", "ROBOT", "TIGER"]
    assert [list(real.lines(sign)) for sign in drawn(words, 3)] == [[word] for word in words]
    assert list(real.lines(BLANK)) == []


def write_inference_files(folder):
    """What PaddleOCR must know of the models: how to prepare images, and the characters."""
    import onnxruntime

    metadata = onnxruntime.InferenceSession(folder / "rec" / "inference.onnx").get_modelmeta().custom_metadata_map
    decode, keep = {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}}, {"KeepKeys": {"keep_keys": ["image"]}}
    scale = {"NormalizeImage": {"mean": [0.5] * 3, "std": [0.5] * 3, "scale": "1./255.", "order": "hwc"}}
    boxes = {"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.6, "max_candidates": 1000, "unclip_ratio": 1.5}
    contents = {
        "det": {
            "Global": {"model_name": "PP-OCRv6_small_det"},
            "PreProcess": {"transform_ops": [decode, {"DetResizeForTest": None}, scale, {"ToCHWImage": None}, keep]},
            "PostProcess": boxes,
        },
        "rec": {
            "Global": {"model_name": "PP-OCRv6_small_rec"},
            "PreProcess": {"transform_ops": [decode, {"RecResizeImg": {"image_shape": [3, 48, 320]}}, keep]},
            "PostProcess": {"name": "CTCLabelDecode", "character_dict": metadata["character"].splitlines()},
        },
    }
    for part, content in contents.items():
        (folder / part / "inference.yml").write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")


def test_a_folder_is_scored_without_diffusers_or_torch(tmp_path):
    program = """
import sys
from evaluators.score import score
if __name__ == "__main__":
    scores = score("ocr", "images", "prompts.txt", out="out.csv")
    print(scores["value"].tolist(), sorted({"diffusers", "torch", "transformers"} & set(sys.modules)))
"""
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "images").mkdir()
    for number, sign in enumerate(drawn(["STAR", "ROBOT"], 3)):
        Image.fromarray(sign).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "prompts.txt").write_text(f"{sign_words.prompt('STAR')}\n{sign_words.prompt('ROBIN')}")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(root)}
    )
    assert done.stdout == "[0.8, 0.5] []\n", done.stderr  # ROBOT for ROBIN: 2 of 5 letters are wrong
