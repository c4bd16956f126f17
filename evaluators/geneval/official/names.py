"""The detector's weights under the names, and in the layout, of other implementations.

transformers differs from mmdet in more than names: its Swin has separate queries, keys and values, and its patch merging
lists the four neighbours of a position one after the other, where mmdet's unfolding lists them channel by channel.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from evaluators.geneval.official.checkpoint import Weights

Part = Callable[[torch.Tensor], torch.Tensor]


class Sizes(NamedTuple):
    """How large a detector is. The published one: 96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 256, 8, 6, 1024, 9, 2048, 100, 80.

    Attributes:
        width: channels of the first of Swin's four stages; they double from stage to stage.
        depths, heads: blocks and attention heads per stage.
        window: side of an attention window.
        channels: of everything after Swin.
        detector_heads: attention heads of everything after Swin.
        pixel_layers, pixel_hidden: layers of the pixel decoder, and the hidden width of their feed-forward parts.
        layers, hidden: the same for the transformer decoder.
        queries, classes: object queries, and classes without "no object".
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    channels: int
    detector_heads: int
    pixel_layers: int
    pixel_hidden: int
    layers: int
    hidden: int
    queries: int
    classes: int


LEVELS, POINTS = 3, 4


class Origin(NamedTuple):
    """Where a tensor of transformers comes from: a name of mmdet 2.x, and what is done to that tensor."""

    name: str
    part: Part


def measure(weights: Mapping[str, torch.Tensor]) -> Sizes:
    """The sizes of a detector from its weights by mmdet 2.x's names.

    Raises:
        KeyError: a tensor that shows one of them is missing.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    stages = _count(shapes, "backbone.stages.")
    tables = [shapes[f"backbone.stages.{i}.blocks.0.attn.w_msa.relative_position_bias_table"] for i in range(stages)]
    pixel, decoder = "panoptic_head.pixel_decoder.encoder.layers.", "panoptic_head.transformer_decoder.layers."
    offsets, channels = shapes[f"{pixel}0.attentions.0.sampling_offsets.weight"]
    return Sizes(
        width=shapes["backbone.patch_embed.projection.weight"][0],
        depths=tuple(_count(shapes, f"backbone.stages.{i}.blocks.") for i in range(stages)),
        heads=tuple(heads for _, heads in tables),
        window=(round(tables[0][0] ** 0.5) + 1) // 2,
        channels=channels,
        detector_heads=offsets // (LEVELS * POINTS * 2),
        pixel_layers=_count(shapes, pixel),
        pixel_hidden=shapes[f"{pixel}0.ffns.0.layers.0.0.weight"][0],
        layers=_count(shapes, decoder),
        hidden=shapes[f"{decoder}0.ffns.0.layers.0.0.weight"][0],
        queries=shapes["panoptic_head.query_feat.weight"][0],
        classes=shapes["panoptic_head.cls_embed.weight"][0] - 1,
    )


def origins(sizes: Sizes) -> dict[str, Origin]:
    """Every tensor of transformers' checkpoint format, and where it comes from."""
    return dict([*_backbone(sizes), *_pixel_decoder(sizes), *_decoder(sizes), *_whole()])


def converted(weights: Weights, sizes: Sizes) -> Weights:
    """The same weights in transformers' checkpoint format, contiguous float32.

    Raises:
        KeyError: one is missing.
    """
    return {
        name: origin.part(weights[origin.name]).to(torch.float32).contiguous().clone()
        for name, origin in origins(sizes).items()
    }


def derived(name: str) -> bool:
    """Whether a tensor of mmdet is not a weight but holds :func:`window_positions`."""
    return name.endswith(".relative_position_index")


def window_positions(window: int) -> torch.Tensor:
    """The index of each pair of a window's positions in its relative position table, int64 (window**2, window**2)."""
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
    down, right = (axis[:, None] - axis[None, :] + window - 1 for axis in (rows, columns))
    return down * (2 * window - 1) + right


def newer(name: str) -> str:
    """mmdet 3.x's name of a tensor of mmdet 2.x."""
    if ".transformer_decoder." in name:
        name = name.replace(".attentions.0.", ".cross_attn.").replace(".attentions.1.", ".self_attn.")
    return name.replace(".attentions.0.", ".self_attn.").replace(".ffns.0.", ".ffn.")


def _backbone(sizes: Sizes) -> Iterator[tuple[str, Origin]]:
    ours, theirs = "model.pixel_level_module.encoder", "backbone"
    yield from _module(f"{ours}.embeddings.patch_embeddings.projection", f"{theirs}.patch_embed.projection")
    yield from _module(f"{ours}.embeddings.norm", f"{theirs}.patch_embed.norm")
    for i, depth in enumerate(sizes.depths):
        yield from _module(f"{ours}.hidden_states_norms.stage{i + 1}", f"{theirs}.norm{i}")
        for j in range(depth):
            yield from _block(f"{ours}.encoder.layers.{i}.blocks.{j}", f"{theirs}.stages.{i}.blocks.{j}")
        if i + 1 < len(sizes.depths):
            stage, merging = f"{ours}.encoder.layers.{i}.downsample", f"{theirs}.stages.{i}.downsample"
            yield from _module(f"{stage}.norm", f"{merging}.norm", part=_neighbours_first)
            yield from _module(f"{stage}.reduction", f"{merging}.reduction", ("weight",), _neighbours_first)


