"""The detector's network in mmdet 3.3.0 itself, for comparison.

mmdet 3.x has the network of 2.x under other names. Its own preprocessing differs, so that of 2.x is used. Without mmcv's
compiled operators it computes deformable attention in PyTorch, as it does on a CPU anyway.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from evaluators.geneval.official import names, preprocess
from evaluators.geneval.official.checkpoint import FILE, SHA256, URL, Weights, read, sha256
from evaluators.geneval.official.instances import Instances
from evaluators.geneval.official.preprocess import Prepared
from star.common.errors import UserError, one_line

FILE_VARIABLE = "STAR_GENEVAL_CHECKPOINT"
CONFIG = "configs/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"


class Mmdetection:
    """Finds instances of COCO's classes (see :class:`~evaluators.geneval.official.mask2former.Mask2Former`).

    Attributes:
        name: of the weights, part of the protocol.
        model: mmdet's network, in float32.
    """

    def __init__(self, weights: Weights, name: str, device: str | torch.device = "cpu", **sides: int) -> None:
        """
        Args:
            weights: by the names of mmdet 2.x.
            name: what they are called.
            device: where it computes.
            sides: ``long`` and ``short`` of :func:`~evaluators.geneval.official.preprocess.prepare`.

        Raises:
            UserError: mmdet is not installed, or the weights are not those of this network.
        """
        self.name = name
        self.device = torch.device(device)
        try:
            self.model = network(names.measure(weights)).to(self.device)
            self.model.load_state_dict({names.newer(key): value for key, value in weights.items()})
        except (KeyError, RuntimeError) as error:
            raise UserError(f"these are no weights of mmdet's Mask2Former: {one_line(error)[:300]}") from None
        self._sides = sides

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], floor: float = 0.0) -> Iterator[Instances]:
        """The objects of each image, uint8 (H, W, 3) in RGB, whose score is above ``floor``."""
        for image in images:
            prepared = preprocess.prepare(image, **self._sides)
            (sample,) = self.model.predict(prepared.pixels[None].to(self.device), [_sample(prepared)], rescale=True)
            found = sample.pred_instances[sample.pred_instances.scores > floor]
            yield Instances(found.labels, found.scores, found.bboxes, found.masks)

    @torch.inference_mode()
    def logits(self, images: Sequence[Prepared]) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (n, queries, 81) and mask logits (n, queries, H / 4, W / 4) of images of one size."""
        dtype = next(self.model.parameters()).dtype
        pixels = torch.stack([image.pixels for image in images]).to(self.device, dtype)
        features = self.model.extract_feat(pixels)
        classes, masks = self.model.panoptic_head(features, [_sample(image) for image in images])
        return classes[-1], masks[-1]


def official(file: Path, device: str | torch.device) -> Mmdetection:
    """mmdet's network with the weights of a checkpoint; its name includes the start of the checkpoint's sha256.

    Raises:
        UserError: mmdet or the checkpoint is missing.
    """
    load_mmdet()
    if not file.is_file():
        raise UserError(
            f"the geneval engine mmdet needs {file} ({FILE_VARIABLE} names another file); `curl -LO {URL}` gets {FILE}"
        )
    found = sha256(file)
    name = f"mmdet-3.3.0-{found[:8]}" + ("" if found == SHA256 else "-unofficial")
    return Mmdetection(read(file), name, device)


def network(sizes: names.Sizes) -> Any:
    """mmdet's Mask2Former with Swin of these sizes, untrained, in eval mode.

    Raises:
        UserError: mmdet is not installed.
    """
    mmdet = load_mmdet()
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    settings = Config.fromfile(str(Path(str(mmdet.__file__)).parent / ".mim" / CONFIG)).model
    backbone, head = settings.backbone, settings.panoptic_head
    backbone.update(
        embed_dims=sizes.width,
        depths=sizes.depths,
        num_heads=sizes.heads,
        window_size=sizes.window,
        drop_path_rate=0.0,
        init_cfg=None,
    )
    head.update(
        in_channels=[sizes.width * 2**i for i in range(len(sizes.depths))],
        feat_channels=sizes.channels,
        out_channels=sizes.channels,
        num_queries=sizes.queries,
        num_things_classes=sizes.classes,
    )
    head.loss_cls.class_weight = [1.0] * sizes.classes + [0.1]
    settings.panoptic_fusion_head.num_things_classes = sizes.classes
    _resize_layers(head.pixel_decoder.encoder, sizes, sizes.pixel_layers, sizes.pixel_hidden)
    _resize_layers(head.transformer_decoder, sizes, sizes.layers, sizes.hidden)
    for encoding in (head.pixel_decoder.positional_encoding, head.positional_encoding):
        encoding.num_feats = sizes.channels // 2
    return MODELS.build(settings).eval()


def _resize_layers(part: Any, sizes: names.Sizes, layers: int, hidden: int) -> None:
    part.num_layers = layers
    part.layer_cfg.ffn_cfg.update(embed_dims=sizes.channels, feedforward_channels=hidden)
    for key in ("self_attn_cfg", "cross_attn_cfg"):
        if key in part.layer_cfg:
            part.layer_cfg[key].update(embed_dims=sizes.channels, num_heads=sizes.detector_heads)


@cache
def load_mmdet() -> ModuleType:
    """mmdet. It needs no compiled operators for this network but does not import without them, so a stub replaces them.

    Raises:
        UserError: it is not installed.
    """
    try:
        importlib.import_module("mmcv")
    except ImportError:
        raise UserError("the geneval engine mmdet is not installed: pip install 'star-rl[mmdet]'") from None
    try:
        importlib.import_module("mmcv._ext")
    except ImportError:
        sys.modules["mmcv._ext"] = _NoOperators("mmcv._ext")
        # On a GPU it would otherwise call the operator that is not there.
        importlib.import_module("mmcv.ops.multi_scale_deform_attn").IS_CUDA_AVAILABLE = False  # type: ignore[attr-defined]
    try:
        return importlib.import_module("mmdet")
    except (ImportError, AssertionError) as error:  # it asserts the versions of mmcv and mmengine
        raise UserError(f"mmdet cannot be used: {error}; pip install 'star-rl[mmdet]' installs what fits") from None


class _NoOperators(ModuleType):
    """Stands in for mmcv's compiled operators: they can be imported, but not called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def operator(*arguments: Any, **options: Any) -> None:
            raise NotImplementedError(f"mmcv's operator {name} is not compiled")

        return operator


def _sample(image: Prepared) -> Any:
    from mmdet.structures import DetDataSample

    shape = tuple(image.pixels.shape[-2:])
    return DetDataSample(metainfo={"batch_input_shape": shape, "img_shape": image.kept, "ori_shape": image.original})
