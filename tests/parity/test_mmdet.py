import numpy as np
import pytest
import torch
from make_mmdet_fixture import older, outputs, shapes_of
from tiny_detector import FULL, IMAGES, SIDES, TINY, image_of, random_weights, save_detector, stored

from evaluators.geneval import evaluate, prompts
from evaluators.geneval.official import mmdetection, names
from evaluators.geneval.official.engines import OfficialDetector
from evaluators.geneval.official.mask2former import Mask2Former
from evaluators.geneval.official.preprocess import prepare

pytest.importorskip("mmdet")


class HashClip:
    """Some function of the pixels and the texts; the same for both detectors."""

    name, side, device = "hash", 16, torch.device("cpu")

    def texts(self, texts):
        rows = [np.random.default_rng(list(text.encode())).normal(size=16) for text in texts]
        return torch.tensor(np.array(rows), dtype=torch.float32)

    def pictures(self, pixels):
        projection = np.random.default_rng(0).normal(size=(pixels[0].numel(), 16))
        return pixels.flatten(1) @ torch.tensor(projection, dtype=torch.float32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The tiny network by mmdet and by transformers, the latter through a checkpoint file and its conversion."""
    return both(TINY, tmp_path_factory.mktemp("tiny"), SIDES)


def both(sizes, folder, sides):
    shapes = shapes_of(sizes)
    done = save_detector(folder, shapes)
    assert done.sizes == sizes
    return mmdetection.Mmdetection(random_weights(shapes), "mmdet", **sides), Mask2Former(done.folder, "ours", **sides)


def errors(pair, images):
    first, second = (network.logits(images) for network in pair)
    return [float((a - b).abs().max()) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("size", [*IMAGES.values(), (100, 37), (37, 200), (512, 512)])
def test_tiny_logits_agree(pair, size):
    assert max(errors(pair, [prepare(image_of(7, *size), **SIDES)])) < 1e-4


def test_full_logits_agree(tmp_path):
    """In float64, because the rounding of float32 grows to some 1e-4 in random networks of this depth, in either."""
    pair = both(FULL, tmp_path, {})
    for network in pair:
        network.model.double()
    assert max(errors(pair, [prepare(image_of(3, 64, 96), long=320, short=200)])) < 1e-4


def test_every_weight_of_mmdet_is_used_and_named_as_in_2_x():
    for sizes in (TINY, FULL):
        expected = {origin.name for origin in names.origins(sizes).values()}
        assert {name for name in shapes_of(sizes) if not names.derived(name)} == expected


def test_positions_in_windows_are_those_of_mmdet():
    for name, tensor in mmdetection.network(TINY).state_dict().items():
        assert not names.derived(name) or torch.equal(tensor, names.window_positions(TINY.window))


def test_names_of_2_x_and_3_x_lead_to_each_other():
    for name in mmdetection.network(TINY).state_dict():
        assert names.newer(older(name)) == name


def test_the_stored_fixture_is_what_mmdet_gives():
    shapes, arrays = stored()
    assert shapes == shapes_of(TINY)
    for name, values in outputs(shapes).items():
        assert np.allclose(arrays[name], values, atol=2e-5), name


def records_about(found, rng):
    """Records of all kinds about classes that were found, and some that were not."""
    seen = sorted(found) or ["dog"]
    for name in seen:
        yield prompts.single_object(name)
        yield prompts.colors(name, str(rng.choice(prompts.PALETTE)))
        yield prompts.counting(name, int(rng.integers(2, 5)))
    for _ in range(6):
        first, second = (str(name) for name in rng.choice([*seen, "dog"], 2))
        if first != second:
            yield prompts.two_object(first, second)
            yield prompts.position(first, str(rng.choice(prompts.RELATIONS)), second)
            red, blue = (str(color) for color in rng.choice(prompts.PALETTE, 2))
            yield prompts.color_attr(first, red, second, blue)


def test_verdicts_agree(pair):
    detectors = [OfficialDetector(network, HashClip()) for network in pair]
    rng = np.random.default_rng(0)
    cases, same, kinds = 0, 0, {True: 0, False: 0}
    for seed in range(60):
        image = image_of(100 + seed, *rng.integers(40, 120, 2))
        records = list(records_about(detectors[0]([image])[0], rng))
        verdicts = [evaluate.verdicts(records, [image] * len(records), Once(detector)) for detector in detectors]
        for first, second in zip(*verdicts, strict=True):
            cases, same = cases + 1, same + (first == second)
            kinds[first.correct] += 1
    print(f"{same} of {cases} verdicts are the same, {kinds[True]} of them right")
    assert cases >= 500 and min(kinds.values()) > 0.05 * cases
    assert same >= 0.998 * cases


class Once:
    """A detector that looks at an image once, however often it is asked about it."""

    def __init__(self, detector):
        self._detector = detector
        self.name, self.classes, self.colors = detector.name, detector.classes, detector.colors
        self.with_colors = detector.with_colors

    def __call__(self, images):
        return self._detector(images[:1]) * len(images)
