"""How numbers are written, in reports, tables and on the screen."""

from collections.abc import Sequence
from math import isfinite, isnan

from star.common.statistics import Estimate

MISSING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """``1,234.567`` with a real minus sign; a dash for what is not known: None, or not a number."""
    return MISSING if value is None or isnan(value) else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def p_value(p: float) -> str:
    """``0.0496``, ``1``, ``< 0.0001``: digits enough to be on the right side of 0.05."""
    return "< 0.0001" if p < 0.0001 else "1" if p > 0.99995 else number(p, 4)


def estimate(value: Estimate, digits: int = 3) -> str:
    """``0.512 [0.498, 0.526]``, or the number alone if it has no interval."""
    if value.interval is None:
        return number(value.value, digits)
    low, high = value.interval
    return f"{number(value.value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def signed(value: Estimate | float, digits: int = 3) -> str:
    """``+0.021 [−0.002, +0.044]``, or ``+0.021`` without an interval."""
    parts = (value.value, *(value.interval or ())) if isinstance(value, Estimate) else (value,)
    first, *ends = (f"{part:+.{digits}f}".replace("-", "\N{MINUS SIGN}") for part in parts)
    return f"{first} [{', '.join(ends)}]" if ends else first


def counted(count: int, what: str) -> str:
    """``1 training seed``, ``3 training seeds``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def sample_size(images: int, prompts: int) -> str:
    """``788 images of 197 prompts``."""
    return f"{counted(images, 'image')} of {counted(prompts, 'prompt')}"


def named_seeds(seeds: Sequence[int]) -> str:
    """``seed 0``, ``seeds 0, 1, 2``."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def with_error(value: float, stderr: float | None, digits: int = 3, between: str = " ± ") -> str:
    """``1.234 ± 0.056``; without the error if that is None or not finite."""
    known = stderr is not None and isfinite(stderr)
    return number(value, digits) + (f"{between}{stderr:.{digits}f}" if known else "")
