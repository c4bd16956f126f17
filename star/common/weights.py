"""Whether a library loaded the weights that a folder holds, all of them: without an error it makes up those that it misses."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def fault(module: nn.Module, report: Mapping[str, Any], unused: tuple[str, ...] = ()) -> str:
    """What is wrong with a module's weights, in words; empty if they are whole and fit its config.json.

    Args:
        module: as diffusers or transformers loaded it, perhaps on the meta device.
        report: what the library gave with it for ``output_loading_info=True``.
        unused: endings of the names of weights that may be missing, because they have no effect.
    """
    # Buffers that a file lacks are computed, so only parameters count as missing; what it has must fit in shape.
    parameters = dict(module.named_parameters())
    missing = {key for key in report["missing_keys"] if key in parameters and not key.endswith(unused)}
    missing |= {key for key, *_ in report["mismatched_keys"]}
    if missing:
        return f"lacks weights that its config.json asks for: {min(missing)}, in all {len(missing)}"
    if surplus := report["unexpected_keys"]:
        return f"has weights that its config.json has no place for: {min(surplus)}, in all {len(surplus)}"
    if empty := [name for name, weights in parameters.items() if blank(weights)]:
        return f"has nothing but zeros in {empty[0]}, in all {len(empty)}, as after a broken download; get it again"
    return ""


def blank(weights: Tensor) -> bool:
    """Whether a matrix or kernel is wholly zero, as no trained one is; a vector may be, e.g. a bias."""
    return weights.ndim > 1 and not weights.is_meta and not weights[:1].any() and not weights.any()
