"""The steps of ``star bench gpu``: the most important ones first, and last the one that may take long, compiling."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One measurement.

    Attributes:
        name: of the step, in ``only=`` and in the table.
        seconds: how long it is expected to take on an H100, without the start of the process that computes.
        measure: path of the function that takes a :class:`star.bench.gpu.bench.Bench` and yields figures as they come.
        about: what it measures, for the line that is printed when it begins.
    """

    name: str
    seconds: float
    measure: str
    about: str


STEPS = (
    Step("machine", 10, "star.bench.gpu.machine:ceilings", "copying, and products of every precision"),
    Step("attention", 20, "star.bench.gpu.machine:attention", "every attention kernel: pace, the same with gradients?"),
    Step("build", 10, "star.bench.gpu.model:build", "the transformer made on the device"),
    Step("on_policy", 80, "star.bench.gpu.model:on_policy", "how far the ratios of a first update are off 1"),
    Step("pace", 70, "star.bench.gpu.model:pace", "every pass: images a second, share of the ceiling, memory"),
    Step("capture", 20, "star.bench.gpu.model:capture", "what reading relevance costs"),
    Step("published", 75, "star.bench.gpu.training:published", "epochs here and in Flow-GRPO's published loop"),
    Step("epoch", 75, "star.bench.gpu.training:epoch", "an epoch's phases with text encoders of true size"),
    Step("resume", 45, "star.bench.gpu.training:resume", "does a run that was cut off end with the same weights?"),
    Step("sharded", 20, "star.bench.gpu.training:sharded", "FSDP2 of one process: the same to the bit?"),
    Step("judges", 30, "star.bench.gpu.judges:judges", "CLIP-H, Mask2Former and the autoencoder"),
    Step("compile", 100, "star.bench.gpu.compiled:compiled", "what compiling the blocks takes, and gives"),
)