def _block(ours: str, theirs: str) -> Iterator[tuple[str, Origin]]:
    attention = "attn.w_msa"
    for name, origin in {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": f"{attention}.proj",
        "intermediate.dense": "ffn.layers.0.0",
        "output.dense": "ffn.layers.1",
    }.items():
        yield from _module(f"{ours}.{name}", f"{theirs}.{origin}")
    for i, name in enumerate(("query", "key", "value")):
        yield from _module(f"{ours}.attention.self.{name}", f"{theirs}.{attention}.qkv", part=_third(i))
    table = "relative_position_bias_table"
    yield f"{ours}.attention.self.{table}", Origin(f"{theirs}.{attention}.{table}", _as_it_is)


def _pixel_decoder(sizes: Sizes) -> Iterator[tuple[str, Origin]]:
    ours, theirs = "model.pixel_level_module.decoder", "panoptic_head.pixel_decoder"
    for i in range(LEVELS):
        yield from _module(f"{ours}.input_projections.{i}.0", f"{theirs}.input_convs.{i}.conv")
        yield from _module(f"{ours}.input_projections.{i}.1", f"{theirs}.input_convs.{i}.gn")
    for name, origin in (("adapter_1", "lateral_convs.0"), ("layer_1", "output_convs.0")):
        yield from _module(f"{ours}.{name}.0", f"{theirs}.{origin}.conv", ("weight",))
        yield from _module(f"{ours}.{name}.1", f"{theirs}.{origin}.gn")
    yield from _module(f"{ours}.mask_projection", f"{theirs}.mask_feature")
    yield f"{ours}.level_embed", Origin(f"{theirs}.level_encoding.weight", _as_it_is)
    for i in range(sizes.pixel_layers):
        layer, origin = f"{ours}.encoder.layers.{i}", f"{theirs}.encoder.layers.{i}"
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            yield from _module(f"{layer}.self_attn.{name}", f"{origin}.attentions.0.{name}")
        yield from _norms_and_hidden(layer, origin, ("self_attn_layer_norm", "final_layer_norm"))


def _decoder(sizes: Sizes) -> Iterator[tuple[str, Origin]]:
    ours, theirs = "model.transformer_module.decoder", "panoptic_head.transformer_decoder"
    yield from _module(f"{ours}.layernorm", f"{theirs}.post_norm")
    for i in range(sizes.layers):
        layer, origin = f"{ours}.layers.{i}", f"{theirs}.layers.{i}"
        crossing, own = f"{origin}.attentions.0.attn", f"{origin}.attentions.1.attn"  # in the order in which they run
        for kind in ("weight", "bias"):
            yield f"{layer}.cross_attn.in_proj_{kind}", Origin(f"{crossing}.in_proj_{kind}", _as_it_is)
            for j, name in enumerate("qkv"):
                yield f"{layer}.self_attn.{name}_proj.{kind}", Origin(f"{own}.in_proj_{kind}", _third(j))
        yield from _module(f"{layer}.cross_attn.out_proj", f"{crossing}.out_proj")
        yield from _module(f"{layer}.self_attn.out_proj", f"{own}.out_proj")
        norms = ("cross_attn_layer_norm", "self_attn_layer_norm", "final_layer_norm")
        yield from _norms_and_hidden(layer, origin, norms)
    for i in range(3):  # with an activation in between
        yield from _module(f"{ours}.mask_predictor.mask_embedder.{i}.0", f"panoptic_head.mask_embed.{2 * i}")


def _whole() -> Iterator[tuple[str, Origin]]:
    ours, theirs = "model.transformer_module", "panoptic_head"
    for name, origin in (("queries_embedder", "query_embed"), ("queries_features", "query_feat"), ("level_embed",) * 2):
        yield from _module(f"{ours}.{name}", f"{theirs}.{origin}", ("weight",))
    yield from _module("class_predictor", f"{theirs}.cls_embed")


def _norms_and_hidden(ours: str, theirs: str, norms: tuple[str, ...]) -> Iterator[tuple[str, Origin]]:
    for i, name in enumerate(norms):
        yield from _module(f"{ours}.{name}", f"{theirs}.norms.{i}")
    yield from _module(f"{ours}.fc1", f"{theirs}.ffns.0.layers.0.0")
    yield from _module(f"{ours}.fc2", f"{theirs}.ffns.0.layers.1")


def _module(
    ours: str, theirs: str, kinds: tuple[str, ...] = ("weight", "bias"), part: Part | None = None
) -> Iterator[tuple[str, Origin]]:
    for kind in kinds:
        yield f"{ours}.{kind}", Origin(f"{theirs}.{kind}", part or _as_it_is)


def _as_it_is(weights: torch.Tensor) -> torch.Tensor:
    return weights


def _third(index: int) -> Part:
    return lambda weights: weights.chunk(3)[index]


def _neighbours_first(weights: torch.Tensor) -> torch.Tensor:
    """The last axis from (channel, row, column) to (column, row, channel)."""
    return weights.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)


def _count(names: Mapping[str, object], prefix: str) -> int:
    """How many different numbers follow a prefix in the names."""
    return len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})
