"""A task of one's own: prompts about rings, whose core word is the ring, judged as PickScore's are."""

from star.tasks import Prompt


class Rings:
    """What `star.tasks.OwnTask` asks for."""

    evaluator = "pickscore"

    def train(self, scale: str) -> list[Prompt]:
        """To learn from."""
        return [self._prompt(f"a photo of a {colour} ring") for colour in ("red", "blue", "green", "yellow")]

    def test(self, scale: str) -> list[Prompt]:
        """Held out."""
        return [self._prompt("a photo of a ring")]

    def _prompt(self, text: str) -> Prompt:
        return Prompt(text, ((text.index("ring"), text.index("ring") + 4),))
