"""Write tests/fixtures/mmdet.npz: what mmdet's own implementation gives for the tiny detector.

tox -e parity --notest
tox exec -e parity -- python tests/make_mmdet_fixture.py
"""

import json
from typing import Any

import numpy as np
from tiny_detector import FIXTURE, IMAGES, SIDES, TINY, Shapes, image_of, random_weights

from evaluators.geneval.official import mmdetection
from evaluators.geneval.official.names import Sizes
from evaluators.geneval.official.preprocess import prepare


def older(name: str) -> str:
    """mmdet 2.x's name of a tensor of mmdet 3.x."""
    if ".transformer_decoder." in name:
        name = name.replace(".cross_attn.", ".attentions.0.").replace(".self_attn.", ".attentions.1.")
    elif ".encoder.layers." in name:
        name = name.replace(".self_attn.", ".attentions.0.")
    return name.replace(".ffn.", ".ffns.0.") if name.startswith("panoptic_head") else name


def shapes_of(sizes: Sizes) -> Shapes:
    return {older(name): tuple(tensor.shape) for name, tensor in mmdetection.network(sizes).state_dict().items()}


def outputs(shapes: Shapes) -> dict[str, Any]:
    network = mmdetection.Mmdetection(random_weights(shapes), "tiny", **SIDES)
    arrays: dict[str, Any] = {}
    for seed, (kind, (height, width)) in enumerate(IMAGES.items()):
        image = image_of(seed, height, width)
        classes, masks = network.logits([prepare(image, **SIDES)])
        (found,) = network([image])
        arrays |= {
            f"{kind}_classes": classes[0].numpy(),
            f"{kind}_masks": masks[0, :, ::2, ::2].numpy(),
            f"{kind}_labels": found.labels.numpy().astype(np.uint8),
            f"{kind}_scores": found.scores.numpy(),
            f"{kind}_boxes": found.boxes.numpy().astype(np.int16),
            f"{kind}_areas": found.masks.flatten(1).sum(1).numpy().astype(np.int32),
        }
    return arrays


def main() -> None:
    shapes = shapes_of(TINY)
    FIXTURE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURE, shapes=json.dumps(shapes), **outputs(shapes))
    print(f"{FIXTURE}: {FIXTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
