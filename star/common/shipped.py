"""The models that ship with this package: where they lie, and what results call them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from star.common.files import weights_digest

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


@dataclass(frozen=True)
class Shipped:
    """A folder of weights.

    Attributes:
        folder: where they lie.
        name: in protocols and hashes of settings. Not the folder's name, because results are older than the folder's place.
    """

    folder: Path
    name: str

    @cached_property
    def digest(self) -> str:
        """The sha256 of all weights in it."""
        return weights_digest(self.folder)

    @property
    def identity(self) -> str:
        """The name with the start of the digest, since what ships may change: ``weights@0123456789ab``."""
        return f"{self.name}@{self.digest[:12]}"


MINI_BASE = Shipped(WEIGHTS / "base", "weights")
"""The embedded base model, a diffusers folder; ``star mini pretrain`` builds one like it."""

MINI_PICKSCORE = Shipped(WEIGHTS / "pickscore", "taste_weights")
"""The small CLIP that stands in for PickScore on the embedded world; ``star mini taste`` builds it."""
