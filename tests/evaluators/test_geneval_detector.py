import cv2
import numpy as np
import pytest
import torch
from tiny_detector import IMAGES, SIDES, image_of, save_detector, stored

from evaluators.geneval.official import mask2former
from evaluators.geneval.official.instances import instances
from evaluators.geneval.official.mask2former import Mask2Former
from evaluators.geneval.official.preprocess import Prepared, prepare
from star.common.errors import UserError

SHAPES, EXPECTED = stored()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return Mask2Former(save_detector(tmp_path_factory.mktemp("detector"), SHAPES).folder, "tiny", **SIDES)


@pytest.mark.parametrize(
    ("size", "kept", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((1024, 1024), (800, 800), (800, 800)),
        ((512, 768), (800, 1200), (800, 1216)),
        ((768, 512), (1200, 800), (1216, 800)),
        ((500, 1000), (667, 1333), (672, 1344)),  # the long side decides
        ((333, 517), (800, 1242), (800, 1248)),
    ],
)
def test_images_are_resized_and_padded_by_the_rule(size, kept, padded):
    found = prepare(image_of(0, *size))
    assert (found.kept, found.original, tuple(found.pixels.shape)) == (kept, size, (3, *padded))
    grey = torch.tensor([(128 - 123.675) / 58.395, (128 - 116.28) / 57.12, (128 - 103.53) / 57.375])
    for margin in (found.pixels[:, kept[0] :], found.pixels[:, :, kept[1] :]):
        assert (margin - grey[:, None, None]).abs().sum() == pytest.approx(0, abs=1e-6 * margin.numel())


@pytest.mark.parametrize("size", [(512, 512), (60, 90)])
def test_pixels_are_those_of_opencv_to_the_bit(size):
    """As mmcv does it: BGR, resize, pad, to RGB in float32, subtract, multiply by the reciprocal, both held in float32."""
    image = image_of(1, *size)
    found = prepare(image)
    bgr = cv2.resize(np.ascontiguousarray(image[..., ::-1]), found.kept[::-1], interpolation=cv2.INTER_LINEAR)
    height, width = found.pixels.shape[1:]
    below, beside = height - found.kept[0], width - found.kept[1]
    bgr = cv2.copyMakeBorder(bgr, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=(128, 128, 128))
    values = cv2.cvtColor(bgr.astype(np.float32), cv2.COLOR_BGR2RGB)
    mean, std = (
        np.array([row], np.float32).astype(np.float64) for row in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    )
    values = cv2.multiply(cv2.subtract(values, mean), 1 / std)
    assert np.array_equal(found.pixels.numpy(), values.transpose(2, 0, 1))


def naive_instances(class_logits, mask_logits, image):
    """Pair by pair, in float64, keyed by (query, class)."""
    resize = torch.nn.functional.interpolate
    found = {}
    for query, logits in enumerate(class_logits.double()):
        mask = resize(mask_logits[query][None, None].double(), size=image.pixels.shape[1:], mode="bilinear")
        mask = resize(mask[..., : image.kept[0], : image.kept[1]], size=image.original, mode="bilinear")[0, 0].numpy()
        inside = mask > 0
        quality = (1 / (1 + np.exp(-mask[inside]))).sum() / (inside.sum() + 1e-6)
        rows, columns = np.nonzero(inside)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if inside.any() else (0, 0, 0, 0)
        for label, probability in enumerate(logits.softmax(0)[:-1].tolist()):
            found[query, label] = (probability * quality, *box, inside.sum())
    return found


def test_objects_are_made_of_the_best_pairs(monkeypatch):
    torch.manual_seed(0)
    classes, masks = 3 * torch.randn(5, 7), torch.randn(5, 8, 12) - 0.5
    masks[3] = -1  # an empty one
    image = Prepared(torch.zeros(3, 32, 48), (28, 41), (23, 37))
    expected = naive_instances(classes, masks, image)
    everything = instances(classes, masks, image)
    assert len(everything.labels) == 30
    rows = torch.cat([everything.scores[:, None], everything.boxes, everything.masks.flatten(1).sum(1)[:, None]], dim=1)
    by_score = [np.array(sorted(map(tuple, values))) for values in (rows.tolist(), expected.values())]
    assert np.abs(by_score[0] - by_score[1]).max() < 1e-5
    probabilities = classes.softmax(dim=1)[:, :-1].flatten().sort(descending=True).values
    above = instances(classes, masks, image, floor=0.3)
    assert len(above.labels) == (probabilities > 0.3).sum()
    assert set(above.scores[above.scores > 0.3].tolist()) == set(everything.scores[everything.scores > 0.3].tolist())
    assert len(instances(classes, masks, image, floor=1.0).masks) == 0
    monkeypatch.setattr("evaluators.geneval.official.instances.LIMIT", 10)
    assert len(instances(classes, masks, image).labels) == 10


@pytest.mark.parametrize("kind", IMAGES)
def test_objects_are_those_of_mmdet(network, kind):
    image = image_of(list(IMAGES).index(kind), *IMAGES[kind])
    (found,) = network([image])
    assert found.masks.shape[1:] == IMAGES[kind]
    ours = np.column_stack([found.labels, found.scores, found.boxes, found.masks.flatten(1).sum(1)])
    theirs = np.column_stack([EXPECTED[f"{kind}_{part}"] for part in ("labels", "scores", "boxes", "areas")])
    order = [np.lexsort((rows[:, 1].round(3), rows[:, 0])) for rows in (ours, theirs)]
    ours, theirs = ours[order[0]], theirs[order[1]]
    assert ours[:, 0].tolist() == theirs[:, 0].tolist()
    assert np.abs(ours[:, 1] - theirs[:, 1]).max() < 1e-4
    assert np.abs(ours[:, 2:] - theirs[:, 2:]).max() <= 2  # a pixel on the edge of a mask


def test_batches_give_what_single_images_give(network):
    images = [image_of(seed, *size) for seed, size in enumerate([(64, 64), (64, 64), (60, 90), (64, 64), (48, 48)])]
    together, alone = list(network(images, 0.1)), [next(iter(network([image], 0.1))) for image in images]
    for first, second in zip(together, alone, strict=True):
        assert torch.allclose(first.scores.sort().values, second.scores.sort().values, atol=1e-5)
    assert list(network([])) == []


def test_what_is_missing_is_one_line_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="^[^\n]*curl -LO https[^\n]* && star convert geneval-detector [^\n]*gets it$"):
        mask2former.official(tmp_path / "none", "cpu")
    with pytest.raises(UserError, match="`hf download facebook/mask2former-swin-small-coco-instance` gets it$"):
        mask2former.proxy("cpu")
    with pytest.raises(UserError, match="^no Mask2Former can be loaded from [^\n]*$"):
        Mask2Former(tmp_path, "x")


def test_a_folder_without_some_weights_is_refused(network, tmp_path):
    kept = {name: value for name, value in network.model.state_dict().items() if "queries_features" not in name}
    network.model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(UserError, match="lacks weights that its config.json asks for: model.*queries_features"):
        Mask2Former(tmp_path, "x")
